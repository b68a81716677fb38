#include "serve/file/packed_format.h"

#include <algorithm>
#include <string_view>
#include <unordered_set>

#include "base/aligned.h"
#include "base/bytes.h"
#include "base/check.h"
#include "base/crc.h"
#include "base/fault.h"
#include "base/version.h"
#include "codec/tile/sparse.h"

namespace scant::serve {
namespace {

constexpr size_t kHeaderCrcAt = 60;
constexpr std::string_view kWhat = "packed file";

Error corrupt(const std::string& what) { return base::corrupt(std::string(kWhat) + ": " + what); }

uint64_t pages_of(uint64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes; }

std::string_view text(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Bytes bytes_of(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// Without overlong forms, surrogates, and what lies beyond U+10FFFF.
bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const auto first = static_cast<unsigned char>(text.front());
    const size_t more = first < 0x80 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
    if ((first >= 0x80 && first < 0xC2) || first > 0xF4 || text.size() <= more) return false;
    uint32_t point = more == 0 ? first : first & (0x3FU >> more);
    for (size_t i = 1; i <= more; ++i) {
      const auto next = static_cast<unsigned char>(text[i]);
      if ((next & 0xC0U) != 0x80) return false;
      point = point << 6U | (next & 0x3FU);
    }
    const bool overlong = (more == 2 && point < 0x800) || (more == 3 && point < 0x10000);
    if (overlong || (point >= 0xD800 && point < 0xE000) || point > 0x10FFFF) return false;
    text.remove_prefix(more + 1);
  }
  return true;
}

// Reads the index row by row; knows where the next tensor of a run has to be.
class IndexReader {
 public:
  IndexReader(const PackedHeader& header, Bytes bytes) : header_(header), reader_(bytes) {}

  Result<PackedIndex> read() {
    for (uint32_t i = 0; i < header_.runs; ++i) {
      const auto tensors = reader_.get<uint32_t>();
      index_.runs.push_back({.tensors = tensors, .first_page = reader_.get<uint32_t>()});
    }
    if (auto runs = read_tensors(); !runs) return runs.error();
    if (auto parts = read_parts(); !parts) return parts.error();
    for (uint32_t i = 0; i < header_.pages; ++i)
      index_.page_crcs.push_back(reader_.get<uint32_t>());
    if (auto names = read_names(); !names) return names.error();
    if (!reader_.ok() || !reader_.at_end()) return corrupt("index_bytes is not what its rows take");
    if (auto sum = check_parts(); !sum) return sum.error();
    return std::move(index_);
  }

 private:
  Result<void> read_tensors() {
    uint64_t page = 1;
    uint64_t read = 0;
    for (const Run& run : index_.runs) {
      if (run.tensors == 0 || run.tensors > header_.tensors - read)
        return corrupt("runs do not add up to the tensors");
      if (run.first_page != page)
        return corrupt("a run does not begin with the page behind the last");
      uint64_t at = page * kPageBytes;
      for (uint32_t i = 0; i < run.tensors; ++i, ++read) {
        if (auto row = read_tensor(at); !row) return row.error();
        at = index_.tensors.back().at + index_.tensor_bytes.back();
        if (at > header_.index_at) return corrupt(here() + " reaches beyond the pages");
      }
      page = pages_of(at);
    }
    if (read != header_.tensors) return corrupt("runs do not add up to the tensors");
    if (page != uint64_t{header_.pages} + 1) return corrupt("pages that no run uses");
    return {};
  }

  Result<void> read_tensor(uint64_t after) {
    Tensor tensor;
    tensor.at = reader_.get<uint64_t>();
    const auto bytes = reader_.get<uint64_t>();
    uint64_t dims[kDimsMax] = {};
    for (uint64_t& dim : dims) dim = reader_.get<uint64_t>();
    const auto code = reader_.get<uint8_t>();
    const auto dim_count = reader_.get<uint8_t>();
    name_bytes_.push_back(reader_.get<uint16_t>());
    tensor.place = reader_.get<uint32_t>();
    tensor.entries = reader_.get<uint64_t>();
    const auto kind = tensor_kind(code);
    index_.tensors.push_back(std::move(tensor));
    index_.tensor_bytes.push_back(bytes);
    if (!kind) return corrupt(here() + " is of unknown kind " + std::to_string(code));
    Tensor& last = index_.tensors.back();
    last.kind = *kind;
    if (dim_count > kDimsMax)
      return corrupt(here() + " has " + std::to_string(dim_count) + " dimensions");
    last.dims.assign(dims, dims + dim_count);
    const auto shape = matrix_shape(last.dims);
    if (!shape) return corrupt(here() + " has dimensions of 0 or too many elements");
    last.shape = *shape;
    for (size_t i = dim_count; i < kDimsMax; ++i) {
      if (dims[i] != 0) return corrupt(here() + " has a dimension that is not used");
    }
    if (last.at != base::align_up(after, codec::kTileAlign))
      return corrupt(here() + " does not stand behind the one before");
    if (last.place >= header_.tensors) return corrupt(here() + " has a place beyond the tensors");
    return check_bytes(last, bytes);
  }

