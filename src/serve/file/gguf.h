// GGUF files of versions 2 and 3 (github.com/ggml-org/ggml, docs/gguf.md): key-value pairs, then
// tensors. The file is mapped, and everything is checked before it is used. Any thread reads.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "scant/base/result.h"
#include "serve/file/mapped_file.h"
#include "serve/file/output_file.h"
#include "serve/file/tensor_kind.h"

namespace scant::serve {

inline constexpr uint32_t kGgufMagic = 0x46554747;  // "GGUF" in memory
inline constexpr uint32_t kGgufVersion = 3;
inline constexpr uint64_t kGgufPairsMax = uint64_t{1} << 16;
inline constexpr uint64_t kGgufAlignment = 32;  // if there is no general.alignment
inline constexpr unsigned kGgufArrayDepthMax = 4;

enum class GgufType : uint32_t {
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  f32,
  boolean,
  text,
  array,
  u64,
  i64,
  f64
};

struct GgufPair {
  std::string key;
  GgufType type = GgufType::u8;
  Bytes value;  // as in the file: texts with their length, arrays with type and count
};
// Reads `count` pairs at the beginning of `bytes`; `used` becomes the number of their bytes.
// ErrorCode::corrupt names the fault and the pair.
[[nodiscard]] Result<std::vector<GgufPair>> read_gguf_pairs(Bytes bytes, uint64_t count,
                                                            uint64_t& used);
[[nodiscard]] std::vector<std::byte> write_gguf_pairs(const std::vector<GgufPair>& pairs);

class GgufFile {
 public:
  // ErrorCode::unsupported: another version or byte order, or a tensor, which the error names, of a
  // kind that Scant does not read.
  [[nodiscard]] static Result<GgufFile> open(const std::string& path);

  [[nodiscard]] uint32_t version() const { return version_; }
  [[nodiscard]] uint64_t alignment() const { return alignment_; }
  [[nodiscard]] const std::vector<GgufPair>& pairs() const { return pairs_; }
  [[nodiscard]] Bytes pair_bytes() const { return pair_bytes_; }  // all pairs as in the file
  [[nodiscard]] const std::vector<Tensor>& tensors() const { return tensors_; }
  [[nodiscard]] const MappedFile& file() const { return file_; }

 private:
  explicit GgufFile(MappedFile file) : file_(std::move(file)) {}
  Result<void> read();
  Result<void> read_alignment();
  Result<void> check_places(uint64_t data_at);

  MappedFile file_;
  uint32_t version_ = 0;
  uint64_t alignment_ = kGgufAlignment;
  std::vector<GgufPair> pairs_;
  Bytes pair_bytes_;
  std::vector<Tensor> tensors_;
};

struct GgufTensor {
  std::string name;
  TensorKind kind = TensorKind::f32;  // row by row
  std::vector<uint64_t> dims;
};

// Writes version 3. Tensors are appended in the order of create()'s list. The file appears under
// its name when it is whole. One owner thread.
class GgufWriter {
 public:
  // `pairs`: `count` of them, as read_gguf_pairs() takes them. ErrorCode::invalid_argument names
  // the fault.
  [[nodiscard]] static Result<GgufWriter> create(const std::string& path, uint64_t count,
                                                 Bytes pairs, std::vector<GgufTensor> tensors);
  // The next bytes of the current tensor; they may not reach into the next one.
  Result<void> append(Bytes bytes);
  // Returns the bytes of the file.
  Result<uint64_t> finish();

 private:
  GgufWriter(OutputFile file, std::vector<GgufTensor> tensors, uint64_t alignment)
      : file_(std::move(file)), tensors_(std::move(tensors)), alignment_(alignment) {}

  OutputFile file_;
  std::vector<GgufTensor> tensors_;
  uint64_t alignment_;
  size_t now_ = 0;     // the tensor whose bytes come
  uint64_t done_ = 0;  // bytes of it
};

}  // namespace scant::serve
