// Packed files. What opens has tensors in the file that do not overlap, whose rows can be read
// whatever their bytes are; written again, index and description are the same. Input: pages (one
// byte; bit 7: checksums are put right), runs, tensors, parts, bytes of the index (u16), then the
// index, then parts, then what stands in the pages.
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/crc.h"
#include "base/little_endian.h"
#include "fuzz_input.h"
#include "memory_file.h"
#include "serve/file/packed_file.h"
#include "serve/file/rows.h"

using namespace scant;
using namespace scant::serve;

namespace {

constexpr uint8_t kSealed = 0x80;
constexpr uint64_t kPagesMax = 3;
constexpr uint64_t kReadMax = 1 << 16;  // values of a row

// Page checksums and those of parts stand in the index; it is sealed last.
void seal(std::vector<std::byte>& file, PackedHeader& header, Bytes parts) {
  const size_t rows = header.index_at + kRunBytes * header.runs + kTensorRowBytes * header.tensors;
  const size_t crcs = rows + kPartRowBytes * header.parts;
  const size_t end = header.index_at + header.index_bytes;
  size_t at = 0;
  for (uint32_t i = 0; i < header.parts && rows + kPartRowBytes * (i + 1) <= end; ++i) {
    std::byte* const row = file.data() + rows + kPartRowBytes * i;
    const uint64_t left = parts.size() - at;
    const uint64_t bytes = std::min(base::load_little<uint64_t>(row), left);
    base::store_little(row + 8, base::crc32c(parts.subspan(at, bytes)));
    at += bytes;
  }
  for (uint32_t page = 0; page < header.pages && crcs + 4 * (page + 1) <= end; ++page)
    base::store_little(file.data() + crcs + size_t{4} * page,
                       base::crc32c(Bytes(file).subspan((page + 1) * kPageBytes, kPageBytes)));
  header.index_crc = base::crc32c(Bytes(file).subspan(header.index_at, header.index_bytes));
}

void check(const PackedFile& file) {
  uint64_t end = kPageBytes;
  std::vector<std::byte> row;
  for (const Tensor& tensor : file.tensors()) {
    SCANT_CHECK(tensor.at >= end && !tensor.bytes.empty());
    end = tensor.at + tensor.bytes.size();
    SCANT_CHECK(end <= file.file().bytes().size());
    static_cast<void>(file.check(tensor));
    if (tensor.shape.columns > kReadMax) continue;
    for (const TensorKind as : {TensorKind::f32, TensorKind::bf16}) {
      row.resize(*row_bytes(as, tensor.shape.columns));
      SCANT_CHECK(read_rows(tensor, 0, 1, as, row).ok());
      SCANT_CHECK(read_rows(tensor, tensor.shape.rows - 1, 1, as, row).ok());
    }
  }
  const auto written = write_description(file.description());
  SCANT_CHECK(fuzz::equal(written, *file.part(PartKind::description)));
  for (const FilePart& part : file.parts())
    SCANT_CHECK(part.kind != PartKind::file || is_file_name(part.name));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t mode = input.byte();
  PackedHeader header{.pages = static_cast<uint32_t>((mode & ~kSealed) % (kPagesMax + 1))};
  header.runs = input.byte();
  header.tensors = input.byte();
  header.parts = input.byte();
  const uint16_t index_bytes = input.half();
  const Bytes rest = input.rest();
  header.index_bytes = std::min<uint64_t>(index_bytes, rest.size());
  header.index_at = (1 + uint64_t{header.pages}) * kPageBytes;
  const Bytes index = rest.first(header.index_bytes);
  const Bytes behind = rest.subspan(header.index_bytes);
  // As many bytes of parts as the index asks for, if they are there; the others fill the pages.
  uint64_t part_bytes = 0;
  const size_t part_rows = kRunBytes * header.runs + kTensorRowBytes * header.tensors;
  for (size_t i = 0; i < header.parts; ++i) {
    const size_t at = part_rows + kPartRowBytes * i;
    if (at + kPartRowBytes > index.size()) break;
    part_bytes += std::min<uint64_t>(base::load_little<uint64_t>(index.data() + at), kPageBytes);
  }
  const Bytes parts = behind.first(std::min<uint64_t>(part_bytes, behind.size()));
  const Bytes fill = behind.subspan(parts.size());
  std::vector<std::byte> file(header.index_at + index.size() + parts.size());
  std::copy_n(fill.begin(), std::min<size_t>(fill.size(), header.index_at - kPageBytes),
              file.begin() + kPageBytes);
  std::ranges::copy(index, file.begin() + static_cast<ptrdiff_t>(header.index_at));
  std::ranges::copy(parts, file.end() - static_cast<ptrdiff_t>(parts.size()));
  header.bytes = file.size();
  if ((mode & kSealed) != 0) seal(file, header, parts);
  const auto head = write_packed_header(header);
  std::ranges::copy(head, file.begin());
  const fuzz::MemoryFile memory(file);
  const auto opened = PackedFile::open(memory.path());
  if (!opened) {
    SCANT_CHECK(!opened.error().message.empty());
    return 0;
  }
  check(opened.value());
  return 0;
}