  [[nodiscard]] Result<void> check_bytes(const Tensor& tensor, uint64_t bytes) const {
    if (bytes > header_.index_at) return corrupt(here() + " is longer than the file");
    if (!sparse(tensor.kind)) {
      const auto expected = tensor_bytes(tensor.kind, tensor.shape);
      if (!expected) return corrupt(here() + " has columns that fill no blocks");
      if (bytes != *expected || tensor.entries != 0)
        return corrupt(here() + " has not as many bytes as its kind and shape ask for");
      return {};
    }
    // What the bits ask for is checked with the pages; the table has to be there.
    const codec::ValueKind values = strip_values(tensor.kind);
    const uint64_t heads = codec::strips(tensor.shape.rows) *
                           codec::sparse_strip_head_bytes(values, tensor.shape.columns);
    if (bytes < codec::sparse_table_bytes(values, tensor.shape.rows) + heads ||
        bytes % codec::kTileAlign != 0 || tensor.entries > tensor.shape.elements())
      return corrupt(here() + " has not as many bytes as its kind and shape ask for");
    return {};
  }

  Result<void> read_parts() {
    auto last = PartKind::description;
    for (uint32_t i = 0; i < header_.parts; ++i) {
      FilePart part;
      part.bytes = reader_.get<uint64_t>();
      part.crc = reader_.get<uint32_t>();
      const auto kind = reader_.get<uint8_t>();
      const auto reserved = reader_.get<uint8_t>();
      name_bytes_.push_back(reader_.get<uint16_t>());
      if (kind < 1 || kind > static_cast<uint8_t>(PartKind::file) || reserved != 0)
        return corrupt("a part of unknown kind " + std::to_string(kind));
      part.kind = static_cast<PartKind>(kind);
      if (part.kind < last) return corrupt("parts are not in order");
      last = part.kind;
      if (part.bytes > kPartBytesMax) return corrupt("a part of more than 1 GiB");
      index_.parts.push_back(std::move(part));
    }
    return {};
  }

  Result<void> read_names() {
    std::unordered_set<std::string_view> seen;
    for (size_t i = 0; i < index_.tensors.size(); ++i) {
      const std::string_view found = text(reader_.get_bytes(name_bytes_[i]));
      if (!is_tensor_name(found))
        return corrupt("tensor " + std::to_string(i) + " has no proper name");
      if (!seen.insert(found).second)
        return corrupt("two tensors are named '" + std::string(found) + "'");
      index_.tensors[i].name = found;
    }
    std::unordered_set<std::string_view> files;
    for (size_t i = 0; i < index_.parts.size(); ++i) {
      FilePart& part = index_.parts[i];
      const std::string_view found =
          text(reader_.get_bytes(name_bytes_[index_.tensors.size() + i]));
      if (part.kind != PartKind::file && !found.empty()) return corrupt("a part with a name");
      if (part.kind == PartKind::file && (!is_file_name(found) || !files.insert(found).second))
        return corrupt("a file whose name is none, or there twice");
      part.name = found;
    }
    return {};
  }

  [[nodiscard]] Result<void> check_parts() const {
    uint64_t at = header_.index_at + header_.index_bytes;
    uint64_t count[static_cast<size_t>(PartKind::file) + 1] = {};
    for (const FilePart& part : index_.parts) {
      at += part.bytes;
      ++count[static_cast<size_t>(part.kind)];
    }
    if (at != header_.bytes) return corrupt("parts do not end where the file does");
    for (const PartKind kind : {PartKind::description, PartKind::tokenizer, PartKind::metadata,
                                PartKind::chat_template, PartKind::provenance}) {
      const uint64_t found = count[static_cast<size_t>(kind)];
      const bool needed = kind == PartKind::description || kind == PartKind::provenance;
      if (found > 1 || (needed && found == 0))
        return corrupt("there are " + std::to_string(found) + " parts '" + name(kind) + "'");
    }
    return {};
  }

  [[nodiscard]] std::string here() const {
    return "tensor " + std::to_string(index_.tensors.size() - 1);
  }

  const PackedHeader& header_;
  base::ByteReader reader_;
  PackedIndex index_;
  std::vector<uint16_t> name_bytes_;
};

}  // namespace

const char* name(PartKind kind) {
  constexpr const char* kNames[] = {"description",   "tokenizer",  "metadata",
                                    "chat template", "provenance", "file"};
  return kNames[static_cast<size_t>(kind) - 1];
}

bool is_tensor_name(std::string_view name) {
  const auto printable = [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F; };
  return !name.empty() && name.size() <= kNameBytesMax && std::ranges::all_of(name, printable) &&
         is_utf8(name);
}

bool is_file_name(std::string_view name) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  return !name.empty() && name.size() <= kNameBytesMax && name.front() != '.' &&
         std::ranges::all_of(name, plain);
}

