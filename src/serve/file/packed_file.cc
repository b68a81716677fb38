#include "serve/file/packed_file.h"

#include <algorithm>

#include "base/crc.h"
#include "base/fault.h"
#include "serve/file/rows.h"

namespace scant::serve {
namespace {

// What reading bytes said of them, with the file before it.
Error of_file(const MappedFile& file, Error error) {
  error.message = file.path() + ": " + error.message;
  return error;
}

}  // namespace

Error PackedFile::corrupt(const std::string& what) const {
  return base::corrupt(file_.path() + ": " + what);
}

Result<PackedFile> PackedFile::open(const std::string& path) {
  auto mapped = MappedFile::open(path);
  if (!mapped) return mapped.error();
  const Bytes bytes = mapped.value().bytes();
  const auto header = read_packed_header(bytes, bytes.size());
  if (!header) return of_file(mapped.value(), header.error());
  const PackedHeader& found = header.value();
  auto index = read_packed_index(found, bytes.subspan(found.index_at, found.index_bytes));
  if (!index) return of_file(mapped.value(), index.error());
  PackedFile file(std::move(mapped).value(), std::move(index).value());
  const Bytes rest =
      file.file_.bytes().subspan(kPackedHeaderBytes, kPageBytes - kPackedHeaderBytes);
  if (std::ranges::any_of(rest, [](std::byte one) { return one != std::byte{0}; }))
    return file.corrupt("page 0 holds more than the header");
  if (auto parts = file.take_parts(found.index_at + found.index_bytes); !parts)
    return parts.error();
  if (auto tensors = file.take_tensors(); !tensors) return tensors.error();
  return file;
}

Result<void> PackedFile::take_parts(uint64_t at) {
  for (const FilePart& part : index_.parts) {
    part_bytes_.push_back(file_.bytes().subspan(at, part.bytes));
    at += part.bytes;
    if (base::crc32c(part_bytes_.back()) != part.crc)
      return corrupt(std::string("the checksum of the part '") +
                     (part.name.empty() ? name(part.kind) : part.name) + "' does not fit");
  }
  auto description = read_description(*part(PartKind::description));
  if (!description) return of_file(file_, description.error());
  description_ = std::move(description).value();
  return {};
}

Result<void> PackedFile::take_tensors() {
  for (size_t i = 0; i < index_.tensors.size(); ++i) {
    Tensor& tensor = index_.tensors[i];
    tensor.bytes = file_.bytes().subspan(tensor.at, index_.tensor_bytes[i]);
    if (!sparse(tensor.kind)) continue;
    if (auto checked = check(tensor); !checked) return checked;
  }
  return {};
}

const Tensor* PackedFile::find(std::string_view name) const {
  const auto found = std::ranges::find(index_.tensors, name, &Tensor::name);
  return found == index_.tensors.end() ? nullptr : &*found;
}

std::optional<Bytes> PackedFile::part(PartKind kind) const {
  const auto found = std::ranges::find(index_.parts, kind, &FilePart::kind);
  if (found == index_.parts.end()) return std::nullopt;
  return part_bytes_[static_cast<size_t>(found - index_.parts.begin())];
}

Result<void> PackedFile::check(const Tensor& tensor) const {
  const uint64_t first = tensor.at / kPageBytes;
  const uint64_t last = (tensor.at + tensor.bytes.size() - 1) / kPageBytes;
  for (uint64_t page = first; page <= last; ++page) {
    const Bytes bytes = file_.bytes().subspan(page * kPageBytes, kPageBytes);
    if (base::crc32c(bytes) != index_.page_crcs[page - 1])
      return corrupt("the checksum of page " + std::to_string(page) + " does not fit; tensor '" +
                     tensor.name + "' lies in it");
  }
  if (row_by_row(tensor.kind)) return {};
  if (const auto fault = strips_fault(tensor))
    return corrupt("tensor '" + tensor.name + "': " + *fault);
  return {};
}

}  // namespace scant::serve
