#include "serve/file/packed_writer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/aligned.h"
#include "base/check.h"
#include "base/crc.h"
#include "base/fault.h"
#include "base/little_endian.h"
#include "codec/tile/tile.h"
#include "serve/file/rows.h"

namespace scant::serve {
namespace {

bool converts_to(TensorKind kind) { return !row_by_row(kind) || kind <= TensorKind::f16; }

template <typename T>
std::vector<std::byte> little(const std::vector<T>& values) {
  std::vector<std::byte> bytes(base::align_up(sizeof(T) * values.size(), codec::kTileAlign));
  for (size_t i = 0; i < values.size(); ++i)
    base::store_little(bytes.data() + sizeof(T) * i, values[i]);
  return bytes;
}

}  // namespace

Result<std::unique_ptr<PackedWriter>> PackedWriter::create(const std::string& path) {
  auto file = OutputFile::create(path);
  if (!file) return file.error();
  std::unique_ptr<PackedWriter> writer(new PackedWriter(std::move(file).value()));
  if (auto header = writer->file_.append_zeros(kPageBytes); !header) return header.error();
  return writer;
}

Error PackedWriter::invalid(const std::string& what) const {
  return base::invalid("tensor '" + now_.name + "': " + what);
}

Result<void> PackedWriter::put(Bytes bytes) {
  while (!bytes.empty()) {
    const uint64_t left = kPageBytes - file_.size() % kPageBytes;
    const Bytes now = bytes.first(std::min<uint64_t>(left, bytes.size()));
    page_crc_ = base::crc32c(now, page_crc_);
    if (auto wrote = file_.append(now); !wrote) return wrote;
    if (now.size() == left) index_.page_crcs.push_back(std::exchange(page_crc_, 0));
    bytes = bytes.subspan(now.size());
  }
  return {};
}

Result<void> PackedWriter::put_zeros_to(uint64_t align) {
  static constexpr std::array<std::byte, kPageBytes> kZeros{};
  return put(Bytes(kZeros).first(base::align_up(file_.size(), align) - file_.size()));
}

Result<void> PackedWriter::begin_run() {
  SCANT_CHECK(!open_ && index_.parts.empty());
  if (auto ended = end_run(); !ended) return ended;
  if (index_.runs.size() == kRunsMax) return base::invalid("packed file: too many runs");
  index_.runs.push_back(
      {.tensors = 0, .first_page = static_cast<uint32_t>(file_.size() / kPageBytes)});
  return {};
}

Result<void> PackedWriter::end_run() {
  if (index_.runs.empty()) return {};
  if (index_.runs.back().tensors == 0) return base::invalid("packed file: a run without a tensor");
  return put_zeros_to(kPageBytes);
}

Result<void> PackedWriter::begin_tensor(PackedTensor tensor) {
  SCANT_CHECK(!open_ && !index_.runs.empty());
  now_ = std::move(tensor);
  if (!is_tensor_name(now_.name)) return base::invalid("packed file: a tensor without proper name");
  if (index_.tensors.size() == kTensorsMax) return invalid("a file holds no more tensors");
  for (const Tensor& before : index_.tensors) {
    if (before.name == now_.name) return invalid("is there already");
  }
  const auto shape = matrix_shape(now_.dims);
  if (!shape) return invalid("has no dimension, more than four, one of 0, or too many elements");
  shape_ = *shape;
  if (row_by_row(now_.kind) && !row_bytes(now_.kind, shape_.columns))
    return invalid(std::string(name(now_.kind)) + " needs columns in multiples of 32");
  if (!(now_.density >= 0 && now_.density <= 1)) return invalid("a density outside of 0 to 1");
  if (!now_.column_weights.empty() && now_.column_weights.size() != shape_.columns)
    return invalid("has another number of columns than of their weights");
  if (auto aligned = put_zeros_to(codec::kTileAlign); !aligned) return aligned;
  open_ = true;
  rows_ = 0;
  gathered_ = 0;
  packer_.reset();
  if (!row_by_row(now_.kind))
    packer_.emplace(PackPoint{now_.kind, now_.density}, shape_.columns,
                    std::move(now_.column_weights));
  bases_.clear();
  ends_.assign(1, 0);
  floats_.clear();
  halves_.clear();
  Tensor row;
  row.name = now_.name;
  row.kind = now_.kind;
  row.dims = now_.dims;
  row.shape = shape_;
  row.at = file_.size();
  row.place = now_.place;
  index_.tensors.push_back(std::move(row));
  ++index_.runs.back().tensors;
  return {};
}

Result<void> PackedWriter::add_rows(TensorKind kind, Bytes rows) {
  SCANT_CHECK(open_);
  if (!row_by_row(kind)) return invalid(std::string("rows cannot come as ") + name(kind));
  const auto of_row = row_bytes(kind, shape_.columns);
  if (!of_row || rows.size() % *of_row != 0) return invalid("not a whole number of rows");
  const uint64_t count = rows.size() / *of_row;
  if (count > shape_.rows - rows_) return invalid("more rows than it has");
  if (kind != now_.kind && !converts_to(now_.kind))
    return invalid(std::string(name(kind)) + " cannot become " + name(now_.kind));
  if (rows_ > 0 && kind != from_) return invalid("rows of two kinds");
  from_ = kind;
  if (kind == now_.kind) {
    rows_ += count;
    return put(rows);
  }
  as_bits_ = now_.kind == TensorKind::bf16_tiles && kind == TensorKind::bf16;
  while (!rows.empty()) {
    const uint64_t room = codec::kTileRows - gathered_;
    const Bytes now = rows.first(std::min<uint64_t>(room * *of_row, rows.size()));
    if (auto added = add_converted(kind, now); !added) return added;
    rows = rows.subspan(now.size());
  }
  return {};
}

Result<void> PackedWriter::add_converted(TensorKind kind, Bytes rows) {
  const uint64_t columns = shape_.columns;
  const uint64_t count = rows.size() / *row_bytes(kind, columns);
  if (as_bits_) {
    halves_.resize(codec::kTileRows * columns);
    for (uint64_t i = 0; i < count * columns; ++i)
      halves_[gathered_ * columns + i] =
          base::load_little<uint16_t>(rows.data() + sizeof(uint16_t) * i);
  } else {
    floats_.resize(codec::kTileRows * columns);
    widen_rows(kind, rows, columns, floats_.data() + gathered_ * columns);
  }
  gathered_ += count;
  rows_ += count;
  return gathered_ == codec::kTileRows || rows_ == shape_.rows ? put_strip() : Result<void>{};
}

// The gathered rows, 16 or the last ones.
Result<void> PackedWriter::put_strip() {
  if (row_by_row(now_.kind)) {
    strip_.resize(gathered_ * *row_bytes(now_.kind, shape_.columns));
    narrow_rows(now_.kind, floats_.data(), gathered_ * shape_.columns, strip_.data());
    gathered_ = 0;
    return put(strip_);
  }
  auto wrote = as_bits_ ? put_bits() : put_values();
  gathered_ = 0;
  return wrote;
}

// 16-bit values as they are, NaN among them.
Result<void> PackedWriter::put_bits() {
  strip_.resize(codec::strip_bytes(codec::ValueKind::bf16, shape_.columns));
  codec::pack_strip16(halves_.data(), gathered_, shape_.columns, strip_);
  return put(strip_);
}

Result<void> PackedWriter::put_values() {
  const bool codes = codec::quantised(strip_values(now_.kind));
  if (codes || sparse(now_.kind)) {
    if (auto finite = refuse_not_finite(); !finite) return finite;
  }
  const Bytes strip = packer_->pack(floats_.data(), gathered_);
  if (codes) bases_.push_back(packer_->base());
  ends_.push_back(ends_.back() + strip.size());
  return put(strip);
}

Result<void> PackedWriter::refuse_not_finite() const {
  const auto found = codec::find_not_finite(floats_.data(), gathered_, shape_.columns);
  if (!found) return {};
  return invalid("row " + std::to_string(rows_ - gathered_ + found->row) + ", column " +
                 std::to_string(found->column) + " is NaN or infinite: it has no code in " +
                 name(now_.kind) + "; f32, bf16 and f16 keep it");
}

Result<void> PackedWriter::put_tables() {
  if (row_by_row(now_.kind)) return {};
  if (sparse(now_.kind)) {
    if (auto wrote = put(little(ends_)); !wrote) return wrote;
  }
  return codec::quantised(strip_values(now_.kind)) ? put(little(bases_)) : Result<void>{};
}

Result<uint64_t> PackedWriter::end_tensor() {
  SCANT_CHECK(open_);
  if (rows_ != shape_.rows)
    return invalid(std::to_string(rows_) + " of " + std::to_string(shape_.rows) + " rows came");
  if (auto tables = put_tables(); !tables) return tables.error();
  Tensor& tensor = index_.tensors.back();
  const uint64_t bytes = file_.size() - tensor.at;
  SCANT_CHECK(sparse(now_.kind) || bytes == tensor_bytes(now_.kind, shape_));
  tensor.entries = sparse(now_.kind) ? packer_->entries() : 0;
  index_.tensor_bytes.push_back(bytes);
  open_ = false;
  return bytes;
}

Result<void> PackedWriter::add_part(PartKind kind, std::string name, std::vector<std::byte> bytes) {
  const bool file = kind == PartKind::file;
  if (file ? !is_file_name(name) : !name.empty())
    return base::invalid("packed file: '" + name + "' is no name of a part");
  if (bytes.size() > kPartBytesMax || index_.parts.size() == kPartsMax)
    return base::invalid("packed file: a part of more than 1 GiB, or more than 64 parts");
  const auto after = std::ranges::upper_bound(index_.parts, kind, {}, &FilePart::kind);
  const auto place = after - index_.parts.begin();
  index_.parts.insert(
      after,
      {.kind = kind, .name = std::move(name), .bytes = bytes.size(), .crc = base::crc32c(bytes)});
  part_bytes_.insert(part_bytes_.begin() + place, std::move(bytes));
  return {};
}

Result<uint64_t> PackedWriter::finish(const Description& description) {
  SCANT_CHECK(!open_);
  if (const auto fault = description_fault(description))
    return base::invalid("packed file: the description has " + *fault);
  if (auto ended = end_run(); !ended) return ended.error();
  const auto described = write_description(description);
  if (auto added = add_part(PartKind::description, "", {described.begin(), described.end()});
      !added)
    return added.error();
  const auto index = write_packed_index(index_);
  PackedHeader header{.index_at = file_.size(),
                      .index_bytes = index.size(),
                      .runs = static_cast<uint32_t>(index_.runs.size()),
                      .tensors = static_cast<uint32_t>(index_.tensors.size()),
                      .parts = static_cast<uint32_t>(index_.parts.size()),
                      .pages = static_cast<uint32_t>(index_.page_crcs.size()),
                      .index_crc = base::crc32c(index)};
  if (auto wrote = file_.append(index); !wrote) return wrote.error();
  for (const auto& part : part_bytes_) {
    if (auto wrote = file_.append(part); !wrote) return wrote.error();
  }
  header.bytes = file_.size();
  const auto head = write_packed_header(header);
  // What was written is read as everybody will read it: no file is published that is refused.
  const auto readable = read_packed_index(header, index);
  if (!readable) return readable.error();
  if (auto wrote = file_.write_at(0, head); !wrote) return wrote.error();
  if (auto named = file_.publish(); !named) return named.error();
  return header.bytes;
}

}  // namespace scant::serve
