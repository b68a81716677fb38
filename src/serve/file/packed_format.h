// The bytes of a packed file around its tensors: header, index, description. docs/packed.md is the
// grammar; the names here are those of the document. Plain values, no file, no thread.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "scant/base/result.h"
#include "scant/base/types.h"
#include "serve/file/tensor_kind.h"

namespace scant::serve {

inline constexpr uint32_t kPackedMagic = 0x4b504353;  // "SCPK" in memory
inline constexpr uint16_t kPackedVersion = 1;
inline constexpr size_t kPackedHeaderBytes = 64;
inline constexpr uint64_t kPageBytes = 65536;
inline constexpr size_t kRunBytes = 8;
inline constexpr size_t kTensorRowBytes = 64;
inline constexpr size_t kPartRowBytes = 16;
inline constexpr uint64_t kRunsMax = uint64_t{1} << 16;
inline constexpr uint64_t kTensorsMax = uint64_t{1} << 18;
inline constexpr uint64_t kPartsMax = 64;
inline constexpr uint64_t kPartBytesMax = uint64_t{1} << 30;
inline constexpr size_t kNameBytesMax = 255;

struct PackedHeader {
  uint64_t bytes = 0;
  uint64_t index_at = 0;
  uint64_t index_bytes = 0;
  uint32_t runs = 0;
  uint32_t tensors = 0;
  uint32_t parts = 0;
  uint32_t pages = 0;
  uint32_t index_crc = 0;
};
[[nodiscard]] std::array<std::byte, kPackedHeaderBytes> write_packed_header(
    const PackedHeader& header);
// `bytes` are the first ones of a file. ErrorCode::unsupported: another version. ErrorCode::corrupt
// names the fault.
[[nodiscard]] Result<PackedHeader> read_packed_header(Bytes bytes, uint64_t file_bytes);

enum class PartKind : uint8_t {
  description = 1,
  tokenizer = 2,
  metadata = 3,  // GGUF's key-value pairs
  chat_template = 4,
  provenance = 5,
  file = 6,
};
[[nodiscard]] const char* name(PartKind kind);

struct FilePart {
  PartKind kind = PartKind::description;
  std::string name;
  uint64_t bytes = 0;
  uint32_t crc = 0;
};

struct Run {
  uint32_t tensors = 0;
  uint32_t first_page = 0;
};

struct PackedIndex {
  std::vector<Run> runs;
  std::vector<Tensor> tensors;  // without bytes
  std::vector<uint64_t> tensor_bytes;
  std::vector<FilePart> parts;
  std::vector<uint32_t> page_crcs;
};
[[nodiscard]] std::vector<std::byte> write_packed_index(const PackedIndex& index);
// Checked in full, but for what the pages hold: kinds, shapes, bytes, places in the file, names.
[[nodiscard]] Result<PackedIndex> read_packed_index(const PackedHeader& header, Bytes bytes);

// What a name may be: of a tensor, and of a file.
[[nodiscard]] bool is_tensor_name(std::string_view name);
[[nodiscard]] bool is_file_name(std::string_view name);

}  // namespace scant::serve
