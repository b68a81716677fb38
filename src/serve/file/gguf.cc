#include "serve/file/gguf.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <unordered_set>
#include <utility>

#include "base/aligned.h"
#include "base/bytes.h"
#include "base/fault.h"
#include "base/version.h"
#include "codec/tile/tile.h"
#include "serve/file/packed_format.h"

namespace scant::serve {
namespace {

constexpr size_t kKeyBytesMax = 65535;
constexpr uint64_t kAlignmentMax = uint64_t{1} << 20;
constexpr std::string_view kAlignmentKey = "general.alignment";

// ggml's numbers of what a tensor holds; nullopt: Scant does not read it.
struct GgmlType {
  uint32_t code;
  const char* name;
  std::optional<TensorKind> kind;
};
constexpr GgmlType kGgmlTypes[] = {
    {0, "F32", TensorKind::f32},   {1, "F16", TensorKind::f16},   {2, "Q4_0", TensorKind::q4_0},
    {3, "Q4_1", TensorKind::q4_1}, {8, "Q8_0", TensorKind::q8_0}, {30, "BF16", TensorKind::bf16},
    {6, "Q5_0", std::nullopt},     {7, "Q5_1", std::nullopt},     {9, "Q8_1", std::nullopt},
    {10, "Q2_K", std::nullopt},    {11, "Q3_K", std::nullopt},    {12, "Q4_K", std::nullopt},
    {13, "Q5_K", std::nullopt},    {14, "Q6_K", std::nullopt},    {15, "Q8_K", std::nullopt},
    {16, "IQ2_XXS", std::nullopt}, {17, "IQ2_XS", std::nullopt},  {18, "IQ3_XXS", std::nullopt},
    {19, "IQ1_S", std::nullopt},   {20, "IQ4_NL", std::nullopt},  {21, "IQ3_S", std::nullopt},
    {22, "IQ2_S", std::nullopt},   {23, "IQ4_XS", std::nullopt},  {24, "I8", std::nullopt},
    {25, "I16", std::nullopt},     {26, "I32", std::nullopt},     {27, "I64", std::nullopt},
    {28, "F64", std::nullopt},     {29, "IQ1_M", std::nullopt},   {34, "TQ1_0", std::nullopt},
    {35, "TQ2_0", std::nullopt},   {39, "MXFP4", std::nullopt},
};

Error corrupt(const std::string& what) { return base::corrupt("GGUF: " + what); }

std::string_view text(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
Bytes bytes_of(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// 0: of no fixed size, or no type.
size_t type_bytes(GgufType type) {
  constexpr size_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  const auto code = static_cast<size_t>(type);
  return code < std::size(kBytes) ? kBytes[code] : 0;
}

// Walks over a value; false: it is none. An array's elements take at least a byte each, so the work
// is bounded by the bytes.
bool skip_value(base::ByteReader& reader, GgufType type, unsigned depth) {
  if (const size_t fixed = type_bytes(type); fixed > 0) {
    static_cast<void>(reader.get_bytes(fixed));
    return reader.ok();
  }
  if (type == GgufType::text) {
    static_cast<void>(reader.get_bytes(reader.get<uint64_t>()));
    return reader.ok();
  }
  if (type != GgufType::array || depth == kGgufArrayDepthMax) return false;
  const auto element = static_cast<GgufType>(reader.get<uint32_t>());
  const auto count = reader.get<uint64_t>();
  if (!reader.ok() || element > GgufType::f64) return false;
  if (const size_t fixed = type_bytes(element); fixed > 0) {
    if (count > UINT64_MAX / fixed) return false;
    static_cast<void>(reader.get_bytes(count * fixed));
    return reader.ok();
  }
  for (uint64_t i = 0; i < count; ++i) {
    if (!skip_value(reader, element, depth + 1)) return false;
  }
  return true;
}

Result<Tensor> read_info(base::ByteReader& reader, uint32_t place) {
  const std::string_view name = text(reader.get_bytes(reader.get<uint64_t>()));
  Tensor tensor;
  tensor.name = name;
  tensor.place = place;
  const std::string where =
      "tensor " + std::to_string(place) + " '" + std::string(name.substr(0, kNameBytesMax)) + "' ";
  if (!reader.ok() || !is_tensor_name(name))
    return corrupt("tensor " + std::to_string(place) + " has no proper name");
  const auto dims = reader.get<uint32_t>();
  if (dims == 0 || dims > kDimsMax)
    return corrupt(where + "has " + std::to_string(dims) + " dimensions");
  for (uint32_t i = 0; i < dims; ++i) tensor.dims.push_back(reader.get<uint64_t>());
  std::ranges::reverse(tensor.dims);
  const auto type = reader.get<uint32_t>();
  tensor.at = reader.get<uint64_t>();
  if (!reader.ok()) return corrupt(where + "is cut off");
  const auto shape = matrix_shape(tensor.dims);
  if (!shape) return corrupt(where + "has a dimension of 0 or too many elements");
  tensor.shape = *shape;
  const GgmlType* const known = std::ranges::find(kGgmlTypes, type, &GgmlType::code);
  if (known == std::end(kGgmlTypes) || !known->kind) {
    const std::string found =
        known == std::end(kGgmlTypes) ? "type " + std::to_string(type) : known->name;
    return Error{.code = ErrorCode::unsupported,
                 .message = "GGUF: " + where + "is of " + found +
                            "; scant reads F32, F16, BF16, Q4_0, Q4_1 and Q8_0"};
  }
  tensor.kind = *known->kind;
  return tensor;
}

uint32_t ggml_code(TensorKind kind) {
  const auto* const found = std::ranges::find(kGgmlTypes, std::optional(kind), &GgmlType::kind);
  return found->code;
}

uint64_t alignment_of(const std::vector<GgufPair>& pairs, bool& valid) {
  valid = true;
  const auto found = std::ranges::find(pairs, kAlignmentKey, &GgufPair::key);
  if (found == pairs.end()) return kGgufAlignment;
  const uint64_t alignment =
      found->type == GgufType::u32 ? base::load_little<uint32_t>(found->value.data()) : uint64_t{0};
  valid = alignment > 0 && alignment % 8 == 0 && alignment <= kAlignmentMax;
  return alignment;
}

}  // namespace

Result<std::vector<GgufPair>> read_gguf_pairs(Bytes bytes, uint64_t count, uint64_t& used) {
  if (count > kGgufPairsMax) return corrupt(std::to_string(count) + " key-value pairs");
  base::ByteReader reader(bytes);
  std::vector<GgufPair> pairs;
  std::unordered_set<std::string_view> seen;
  used = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const auto length = reader.get<uint64_t>();
    const std::string_view key = text(reader.get_bytes(length));
    if (!reader.ok() || key.empty() || key.size() > kKeyBytesMax)
      return corrupt("pair " + std::to_string(i) + " has no proper key");
    if (!seen.insert(key).second)
      return corrupt("the key '" + std::string(key.substr(0, kNameBytesMax)) + "' is there twice");
    const auto type = static_cast<GgufType>(reader.get<uint32_t>());
    used += sizeof(uint64_t) + length + sizeof(uint32_t);
    base::ByteReader value(bytes.subspan(std::min<uint64_t>(used, bytes.size())));
    if (!reader.ok() || !skip_value(value, type, 0))
      return corrupt("the value of '" + std::string(key.substr(0, kNameBytesMax)) +
                     "' is cut off or of no known type");
    const Bytes taken = reader.get_bytes(bytes.size() - used - value.left());
    used += taken.size();
    pairs.push_back({.key = std::string(key), .type = type, .value = taken});
  }
  return pairs;
}

std::vector<std::byte> write_gguf_pairs(const std::vector<GgufPair>& pairs) {
  size_t bytes = 0;
  for (const GgufPair& pair : pairs)
    bytes += sizeof(uint64_t) + pair.key.size() + sizeof(uint32_t) + pair.value.size();
  std::vector<std::byte> all(bytes);
  base::ByteWriter writer(all);
  for (const GgufPair& pair : pairs) {
    writer.put(uint64_t{pair.key.size()});
    writer.put_bytes(bytes_of(pair.key));
    writer.put(static_cast<uint32_t>(pair.type));
    writer.put_bytes(pair.value);
  }
  return all;
}

Result<GgufFile> GgufFile::open(const std::string& path) {
  auto mapped = MappedFile::open(path);
  if (!mapped) return mapped.error();
  GgufFile file(std::move(mapped).value());
  if (auto done = file.read(); !done) {
    Error error = done.error();
    error.message = path + ": " + error.message;
    return error;
  }
  return file;
}

Result<void> GgufFile::read() {
  base::ByteReader reader(file_.bytes());
  if (reader.get<uint32_t>() != kGgufMagic) return corrupt("does not begin with GGUF");
  version_ = reader.get<uint32_t>();
  if (!reader.ok()) return corrupt("shorter than a header");
  if (version_ == kGgufVersion << 24U)
    return Error{.code = ErrorCode::unsupported, .message = "GGUF: of big-endian byte order"};
  if (version_ < 2 || version_ > kGgufVersion)
    return base::other_version("GGUF", version_, kGgufVersion);
  const auto tensors = reader.get<uint64_t>();
  const auto pairs = reader.get<uint64_t>();
  if (!reader.ok()) return corrupt("shorter than a header");
  if (tensors > kTensorsMax) return corrupt(std::to_string(tensors) + " tensors");
  uint64_t used = 0;
  const uint64_t pairs_at = file_.bytes().size() - reader.left();
  auto found = read_gguf_pairs(file_.bytes().subspan(pairs_at), pairs, used);
  if (!found) return found.error();
  pairs_ = std::move(found).value();
  pair_bytes_ = reader.get_bytes(used);
  if (auto alignment = read_alignment(); !alignment) return alignment;
  std::unordered_set<std::string> names;
  for (uint64_t i = 0; i < tensors; ++i) {
    auto info = read_info(reader, static_cast<uint32_t>(i));
    if (!info) return info.error();
    if (!names.insert(info.value().name).second)
      return corrupt("two tensors are named '" + info.value().name + "'");
    tensors_.push_back(std::move(info).value());
  }
  return check_places(base::align_up(file_.bytes().size() - reader.left(), alignment_));
}

Result<void> GgufFile::read_alignment() {
  bool valid = false;
  alignment_ = alignment_of(pairs_, valid);
  if (!valid) return corrupt("general.alignment is no multiple of 8 up to 2^20");
  return {};
}

// Tensors lie in the file, aligned, and share no byte.
Result<void> GgufFile::check_places(uint64_t data_at) {
  const uint64_t size = file_.bytes().size();
  for (Tensor& tensor : tensors_) {
    const std::string where = "tensor '" + tensor.name + "' ";
    const auto bytes = tensor_bytes(tensor.kind, tensor.shape);
    if (!bytes) return corrupt(where + "has columns that fill no blocks");
    if (tensor.at % alignment_ != 0) return corrupt(where + "is not aligned");
    if (data_at > size || tensor.at > size - data_at || *bytes > size - data_at - tensor.at)
      return corrupt(where + "lies outside of the file, which may be cut off");
    tensor.at += data_at;
    tensor.bytes = file_.bytes().subspan(tensor.at, *bytes);
  }
  std::vector<uint32_t> order(tensors_.size());
  std::iota(order.begin(), order.end(), 0U);
  std::ranges::sort(order, {}, [&](uint32_t i) { return tensors_[i].at; });
  for (size_t i = 1; i < order.size(); ++i) {
    const Tensor& before = tensors_[order[i - 1]];
    const Tensor& tensor = tensors_[order[i]];
    if (before.at + before.bytes.size() > tensor.at)
      return corrupt("tensors '" + before.name + "' and '" + tensor.name + "' overlap");
  }
  return {};
}

Result<GgufWriter> GgufWriter::create(const std::string& path, uint64_t count, Bytes pairs,
                                      std::vector<GgufTensor> tensors) {
  uint64_t used = 0;
  const auto known = read_gguf_pairs(pairs, count, used);
  if (!known) return base::invalid(known.error().message);
  bool valid = false;
  const uint64_t alignment = alignment_of(known.value(), valid);
  if (used != pairs.size() || !valid) return base::invalid("GGUF: pairs that are none");
  size_t info_bytes = 0;
  for (const GgufTensor& tensor : tensors) {
    const auto shape = matrix_shape(tensor.dims);
    if (!shape || !row_by_row(tensor.kind) || !tensor_bytes(tensor.kind, *shape))
      return base::invalid("GGUF: tensor '" + tensor.name + "' cannot be " + name(tensor.kind) +
                           " of its shape");
    info_bytes += 24 + tensor.name.size() + sizeof(uint64_t) * tensor.dims.size();
  }
  constexpr size_t kHeadBytes = 24;
  std::vector<std::byte> head(kHeadBytes + pairs.size() + info_bytes);
  base::ByteWriter writer(head);
  writer.put(kGgufMagic);
  writer.put(kGgufVersion);
  writer.put(uint64_t{tensors.size()});
  writer.put(count);
  writer.put_bytes(pairs);
  uint64_t at = 0;
  for (const GgufTensor& tensor : tensors) {
    writer.put(uint64_t{tensor.name.size()});
    writer.put_bytes(bytes_of(tensor.name));
    writer.put(static_cast<uint32_t>(tensor.dims.size()));
    for (size_t i = tensor.dims.size(); i-- > 0;) writer.put(tensor.dims[i]);
    writer.put(ggml_code(tensor.kind));
    writer.put(at);
    at = base::align_up(at + *tensor_bytes(tensor.kind, *matrix_shape(tensor.dims)), alignment);
  }
  auto file = OutputFile::create(path);
  if (!file) return file.error();
  GgufWriter result(std::move(file).value(), std::move(tensors), alignment);
  if (auto wrote = result.file_.append(head); !wrote) return wrote.error();
  const uint64_t gap = base::align_up(head.size(), alignment) - head.size();
  if (auto wrote = result.file_.append_zeros(gap); !wrote) return wrote.error();
  return result;
}

Result<void> GgufWriter::append(Bytes bytes) {
  if (now_ == tensors_.size()) return base::invalid("GGUF: bytes behind the last tensor");
  const GgufTensor& tensor = tensors_[now_];
  const uint64_t all = *tensor_bytes(tensor.kind, *matrix_shape(tensor.dims));
  if (bytes.size() > all - done_)
    return base::invalid("GGUF: more bytes than tensor '" + tensor.name + "' has");
  if (auto wrote = file_.append(bytes); !wrote) return wrote;
  done_ += bytes.size();
  if (done_ < all) return {};
  ++now_;
  done_ = 0;
  return file_.append_zeros(base::align_up(file_.size(), alignment_) - file_.size());
}

Result<uint64_t> GgufWriter::finish() {
  if (now_ != tensors_.size())
    return base::invalid("GGUF: tensor '" + tensors_[now_].name + "' is not whole");
  if (auto named = file_.publish(); !named) return named.error();
  return file_.size();
}

}  // namespace scant::serve
