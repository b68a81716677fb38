// Models from packed files. A description of small numbers, with the tensors that it needs, of
// which some are missing, misshapen or of another kind; weights are any bytes. What opens runs, and
// a prompt in two pieces has the logits of the prompt as a whole. Input: the description, one byte
// a field; how many tensors are changed, two bytes each; how the step is cut; the weights.
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/aligned.h"
#include "base/crc.h"
#include "fuzz_input.h"
#include "memory_file.h"
#include "serve/file/packed_file.h"
#include "serve/model/decoder.h"
#include "serve/testing/tensor_list.h"

using namespace scant;
using namespace scant::serve;

namespace {

constexpr uint32_t kTokens = 20;  // of the prompt: more than a page of keys holds
constexpr uint32_t kPages = 2;
constexpr uint64_t kBytesMax = 1 << 20;

// What fits together; then one number may be any.
Description take_description(fuzz::Input& input) {
  const auto small = [&](uint32_t least, uint32_t most) {
    return least + input.byte() % (most - least + 1);
  };
  constexpr Family kFamilies[] = {Family::llama, Family::mistral, Family::qwen2, Family::qwen3,
                                  Family::gpt2};
  Description d;
  d.family = kFamilies[small(0, 4)];
  d.layers = small(1, 3);
  d.width = small(1, 80);
  d.kv_heads = small(1, 3);
  d.heads = d.kv_heads * small(1, 3);
  d.head_size = small(2, 40);
  d.ffn = small(1, 80);
  d.vocabulary = small(1, 50);
  d.context = small(1, 64);
  d.window = small(0, 24);
  d.norm = static_cast<Norm>(small(1, 2));
  d.activation = static_cast<Activation>(small(1, 3));
  d.position = static_cast<Position>(small(1, 3));
  d.flags = input.byte() & kFlagsAll;
  d.norm_epsilon = 1e-5;
  if (d.position != Position::learned) {
    d.rope_size = 2 * small(1, d.head_size / 2);
    d.rope_base = small(0, 1) == 0 ? 100 : 500'000;
    d.rope_scaling = static_cast<RopeScaling>(small(0, 3));
    if (d.rope_scaling == RopeScaling::linear || d.rope_scaling == RopeScaling::llama3)
      d.rope_factor = small(1, 8);
    if (d.rope_scaling == RopeScaling::llama3) {
      d.rope_low = 1;
      d.rope_high = small(2, 4);
      d.rope_context = small(1, 64);
    }
  }
  constexpr double kNumbers[] = {0, 1e-30, 1e30, -1, NAN, INFINITY, 1, 3};
  double* const numbers[] = {&d.norm_epsilon, &d.rope_base, &d.rope_factor, &d.rope_low,
                             &d.rope_high};
  const uint8_t broken = input.byte();
  if (broken % 8 < std::size(numbers)) *numbers[broken % 8] = kNumbers[broken / 8 % 8];
  return d;
}

struct File {
  std::vector<std::byte> bytes;
};

File build(const Description& d, fuzz::Input& input) {
  File file;
  serve::testing::Dims dims = serve::testing::tensors_of(d);
  std::vector<std::string> names;
  for (const auto& [name, unused] : dims) names.push_back(name);
  const auto kind_at = [](uint8_t byte) { return tensor_kinds()[byte % tensor_kinds().size()]; };
  const TensorKind matrices = kind_at(input.byte());
  std::map<std::string, TensorKind> kinds;
  for (int changes = input.byte() % 4; changes > 0; --changes) {
    const std::string& name = names[input.byte() % names.size()];
    const uint8_t how = input.byte();
    if (how < 64) {
      dims.erase(name);
    } else if (how < 128 && dims.contains(name)) {
      dims[name][how % dims[name].size()] += how % 5;
    } else {
      kinds[name] = kind_at(how);
    }
  }
  PackedIndex index;
  index.runs = {{.tensors = 0, .first_page = 1}};
  uint64_t end = kPageBytes;
  for (const auto& [name, one] : dims) {
    const auto shape = matrix_shape(one);
    if (!shape) continue;
    TensorKind kind = one.size() == 1 ? TensorKind::f32 : matrices;
    if (const auto found = kinds.find(name); found != kinds.end()) kind = found->second;
    auto bytes = tensor_bytes(kind, *shape);
    if (!bytes) bytes = tensor_bytes(kind = TensorKind::f32, *shape);  // sparse, or no whole blocks
    const uint64_t at = base::align_up(end, 64);
    Tensor tensor;
    tensor.name = name;
    tensor.kind = kind;
    tensor.dims = one;
    tensor.shape = *shape;
    tensor.at = at;
    tensor.place = static_cast<uint32_t>(index.tensors.size());
    index.tensors.push_back(std::move(tensor));
    index.tensor_bytes.push_back(*bytes);
    end = at + *bytes;
  }
  if (index.tensors.empty() || end > kBytesMax) return {};
  index.runs[0].tensors = static_cast<uint32_t>(index.tensors.size());
  file.bytes.resize(base::align_up(end, kPageBytes));
  const Bytes fill = input.rest();
  for (size_t i = kPageBytes; i < end && !fill.empty(); ++i)
    file.bytes[i] = fill[(i - kPageBytes) % fill.size()];
  const auto description = write_description(d);
  index.parts = {{.kind = PartKind::description,
                  .name = "",
                  .bytes = description.size(),
                  .crc = base::crc32c(description)},
                 {.kind = PartKind::provenance, .name = "", .bytes = 0, .crc = base::crc32c({})}};
  for (uint64_t at = kPageBytes; at < file.bytes.size(); at += kPageBytes)
    index.page_crcs.push_back(base::crc32c(Bytes(file.bytes).subspan(at, kPageBytes)));
  const std::vector<std::byte> written = write_packed_index(index);
  PackedHeader header{.index_at = file.bytes.size(),
                      .index_bytes = written.size(),
                      .runs = 1,
                      .tensors = index.runs[0].tensors,
                      .parts = 2,
                      .pages = static_cast<uint32_t>(index.page_crcs.size()),
                      .index_crc = base::crc32c(written)};
  file.bytes.insert(file.bytes.end(), written.begin(), written.end());
  file.bytes.insert(file.bytes.end(), description.begin(), description.end());
  header.bytes = file.bytes.size();
  const auto head = write_packed_header(header);
  std::ranges::copy(head, file.bytes.begin());
  return file;
}

// Which NaN a logit is, is not fixed.
bool same(std::span<const float> a, std::span<const float> b) {
  return std::ranges::equal(a, b, [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y) ||
           (std::isnan(x) && std::isnan(y));
  });
}

