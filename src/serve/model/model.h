// A model: its description, and its tensors by their places in the net. The bytes are those of the
// mapped file; only vectors that are not f32 are copied. Immutable; any number of decoders on any
// threads share it.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/aligned.h"
#include "scant/base/result.h"
#include "serve/file/description.h"
#include "serve/file/gguf.h"
#include "serve/file/packed_file.h"

namespace scant::serve {

// Null: the model has no such tensor. Vectors are f32, finite, and as long as the rows that they
// belong to.
struct Layer {
  const float* attention_norm = nullptr;
  const float* attention_norm_bias = nullptr;
  const Tensor* qkv = nullptr;  // query, key and value in one; then those are null
  const Tensor* query = nullptr;
  const Tensor* key = nullptr;
  const Tensor* value = nullptr;
  const float* query_bias = nullptr;
  const float* key_bias = nullptr;
  const float* value_bias = nullptr;
  const float* query_norm = nullptr;
  const float* key_norm = nullptr;
  const Tensor* output = nullptr;
  const float* output_bias = nullptr;
  const float* ffn_norm = nullptr;
  const float* ffn_norm_bias = nullptr;
  const Tensor* gate = nullptr;
  const float* gate_bias = nullptr;
  const Tensor* up = nullptr;
  const float* up_bias = nullptr;
  const Tensor* down = nullptr;
  const float* down_bias = nullptr;
};

// What is around the layers.
struct Ends {
  const Tensor* embedding = nullptr;
  const Tensor* positions = nullptr;  // learned ones
  const float* norm = nullptr;
  const float* norm_bias = nullptr;
  const Tensor* head = nullptr;          // the embedding, if it is tied
  const float* rope_divisors = nullptr;  // of frequencies, rope_size / 2 of them
};

class Model {
 public:
  // ErrorCode::corrupt names the tensor that is missing, has another shape than the description
  // says, or holds values that are not finite where that is checked.
  [[nodiscard]] static Result<std::unique_ptr<Model>> open(PackedFile file);
  [[nodiscard]] static Result<std::unique_ptr<Model>> open(GgufFile file, Description description);

  [[nodiscard]] const Description& description() const { return description_; }
  [[nodiscard]] const std::vector<Layer>& layers() const { return layers_; }
  [[nodiscard]] const Ends& ends() const { return ends_; }
  // Null: no product reads a matrix of this name.
  [[nodiscard]] const Tensor* find_matrix(std::string_view name) const;

 private:
  class Binder;
  using File = std::variant<PackedFile, GgufFile>;
  Model(File file, Description description)
      : file_(std::move(file)), description_(std::move(description)) {}
  [[nodiscard]] static Result<std::unique_ptr<Model>> bind(File file, Description description);

  File file_;
  Description description_;
  std::vector<Layer> layers_;
  Ends ends_;
  std::vector<base::AlignedVector<float>> widened_;  // vectors that are not f32 in the file
};

}  // namespace scant::serve
