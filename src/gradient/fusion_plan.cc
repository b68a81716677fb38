// Plans: their rules, their bytes (docs/gradients.md, "Plan"), a uniform one, and what one sends.
#include "gradient/fusion_plan.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/crc.h"
#include "base/little_endian.h"
#include "base/version.h"
#include "codec/encoder.h"
#include "codec/rank/factors.h"
#include "codec/rate/probe.h"
#include "codec/record/record.h"
#include "collective/schedules/cost_model.h"

namespace scant::gradient {
namespace {

using codec::Point;
using codec::ValueKind;

constexpr size_t kHeaderBytes = 20;
constexpr size_t kBufferBytes = 8;
constexpr size_t kPointBytes = 24;
constexpr size_t kCrcBytes = 4;
constexpr uint8_t kSecondFactors = 4;  // beside by_row's bits: the second leg has factors too

std::string buffer_text(size_t buffer) { return "buffer " + std::to_string(buffer); }

// Of one leg's point, of which a range of a matrix has `most` directions.
std::optional<std::string> leg_fault(Point point, uint64_t most) {
  if (static_cast<size_t>(point.factors) >= codec::kValueKindCount)
    return "no such kind of factors: " + std::to_string(static_cast<int>(point.factors));
  if (point.rank == 0) {
    if (point.factors != Point{}.factors) return "factors without a rank";
    if (point.density == 0) return "density must lie above 0, where there is no rank";
    return codec::point_fault(point);
  }
  if (point.rank > most) {
    return "rank " + std::to_string(point.rank) + ", the part has at most " + std::to_string(most);
  }
  if (std::signbit(point.density)) return "density must lie in 0 to 1, without a sign";
  if (point.density == 0) {
    if (codec::rest_of(point) != codec::kKeepAll) return "no rest, but a kind of it";
    return std::nullopt;
  }
  return codec::point_fault(codec::rest_of(point));
}

std::optional<std::string> part_fault(const PartPlan& part, Path path, uint64_t most) {
  if (auto fault = leg_fault(part.first, most)) return "first leg: " + *fault;
  if (auto fault = leg_fault(part.second, most)) return "second leg: " + *fault;
  if (path == Path::gather) {
    if (part.second == kNoSecondLeg) return std::nullopt;
    return "gather has no second leg, whose point must be density 1 and f32";
  }
  const bool rest = part.first.density > 0;
  if (part.first.rank != part.second.rank || rest != (part.second.density > 0))
    return "legs of different ranks, or a rest in one of them alone";
  return std::nullopt;
}

// `next` is the part that the buffer must begin with.
std::optional<std::string> buffer_fault(const BufferPlan& buffer, uint64_t next,
                                        const Layout& layout) {
  const uint64_t parts = layout.parts().size();
  if (static_cast<int>(buffer.path) >= kPathCount)
    return "no such path: " + std::to_string(static_cast<int>(buffer.path));
  if (buffer.parts == 0) return "it has no parts";
  if (buffer.first_part != next) {
    return "it begins with part " + std::to_string(buffer.first_part) + " instead of part " +
           std::to_string(next);
  }
  if (buffer.parts > parts - next) {
    return "it has " + std::to_string(buffer.parts) + " parts from part " + std::to_string(next) +
           " on, the layout has " + std::to_string(parts) + " in all";
  }
  const size_t points = buffer.path == Path::all_reduce ? 0 : buffer.parts;
  if (buffer.points.size() != points) {
    return std::string(name(buffer.path)) + " of " + std::to_string(buffer.parts) +
           " parts takes " + std::to_string(points) + " points, got " +
           std::to_string(buffer.points.size());
  }
  for (size_t i = 0; i < points; ++i) {
    const uint64_t most = layout.rank_max(static_cast<uint32_t>(next + i));
    if (auto fault = part_fault(buffer.points[i], buffer.path, most))
      return "part " + std::to_string(next + i) + ": " + *fault;
  }
  return std::nullopt;
}

// Nothing where the plan obeys all rules.
std::optional<std::string> plan_fault(const FusionPlan& plan, const Layout& layout) {
  const uint64_t parts = layout.parts().size();
  uint64_t next = 0;
  for (size_t b = 0; b < plan.buffers.size(); ++b) {
    if (auto fault = buffer_fault(plan.buffers[b], next, layout))
      return buffer_text(b) + ": " + *fault;
    next += plan.buffers[b].parts;
  }
  if (next != parts) return "part " + std::to_string(next) + " stands in no buffer";
  if (plan.reversed == 1 || plan.reversed > plan.buffers.size()) {
    return std::to_string(plan.reversed) + " reversed buffers of " +
           std::to_string(plan.buffers.size());
  }
  return std::nullopt;
}

Error fault_error(ErrorCode code, const std::string& what) {
  return Error{.code = code, .message = "plan: " + what};
}
Error corrupt(const std::string& what) { return fault_error(ErrorCode::corrupt, what); }

void store_point(const PartPlan& part, uint16_t version, std::byte* to) {
  base::store_little(to + 0, std::bit_cast<uint64_t>(part.first.density));
  base::store_little(to + 8, std::bit_cast<uint64_t>(part.second.density));
  base::store_little(to + 16, static_cast<uint8_t>(part.first.values));
  base::store_little(to + 17, static_cast<uint8_t>(part.second.values));
  base::store_little(
      to + 18, static_cast<uint8_t>((part.first.by_row ? 1 : 0) | (part.second.by_row ? 2 : 0) |
                                    (part.second.rank > 0 ? kSecondFactors : 0)));
  if (version == kPlanVersionWithoutFactors) return;
  base::store_little(to + 19, static_cast<uint8_t>(static_cast<int>(part.first.factors) |
                                                   static_cast<int>(part.second.factors) << 4));
  base::store_little(to + 20, part.first.rank);
}

PartPlan load_point(const std::byte* from, uint16_t version) {
  const auto by_row = base::load_little<uint8_t>(from + 18);
  const auto factors = base::load_little<uint8_t>(from + 19);
  PartPlan part{{std::bit_cast<double>(base::load_little<uint64_t>(from + 0)),
                 static_cast<ValueKind>(base::load_little<uint8_t>(from + 16)), (by_row & 1) != 0},
                {std::bit_cast<double>(base::load_little<uint64_t>(from + 8)),
                 static_cast<ValueKind>(base::load_little<uint8_t>(from + 17)), (by_row & 2) != 0}};
  if (version == kPlanVersionWithoutFactors) return part;
  const bool second = (by_row & kSecondFactors) != 0;
  part.first.rank = base::load_little<uint16_t>(from + 20);
  part.second.rank = second ? part.first.rank : uint16_t{0};
  part.first.factors = static_cast<ValueKind>(factors & 15);
  part.second.factors = static_cast<ValueKind>(factors >> 4);
  return part;
}

bool has_factors(const FusionPlan& plan) {
  const auto has = [](const BufferPlan& buffer) {
    return std::ranges::any_of(buffer.points,
                               [](const PartPlan& part) { return part.first.rank > 0; });
  };
  return std::ranges::any_of(plan.buffers, has);
}

bool all_zero(Bytes bytes) {
  for (const std::byte byte : bytes)
    if (byte != std::byte{0}) return false;
  return true;
}

// What is wrong before a buffer is looked at; nothing when there are as many as `buffers` says.
std::optional<Error> frame_error(Bytes bytes, const Layout& layout) {
  if (bytes.size() < kHeaderBytes + kCrcBytes)
    return corrupt(std::to_string(bytes.size()) + " bytes are too few");
  if (base::load_little<uint32_t>(bytes.data()) != kFusionPlanMagic)
    return corrupt("it does not begin with SCPL");
  const auto version = base::load_little<uint16_t>(bytes.data() + 4);
  if (version != kFusionPlanVersion && version != kPlanVersionWithoutFactors) {
    return base::other_version("the plan", version, kFusionPlanVersion);
  }
  const size_t body = bytes.size() - kCrcBytes;
  if (base::crc32c(bytes.first(body)) != base::load_little<uint32_t>(bytes.data() + body))
    return corrupt("its checksum does not fit");
  const auto ranks = base::load_little<uint16_t>(bytes.data() + 6);
  const auto parts = base::load_little<uint32_t>(bytes.data() + 8);
  if (ranks != layout.ranks() || parts != layout.parts().size()) {
    return fault_error(ErrorCode::mismatch, "it is for " + std::to_string(ranks) + " ranks and " +
                                                std::to_string(parts) + " parts, the layout has " +
                                                std::to_string(layout.ranks()) + " and " +
                                                std::to_string(layout.parts().size()));
  }
  const auto buffers = base::load_little<uint32_t>(bytes.data() + 12);
  if (buffers > parts || buffers > (body - kHeaderBytes) / kBufferBytes)
    return corrupt(std::to_string(buffers) + " buffers are more than it can hold");
  return std::nullopt;
}

// Takes one buffer from the front of `rest`, or says what is wrong. No more points are made than
// bytes are there.
std::optional<std::string> take_buffer(Bytes& rest, uint16_t version, uint64_t first_part,
                                       BufferPlan& buffer) {
  const bool factors = version != kPlanVersionWithoutFactors;
  const uint8_t flags = factors ? 7 : 3;
  const size_t reserved = factors ? 22 : 19;
  if (rest.size() < kBufferBytes) return "it ends within its head";
  buffer.first_part = static_cast<uint32_t>(first_part);
  buffer.parts = base::load_little<uint32_t>(rest.data());
  buffer.path = static_cast<Path>(base::load_little<uint8_t>(rest.data() + 4));
  if (!all_zero(rest.subspan(5, 3))) return "reserved bytes are not 0";
  rest = rest.subspan(kBufferBytes);
  if (buffer.path == Path::all_reduce) return std::nullopt;
  if (buffer.parts > rest.size() / kPointBytes)
    return std::to_string(buffer.parts) + " parts have more points than bytes follow";
  buffer.points.reserve(buffer.parts);
  for (uint32_t i = 0; i < buffer.parts; ++i) {
    buffer.points.push_back(load_point(rest.data(), version));
    const auto flagged = base::load_little<uint8_t>(rest.data() + 18);
    const bool no_rank = all_zero(rest.subspan(20, 2));
    if (flagged > flags || (flagged >= kSecondFactors && no_rank) ||
        !all_zero(rest.subspan(reserved, kPointBytes - reserved)))
      return "part " + std::to_string(first_part + i) + ": reserved bytes are not 0";
    rest = rest.subspan(kPointBytes);
  }
  return std::nullopt;
}

double all_reduced_bytes(const BufferPlan& buffer, const Layout& layout) {
  const PartLayout& first = layout.parts()[buffer.first_part];
  const PartLayout& last = layout.parts()[buffer.first_part + buffer.parts - 1];
  const uint64_t begin = layout.arena_offset(first.tensor, first.range);
  const uint64_t end = layout.arena_offset(last.tensor, last.range) + last.range.elements;
  return static_cast<double>(end - begin) * sizeof(float);
}

}  // namespace

const char* name(Path path) {
  constexpr std::array<const char*, kPathCount> kNames = {"all_reduce", "split", "gather"};
  const auto index = static_cast<size_t>(path);
  return index < kNames.size() ? kNames[index] : "unknown";
}

std::optional<Path> path_of(std::string_view text) {
  for (int i = 0; i < kPathCount; ++i)
    if (text == name(static_cast<Path>(i))) return static_cast<Path>(i);
  return std::nullopt;
}

Result<void> validate(const FusionPlan& plan, const Layout& layout) {
  if (auto fault = plan_fault(plan, layout))
    return fault_error(ErrorCode::invalid_argument, *fault);
  return {};
}

std::vector<std::byte> serialise(const FusionPlan& plan, const Layout& layout) {
  const auto fault = plan_fault(plan, layout);
  SCANT_CHECK(!fault, *fault);
  size_t size = kHeaderBytes + kCrcBytes;
  for (const BufferPlan& buffer : plan.buffers)
    size += kBufferBytes + buffer.points.size() * kPointBytes;
  std::vector<std::byte> out(size);
  base::store_little(out.data() + 0, kFusionPlanMagic);
  const uint16_t version = has_factors(plan) ? kFusionPlanVersion : kPlanVersionWithoutFactors;
  base::store_little(out.data() + 4, version);
  base::store_little(out.data() + 6, static_cast<uint16_t>(layout.ranks()));
  base::store_little(out.data() + 8, static_cast<uint32_t>(layout.parts().size()));
  base::store_little(out.data() + 12, static_cast<uint32_t>(plan.buffers.size()));
  base::store_little(out.data() + 16, plan.reversed);
  std::byte* at = out.data() + kHeaderBytes;
  for (const BufferPlan& buffer : plan.buffers) {
    base::store_little(at, buffer.parts);
    base::store_little(at + 4, static_cast<uint8_t>(buffer.path));
    at += kBufferBytes;
    for (const PartPlan& part : buffer.points) {
      store_point(part, version, at);
      at += kPointBytes;
    }
  }
  base::store_little(at, base::crc32c(Bytes(out).first(size - kCrcBytes)));
  return out;
}

Result<FusionPlan> parse_fusion_plan(Bytes bytes, const Layout& layout) {
  if (auto wrong = frame_error(bytes, layout)) return *std::move(wrong);
  const auto version = base::load_little<uint16_t>(bytes.data() + 4);
  const auto buffers = base::load_little<uint32_t>(bytes.data() + 12);
  Bytes rest = bytes.subspan(kHeaderBytes, bytes.size() - kHeaderBytes - kCrcBytes);
  FusionPlan plan;
  plan.buffers.reserve(buffers);
  plan.reversed = base::load_little<uint32_t>(bytes.data() + 16);
  uint64_t next = 0;
  for (uint32_t b = 0; b < buffers; ++b) {
    BufferPlan& buffer = plan.buffers.emplace_back();
    if (auto fault = take_buffer(rest, version, next, buffer))
      return corrupt(buffer_text(b) + ": " + *fault);
    next += buffer.parts;
  }
  if (!rest.empty()) return corrupt(std::to_string(rest.size()) + " bytes behind the last buffer");
  if (auto fault = plan_fault(plan, layout)) return corrupt(*fault);
  if (version != kPlanVersionWithoutFactors && !has_factors(plan))
    return corrupt("it is of version 3, and no factors are in it");
  return plan;
}

uint32_t buffer_at(const FusionPlan& plan, uint32_t turn) {
  const auto all = static_cast<uint32_t>(plan.buffers.size());
  const uint32_t in_order = all - plan.reversed;
  return turn < in_order ? turn : all - 1 - (turn - in_order);
}

uint64_t hash_of(Bytes serialised) {
  SCANT_CHECK(serialised.size() >= kHeaderBytes + kCrcBytes, "no bytes of a plan");
  const auto crc = base::load_little<uint32_t>(serialised.data() + serialised.size() - kCrcBytes);
  return uint64_t{serialised.size()} << 32 | crc;
}

Point point_for(Point wanted, uint32_t part, const Layout& layout) {
  return codec::point_for(wanted, layout.matrix_of(part), layout.parts()[part].range.elements);
}

double factor_bytes(uint32_t part, Point point, const Layout& layout) {
  if (point.rank == 0) return 0;
  const codec::Shape matrix = layout.matrix_of(part);
  return static_cast<double>(codec::dense_record_bytes(point.rank * matrix.rows, point.factors) +
                             codec::dense_record_bytes(point.rank * matrix.columns, point.factors));
}

FusionPlan uniform_plan(const UniformPlan& wanted, const Layout& layout) {
  const bool coarse = codec::quantised(wanted.point.values) || wanted.point.rank > 0;
  const Point small{1.0, coarse ? ValueKind::bf16 : wanted.point.values};
  FusionPlan plan;
  uint64_t bytes = 0;  // of the last buffer
  bool open = false;
  for (uint32_t p = 0; p < layout.parts().size(); ++p) {
    if (!open)
      plan.buffers.push_back({.first_part = p, .parts = 0, .path = wanted.path, .points = {}});
    BufferPlan& buffer = plan.buffers.back();
    const PartLayout& part = layout.parts()[p];
    const uint64_t elements = part.range.elements;
    const bool one_row = layout.tensors()[part.tensor].shape.rows == 1;
    ++buffer.parts;
    if (wanted.path != Path::all_reduce) {
      const bool whole = elements <= wanted.small_elements || (wanted.point.by_row && one_row);
      const Point point = whole ? small : point_for(wanted.point, p, layout);
      buffer.points.push_back({point, wanted.path == Path::split ? point : kNoSecondLeg});
    }
    bytes = (open ? bytes : 0) + elements * sizeof(float);
    const bool first = plan.buffers.size() == 1;
    open = bytes < (first ? wanted.first_buffer_bytes : wanted.buffer_bytes);
  }
  return plan;
}

double sent_bytes(const FusionPlan& plan, const Layout& layout) {
  const double others = layout.ranks() - 1;
  double sum = 0;
  for (const BufferPlan& buffer : plan.buffers) {
    if (buffer.path == Path::all_reduce) {
      sum += collective::all_reduce_sent_bytes(all_reduced_bytes(buffer, layout), layout.ranks());
      continue;
    }
    for (uint32_t i = 0; i < buffer.parts; ++i) {
      const PartPlan& points = buffer.points[i];
      double first = 0;
      double second = 0;
      for (const SliceLayout& slice : layout.slices_of(layout.parts()[buffer.first_part + i])) {
        first += codec::expected_record_bytes(slice.range.elements, points.first);
        if (buffer.path == Path::split)
          second += codec::expected_record_bytes(slice.range.elements, points.second);
      }
      first += factor_bytes(buffer.first_part + i, points.first, layout);
      second += factor_bytes(buffer.first_part + i, points.second, layout);
      sum +=
          buffer.path == Path::split ? others / layout.ranks() * (first + second) : others * first;
    }
  }
  return sum;
}

}  // namespace scant::gradient