void check(const Model& model, KvKind kv, uint32_t cut) {
  const Description& d = model.description();
  const auto created = Decoder::create(model, kv, kPages, 1);
  SCANT_CHECK(created.ok());
  Decoder& decoder = *created.value();
  std::vector<uint32_t> text;
  for (uint32_t i = 0; i < std::min(kTokens, d.context); ++i) text.push_back(i * 7 % d.vocabulary);
  const std::vector<uint32_t> pages{1, 0};
  const std::span<const uint32_t> all(text);
  const auto run = [&](uint32_t from, uint32_t count, uint32_t outputs) {
    Piece piece;
    piece.tokens = all.subspan(from, count);
    piece.position = from;
    piece.pages = pages;
    piece.outputs = outputs;
    const auto logits = decoder.run(std::span(&piece, 1));
    SCANT_CHECK(logits.ok() && logits.value().size() == uint64_t{outputs} * d.vocabulary);
    return std::vector<float>(logits.value().begin(), logits.value().end());
  };
  const auto count = static_cast<uint32_t>(text.size());
  const std::vector<float> whole = run(0, count, 1);
  cut = 1 + cut % count;
  if (cut < count) {
    static_cast<void>(run(0, cut, 0));
    SCANT_CHECK(same(run(cut, count - cut, 1), whole));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const Description d = take_description(input);
  const auto kv = static_cast<KvKind>(input.byte() % 3);
  const uint8_t cut = input.byte();
  const File file = build(d, input);
  if (file.bytes.empty()) return 0;
  const fuzz::MemoryFile memory(file.bytes);
  auto opened = PackedFile::open(memory.path());
  if (!opened) {
    SCANT_CHECK(!opened.error().message.empty());
    return 0;
  }
  const auto model = Model::open(std::move(opened).value());
  if (!model) {
    SCANT_CHECK(!model.error().message.empty());
    return 0;
  }
  check(*model.value(), kv, cut);
  return 0;
}
