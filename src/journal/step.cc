#include "journal/step.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <new>
#include <utility>

#include "base/crc.h"
#include "base/fault.h"
#include "base/little_endian.h"
#include "codec/accumulate.h"
#include "codec/record/record.h"
#include "journal/format.h"

namespace scant::journal {
namespace {

constexpr size_t kHeadBytes = 24;
constexpr size_t kPartBytes = 24;
constexpr size_t kAlignment = 64;
constexpr size_t kSamples = 64;             // ranges that a factor is first tried on
constexpr uint64_t kSampleElements = 1024;  // looked at together for the largest

Error corrupt(const std::string& what) { return corrupt_step(what); }

// Their bytes become values.
bool take_matrices(Part& part) {
  const Bytes bytes = std::exchange(part.bytes, {});
  for (size_t at = 0; at + kMatrixBytes <= bytes.size(); at += kMatrixBytes) {
    part.matrices.push_back(read_matrix(bytes.data() + at));
  }
  return !bytes.empty() && bytes.size() % kMatrixBytes == 0;
}

bool is_records(PartKind kind) { return kind == PartKind::averages || kind == PartKind::gathered; }

}  // namespace

const char* name(PartKind kind) {
  switch (kind) {
    case PartKind::averages:
      return "averages";
    case PartKind::gathered:
      return "gathered";
    case PartKind::raw:
      return "raw";
    case PartKind::bf16:
      return "bf16";
    case PartKind::state:
      return "state";
    case PartKind::matrices:
      return "matrices";
  }
  return "unknown";
}

uint64_t Part::size() const {
  return kind == PartKind::matrices ? matrices.size() * kMatrixBytes : bytes.size();
}

uint16_t version_of(const Step& step) {
  const bool factors = std::ranges::any_of(
      step.parts, [](const Part& part) { return part.kind == PartKind::matrices; });
  return factors ? kVersion : kVersionWithoutFactors;
}

WrittenStep::WrittenStep(const Step& step) {
  const size_t bits = (step.present.size() + 7) / 8;
  const size_t head = kHeadBytes + bits + step.settings.size();
  size_t matrices = 0;
  for (const Part& part : step.parts) matrices += part.matrices.size();
  heads_.resize(head + step.parts.size() * kPartBytes + matrices * kMatrixBytes);
  std::byte* out = heads_.data();
  base::store_little(out, std::bit_cast<uint32_t>(step.factor));
  base::store_little(out + 4, step.crc);
  base::store_little(out + 8, step.ranks);
  base::store_little(out + 12, static_cast<uint32_t>(step.present.size()));
  base::store_little(out + 16, static_cast<uint32_t>(step.settings.size()));
  base::store_little(out + 20, static_cast<uint32_t>(step.parts.size()));
  for (size_t i = 0; i < step.present.size(); ++i) {
    if (step.present[i]) out[kHeadBytes + i / 8] |= static_cast<std::byte>(1U << (i % 8));
  }
  std::memcpy(out + kHeadBytes + bits, step.settings.data(), step.settings.size());
  pieces_.push_back(Bytes(heads_).first(head));
  size_t at = head;
  for (const Part& part : step.parts) {
    heads_[at] = static_cast<std::byte>(part.kind);
    base::store_little(out + at + 4, part.where);
    base::store_little(out + at + 8, part.first);
    base::store_little(out + at + 16, part.size());
    const size_t begin = at;
    at += kPartBytes;
    for (const Matrix& matrix : part.matrices) {
      write_matrix(matrix, out + at);
      at += kMatrixBytes;
    }
    pieces_.push_back(Bytes(heads_).subspan(begin, at - begin));
    pieces_.push_back(part.bytes);
  }
}

Result<Step> read_step(Bytes body) {
  if (body.size() < kHeadBytes) return corrupt("too few bytes");
  Step step;
  step.factor = std::bit_cast<float>(base::load_little<uint32_t>(body.data()));
  step.crc = base::load_little<uint32_t>(body.data() + 4);
  step.ranks = base::load_little<uint32_t>(body.data() + 8);
  const auto tensors = base::load_little<uint32_t>(body.data() + 12);
  const auto settings = base::load_little<uint32_t>(body.data() + 16);
  const auto parts = base::load_little<uint32_t>(body.data() + 20);
  body = body.subspan(kHeadBytes);
  const size_t bits = (uint64_t{tensors} + 7) / 8;
  if (bits > body.size() || settings > body.size() - bits) return corrupt("it is cut off");
  step.present.resize(tensors);
  for (size_t i = 0; i < tensors; ++i) {
    step.present[i] = (std::to_integer<unsigned>(body[i / 8]) >> (i % 8) & 1U) != 0;
  }
  step.settings.assign(reinterpret_cast<const char*>(body.data()) + bits, settings);
  body = body.subspan(bits + settings);
  if (step.ranks == 0 || !std::isfinite(step.factor)) return corrupt("ranks or factor");
  if (uint64_t{parts} * kPartBytes > body.size()) return corrupt("it is cut off");
  for (uint32_t i = 0; i < parts; ++i) {
    if (body.size() < kPartBytes) return corrupt("it is cut off");
    Part part{.kind = static_cast<PartKind>(body[0]),
              .where = base::load_little<uint32_t>(body.data() + 4),
              .first = base::load_little<uint64_t>(body.data() + 8),
              .bytes = {}};
    const auto length = base::load_little<uint64_t>(body.data() + 16);
    body = body.subspan(kPartBytes);
    if (part.kind < PartKind::averages || part.kind > PartKind::matrices) {
      return corrupt("a part of no known kind");
    }
    if (length > body.size()) return corrupt("it is cut off");
    part.bytes = body.first(static_cast<size_t>(length));
    body = body.subspan(static_cast<size_t>(length));
    if (part.kind == PartKind::matrices && !take_matrices(part)) {
      return corrupt("matrices that are cut off");
    }
    step.parts.push_back(std::move(part));
  }
  if (!body.empty()) return corrupt("bytes behind its end");
  return step;
}

Result<std::unique_ptr<Gradients>> Gradients::create(std::vector<uint64_t> bytes) {
  std::unique_ptr<Gradients> made(new Gradients(std::move(bytes)));
  uint64_t total = 0;
  for (const uint64_t one : made->bytes_) {
    made->offsets_.push_back(total);
    total += (one + kAlignment - 1) / kAlignment * kAlignment;
  }
  Result<base::Buffer> memory = base::Buffer::allocate(total);
  if (!memory) return memory.error();
  made->memory_ = std::move(memory).value();
  return made;
}

uint32_t Gradients::crc(const std::vector<bool>& present) {
  uint32_t crc = 0;
  for (size_t i = 0; i < tensors(); ++i) {
    if (present[i]) crc = base::crc32c(tensor(i), crc);
  }
  return crc;
}

Result<MutableBytes> Gradients::place(uint32_t index, uint64_t first, uint64_t bytes) {
  if (index >= tensors() || first > bytes_[index] || bytes > bytes_[index] - first) {
    return corrupt("a part that fits no tensor of the model");
  }
  return tensor(index).subspan(first, bytes);
}

// What no part tells of is zero: what lies between what they do, of each tensor that is present.
void Gradients::clear_uncovered(const Step& step) {
  struct Span {
    uint64_t first = 0;
    uint64_t end = 0;
  };
  std::vector<std::vector<Span>> covered(tensors());
  for (const Part& part : step.parts) {
    if (part.kind != PartKind::raw && part.kind != PartKind::bf16) continue;
    const uint64_t bytes = part.bytes.size() * (part.kind == PartKind::bf16 ? 2 : 1);
    covered[part.where].push_back({part.first, part.first + bytes});
  }
  for (const Range& range : from_records_) {
    covered[range.tensor].push_back({range.first * 4, (range.first + range.elements) * 4});
  }
  for (size_t i = 0; i < tensors(); ++i) {
    if (!step.present[i]) continue;
    std::ranges::sort(covered[i], {}, &Span::first);
    covered[i].push_back({bytes_[i], bytes_[i]});
    uint64_t at = 0;
    for (const Span& span : covered[i]) {
      if (span.first > at) {
        std::ranges::fill(tensor(i).subspan(at, span.first - at), std::byte{0});
      }
      at = std::max(at, span.end);
    }
  }
}

Result<void> Gradients::keep(Step& step) {
  for (Part& part : step.parts) {
    if (part.kind != PartKind::raw) continue;
    const auto to = place(part.where, part.first, part.bytes.size());
    if (!to) return to.error();
    std::memcpy(to.value().data(), part.bytes.data(), part.bytes.size());
    part.bytes = to.value();
  }
  return {};
}

// Where a record's values go; what comes to gradients is noted, but for rests.
Result<std::span<float>> Gradients::room_of(const codec::RecordHeader& header) {
  if (matrices_.is_factor(header)) return matrices_.room_of(header);
  const codec::Range range{header.first, header.elements};
  Result<std::span<float>> room = floats(header.tensor, range);
  if (!room) return room.error();
  const Result<bool> rest = matrices_.is_rest(header.tensor, range);
  if (!rest) return rest.error();
  if (!rest.value()) note(header.tensor, range, room.value());
  return room;
}

Result<std::span<float>> Gradients::floats(uint32_t tensor, codec::Range range) {
  if (range.first > UINT64_MAX / 8 || range.elements > UINT64_MAX / 8) {
    return corrupt("a record that fits no tensor of the model");
  }
  const auto bytes = place(tensor, range.first * sizeof(float), range.elements * sizeof(float));
  if (!bytes) return bytes.error();
  return std::span(reinterpret_cast<float*>(bytes.value().data()), range.elements);
}

void Gradients::note(uint32_t tensor, codec::Range range, std::span<float> values) {
  from_records_.push_back(
      {.data = values.data(), .elements = range.elements, .tensor = tensor, .first = range.first});
}

// All messages of one buffer: of the owners, each average once, or of the ranks, to be added.
Result<void> Gradients::add_buffer(std::span<const Part> messages, uint32_t ranks) {
  std::map<std::pair<uint32_t, uint64_t>, std::vector<codec::RecordView>> by_place;
  for (const Part& part : messages) {
    auto records = codec::parse_all(part.bytes);
    if (!records) return records.error();
    for (codec::RecordView& record : records.value()) {
      by_place[{record.header().tensor, record.header().first}].push_back(std::move(record));
    }
  }
  const bool averages = messages.front().kind == PartKind::averages;
  for (const auto& [where, records] : by_place) {
    const codec::RecordHeader& header = records.front().header();
    const Result<std::span<float>> room = room_of(header);
    if (!room) return room.error();
    if (records.size() > (averages ? 1 : ranks)) return corrupt("a record twice");
    const float weight = averages ? 1.0f : codec::mean_weight(ranks);
    Result<void> added = codec::accumulate(records, header.tensor, header.shape, header.first,
                                           room.value(), weight, workspace_);
    if (!added) return corrupt(added.error().message);
  }
  return {};
}

// Of a buffer with factors: what no record of a rest tells of is zero.
Result<void> Gradients::add_factors(std::span<const Part> messages, uint32_t ranks,
                                    std::span<const Matrix> matrices) {
  if (Result<void> opened = matrices_.open(matrices, bytes_); !opened) return opened;
  std::vector<std::span<float>> averages;
  for (const Matrix& matrix : matrices) {
    const Result<std::span<float>> out = floats(matrix.tensor, matrix.range);
    if (!out) return out.error();
    std::ranges::fill(out.value(), 0.0f);
    averages.push_back(out.value());
  }
  if (Result<void> added = add_buffer(messages, ranks); !added) return added;
  for (size_t i = 0; i < matrices.size(); ++i) {
    if (!matrices_.came(i)) continue;
    matrices_.add_average(i, averages[i], workspace_);
    note(matrices[i].tensor, matrices[i].range, averages[i]);
  }
  return matrices_.open({}, bytes_);
}

Result<void> Gradients::add_records(const Step& step) {
  matrices_.begin();
  for (auto part = step.parts.begin(); part != step.parts.end();) {
    const bool factors = part->kind == PartKind::matrices;
    const auto first = factors ? std::next(part) : part;
    const auto end = std::find_if(first, step.parts.end(), [&](const Part& one) {
      return !is_records(one.kind) || one.where != part->where || one.kind != first->kind;
    });
    if (factors && first == end) return corrupt("matrices without records");
    Result<void> added;
    if (factors) {
      added = add_factors({first, end}, step.ranks, part->matrices);
    } else if (first != end) {
      added = add_buffer({first, end}, step.ranks);
    }
    if (!added) return added;
    part = std::max(end, std::next(part));
  }
  matrices_.end();
  return {};
}

void Gradients::scale(float factor) {
  if (factor == 1.0f) return;
  for (const Range& range : from_records_) {
    for (uint64_t i = 0; i < range.elements; ++i) range.data[i] *= factor;
  }
}

Result<void> Gradients::decode(const Step& step, bool prove) {
  if (step.present.size() != tensors()) {
    return corrupt("of " + std::to_string(step.present.size()) + " tensors, the model has " +
                   std::to_string(tensors()));
  }
  from_records_.clear();
  for (const Part& part : step.parts) {
    if (part.kind == PartKind::raw) {
      const auto to = place(part.where, part.first, part.bytes.size());
      if (!to) return to.error();
      if (to.value().data() == part.bytes.data()) continue;
      std::memcpy(to.value().data(), part.bytes.data(), part.bytes.size());
    } else if (part.kind == PartKind::bf16) {
      const auto to = place(part.where, part.first, part.bytes.size() * 2);
      if (!to) return to.error();
      for (size_t i = 0; i < part.bytes.size() / 2; ++i) {
        base::store_little(to.value().data() + 4 * i,
                           uint32_t{base::load_little<uint16_t>(part.bytes.data() + 2 * i)} << 16);
      }
    }
  }
  try {
    if (Result<void> added = add_records(step); !added) return added;
  } catch (const std::bad_alloc&) {
    return Error{.code = ErrorCode::resource, .message = "a step of the journal: no memory for it"};
  }
  clear_uncovered(step);
  scale(step.factor);
  if (prove && crc(step.present) != step.crc) {
    return corrupt("what its records give is not what the optimizer saw");
  }
  return {};
}

std::optional<std::vector<Gradients::Sample>> Gradients::take_samples(
    std::span<const Bytes> found) const {
  std::vector<Sample> samples;
  for (const Range& range : from_records_) {
    if (samples.size() == kSamples) break;
    const Bytes there = found[range.tensor];
    if (there.size() != bytes_[range.tensor]) return std::nullopt;
    const auto* after = reinterpret_cast<const float*>(there.data()) + range.first;
    for (uint64_t at = 0; at < range.elements; at += kSampleElements) {
      const uint64_t end = std::min(range.elements, at + kSampleElements);
      const float* largest =
          std::max_element(range.data + at, range.data + end,
                           [](float a, float b) { return std::fabs(a) < std::fabs(b); });
      if (*largest == 0) continue;
      samples.push_back({*largest, after[largest - range.data]});
      break;
    }
  }
  return samples;
}

bool Gradients::explains(std::span<const Bytes> found, float factor) const {
  return std::ranges::all_of(from_records_, [&](const Range& range) {
    if (found[range.tensor].size() != bytes_[range.tensor]) return false;
    const auto* after = reinterpret_cast<const float*>(found[range.tensor].data()) + range.first;
    for (uint64_t i = 0; i < range.elements; ++i) {
      if (range.data[i] * factor != after[i]) return false;
    }
    return true;
  });
}

bool Gradients::find_factor(std::span<const Bytes> found, float& factor) {
  factor = 1;
  const auto samples = take_samples(found);
  if (!samples) return false;
  if (samples->empty()) return true;
  const auto fits = [&samples](float one) {
    return std::ranges::all_of(*samples,
                               [one](const Sample& s) { return s.before * one == s.after; });
  };
  if (fits(1)) return true;
  // The product was rounded, and so is this quotient: the factor is it or a neighbour. The largest
  // is the farthest from where floats are coarse.
  const Sample& largest = *std::ranges::max_element(
      *samples, {}, [](const Sample& sample) { return std::fabs(sample.after); });
  const float near = largest.after / largest.before;
  float below = near;
  float above = near;
  std::vector<float> candidates{near};
  for (int i = 0; i < 2; ++i) {
    candidates.push_back(below = std::nextafter(below, -INFINITY));
    candidates.push_back(above = std::nextafter(above, INFINITY));
  }
  std::erase_if(candidates, [&](float one) { return !std::isfinite(one) || !fits(one); });
  // Samples may leave several, of which other elements are explained by one.
  for (const float candidate : candidates) {
    if (candidates.size() > 1 && !explains(found, candidate)) continue;
    factor = candidate;
    scale(candidate);
    return true;
  }
  return false;
}

bool to_bf16_exactly(Bytes floats, MutableBytes out) {
  uint32_t lost = 0;
  const size_t count = floats.size() / 4;
  for (size_t i = 0; i < count; ++i) {
    const auto bits = base::load_little<uint32_t>(floats.data() + 4 * i);
    lost |= bits & 0xffffU;
    base::store_little(out.data() + 2 * i, static_cast<uint16_t>(bits >> 16));
    if (i % 4096 == 4095 && lost != 0) return false;
  }
  return lost == 0;
}

}  // namespace scant::journal