std::array<std::byte, kPackedHeaderBytes> write_packed_header(const PackedHeader& header) {
  std::array<std::byte, kPackedHeaderBytes> bytes{};
  base::ByteWriter writer(bytes);
  writer.put(kPackedMagic);
  writer.put(kPackedVersion);
  writer.put(uint16_t{0});
  writer.put(header.bytes);
  writer.put(header.index_at);
  writer.put(header.index_bytes);
  writer.put(header.runs);
  writer.put(header.tensors);
  writer.put(header.parts);
  writer.put(header.pages);
  writer.put(uint64_t{0});
  writer.put(header.index_crc);
  writer.put(base::crc32c(Bytes(bytes).first(kHeaderCrcAt)));
  return bytes;
}

Result<PackedHeader> read_packed_header(Bytes bytes, uint64_t file_bytes) {
  if (bytes.size() < kPackedHeaderBytes) return corrupt("shorter than a header");
  base::ByteReader reader(bytes.first(kPackedHeaderBytes));
  if (reader.get<uint32_t>() != kPackedMagic) return corrupt("does not begin with SCPK");
  const auto version = reader.get<uint16_t>();
  if (version != kPackedVersion)
    return base::other_version(std::string(kWhat), version, kPackedVersion);
  const auto reserved = reader.get<uint16_t>();
  PackedHeader header;
  header.bytes = reader.get<uint64_t>();
  header.index_at = reader.get<uint64_t>();
  header.index_bytes = reader.get<uint64_t>();
  header.runs = reader.get<uint32_t>();
  header.tensors = reader.get<uint32_t>();
  header.parts = reader.get<uint32_t>();
  header.pages = reader.get<uint32_t>();
  const auto unused = reader.get<uint64_t>();
  header.index_crc = reader.get<uint32_t>();
  if (reader.get<uint32_t>() != base::crc32c(bytes.first(kHeaderCrcAt)))
    return corrupt("the header's checksum does not fit");
  if (reserved != 0 || unused != 0) return corrupt("reserved bytes of the header are not 0");
  if (file_bytes != header.bytes)
    return corrupt("the file has " + std::to_string(file_bytes) + " bytes of " +
                   std::to_string(header.bytes) + (file_bytes < header.bytes ? ": cut off" : ""));
  if (header.runs > kRunsMax || header.tensors > kTensorsMax || header.parts > kPartsMax)
    return corrupt("more runs, tensors or parts than a file can have");
  const uint64_t rows = kRunBytes * header.runs + kTensorRowBytes * header.tensors +
                        kPartRowBytes * header.parts + sizeof(uint32_t) * uint64_t{header.pages};
  const uint64_t names = kNameBytesMax * (uint64_t{header.tensors} + header.parts);
  if (header.index_at != (1 + uint64_t{header.pages}) * kPageBytes ||
      header.index_at > file_bytes || header.index_bytes > file_bytes - header.index_at ||
      header.index_bytes < rows || header.index_bytes - rows > names)
    return corrupt("the index does not lie where it has to");
  return header;
}

std::vector<std::byte> write_packed_index(const PackedIndex& index) {
  size_t names = 0;
  for (const Tensor& tensor : index.tensors) names += tensor.name.size();
  for (const FilePart& part : index.parts) names += part.name.size();
  std::vector<std::byte> bytes(
      kRunBytes * index.runs.size() + kTensorRowBytes * index.tensors.size() +
      kPartRowBytes * index.parts.size() + sizeof(uint32_t) * index.page_crcs.size() + names);
  base::ByteWriter writer(bytes);
  for (const Run& run : index.runs) {
    writer.put(run.tensors);
    writer.put(run.first_page);
  }
  for (size_t i = 0; i < index.tensors.size(); ++i) {
    const Tensor& tensor = index.tensors[i];
    writer.put(tensor.at);
    writer.put(index.tensor_bytes[i]);
    for (size_t d = 0; d < kDimsMax; ++d)
      writer.put(d < tensor.dims.size() ? tensor.dims[d] : uint64_t{0});
    writer.put(static_cast<uint8_t>(tensor.kind));
    writer.put(static_cast<uint8_t>(tensor.dims.size()));
    writer.put(static_cast<uint16_t>(tensor.name.size()));
    writer.put(tensor.place);
    writer.put(tensor.entries);
  }
  for (const FilePart& part : index.parts) {
    writer.put(part.bytes);
    writer.put(part.crc);
    writer.put(static_cast<uint8_t>(part.kind));
    writer.put(uint8_t{0});
    writer.put(static_cast<uint16_t>(part.name.size()));
  }
  for (const uint32_t crc : index.page_crcs) writer.put(crc);
  for (const Tensor& tensor : index.tensors) writer.put_bytes(bytes_of(tensor.name));
  for (const FilePart& part : index.parts) writer.put_bytes(bytes_of(part.name));
  SCANT_CHECK(writer.used() == bytes.size());
  return bytes;
}

Result<PackedIndex> read_packed_index(const PackedHeader& header, Bytes bytes) {
  if (bytes.size() != header.index_bytes || base::crc32c(bytes) != header.index_crc)
    return corrupt("the index's checksum does not fit");
  return IndexReader(header, bytes).read();
}

}  // namespace scant::serve
