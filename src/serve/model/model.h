// A model: its description, and its tensors by their places in the net. The bytes are those of the
// mapped file, and nothing is copied. Immutable; any number of decoders on any threads share it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "scant/base/result.h"
#include "serve/file/description.h"
#include "serve/file/gguf.h"
#include "serve/file/packed_file.h"

namespace scant::serve {

// Null: the model has no such tensor.
struct Layer {
  const Tensor* attention_norm = nullptr;
  const Tensor* attention_norm_bias = nullptr;
  const Tensor* query = nullptr;
  const Tensor* key = nullptr;
  const Tensor* value = nullptr;
  const Tensor* query_bias = nullptr;
  const Tensor* key_bias = nullptr;
  const Tensor* value_bias = nullptr;
  const Tensor* query_norm = nullptr;
  const Tensor* key_norm = nullptr;
  const Tensor* output = nullptr;
  const Tensor* output_bias = nullptr;
  const Tensor* ffn_norm = nullptr;
  const Tensor* ffn_norm_bias = nullptr;
  const Tensor* gate = nullptr;
  const Tensor* up = nullptr;
  const Tensor* up_bias = nullptr;
  const Tensor* down = nullptr;
  const Tensor* down_bias = nullptr;
};

class Model {
 public:
  // ErrorCode::corrupt names the tensor that is missing, has another shape than the description
  // says, or holds values that are not finite where that is checked.
  [[nodiscard]] static Result<std::unique_ptr<Model>> open(PackedFile file);
  [[nodiscard]] static Result<std::unique_ptr<Model>> open(GgufFile file, Description description);

  [[nodiscard]] const Description& description() const { return description_; }
  [[nodiscard]] const std::vector<Layer>& layers() const { return layers_; }

 private:
  Description description_;
  std::vector<Layer> layers_;
};

}  // namespace scant::serve
