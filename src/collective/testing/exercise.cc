#include "collective/testing/exercise.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/crc.h"

namespace scant::collective {
namespace {

constexpr std::byte kUntouched{0xA5};

template <typename T>
void store_as(std::byte* at, double value) {
  const T typed = static_cast<T>(value);
  std::memcpy(at, &typed, sizeof(T));
}

template <typename T>
double load_as(const std::byte* at) {
  T typed;
  std::memcpy(&typed, at, sizeof(T));
  return static_cast<double>(typed);
}

void store(DType dtype, std::byte* at, double value) {
  switch (dtype) {
    case DType::f32:
      return store_as<float>(at, value);
    case DType::f64:
      return store_as<double>(at, value);
    case DType::i32:
      return store_as<int32_t>(at, value);
    case DType::i64:
      return store_as<int64_t>(at, value);
    default:
      return store_as<uint8_t>(at, value);
  }
}

double load(DType dtype, const std::byte* at) {
  switch (dtype) {
    case DType::f32:
      return load_as<float>(at);
    case DType::f64:
      return load_as<double>(at);
    case DType::i32:
      return load_as<int32_t>(at);
    case DType::i64:
      return load_as<int64_t>(at);
    default:
      return load_as<uint8_t>(at);
  }
}

}  // namespace

std::string ExerciseSpec::to_string() const {
  return std::string(name(kind)) + " " + name(dtype) + " " + name(reduce) + " root " +
         std::to_string(root) + " size " + std::to_string(size) + " elements " +
         std::to_string(elements) + (uneven ? " uneven" : "") + (fractions ? " fractions" : "") +
         (in_place ? " in place" : "") + " seed " + std::to_string(seed);
}

ExerciseSpec random_spec(base::Rng& rng, int size, uint64_t elements_max) {
  static constexpr OpKind kKinds[] = {
      OpKind::all_reduce, OpKind::reduce,     OpKind::reduce_scatter, OpKind::all_gather,
      OpKind::broadcast,  OpKind::gather,     OpKind::scatter,        OpKind::all_to_all,
      OpKind::barrier,    OpKind::all_reduce, OpKind::exchange};
  static constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::i32, DType::i64};
  static constexpr ReduceOp kOps[] = {ReduceOp::sum, ReduceOp::min, ReduceOp::max,
                                      ReduceOp::average};
  ExerciseSpec spec;
  spec.kind = kKinds[rng.below(std::size(kKinds))];
  spec.dtype = kDTypes[rng.below(std::size(kDTypes))];
  spec.reduce = kOps[rng.below(std::size(kOps))];
  spec.root = static_cast<Rank>(rng.below(static_cast<uint64_t>(size)));
  spec.size = size;
  // Mostly small, now and then nothing, sometimes the largest.
  const uint64_t bound = rng.chance(0.2) ? elements_max : std::min<uint64_t>(elements_max, 300);
  spec.elements = rng.chance(0.08) ? 0 : 1 + rng.below(bound);
  spec.uneven = rng.chance(0.5);
  spec.in_place = rng.chance(0.5);
  spec.fractions =
      spec.kind == OpKind::all_reduce && (spec.dtype == DType::f32 || spec.dtype == DType::f64) &&
      (spec.reduce == ReduceOp::sum || spec.reduce == ReduceOp::average) && rng.chance(0.5);
  spec.seed = rng.next();
  return spec;
}

Exercise::Exercise(const ExerciseSpec& spec)
    : spec_(spec), buffers_(static_cast<size_t>(spec.size)) {}

// How many elements go from one rank to another; for collectives of one vector, its length.
uint64_t Exercise::part_elements(Rank from, Rank to) const {
  if (!spec_.uneven) return spec_.elements;
  uint64_t stream = 0;
  switch (spec_.kind) {
    case OpKind::all_gather:
    case OpKind::gather:
      stream = static_cast<uint64_t>(from);
      break;
    case OpKind::reduce_scatter:
    case OpKind::scatter:
      stream = static_cast<uint64_t>(to);
      break;
    case OpKind::all_to_all:
    case OpKind::exchange:
      stream = static_cast<uint64_t>(from) << 20 | static_cast<uint64_t>(to);
      break;
    default:
      return spec_.elements;
  }
  const uint64_t draw = base::random_at(spec_.seed, stream, 7);
  return draw % 5 == 0 ? 0 : draw / 5 % (spec_.elements + 1);
}

int64_t Exercise::value(Rank from, Rank to, uint64_t element) const {
  const uint64_t stream = static_cast<uint64_t>(from) << 20 | static_cast<uint64_t>(to);
  return static_cast<int64_t>(base::random_at(spec_.seed, stream, element) % 13) - 3;
}

// Fractions spread over seven orders of magnitude, so that the order of additions shows in the last
// bits.
double Exercise::typed_value(Rank from, Rank to, uint64_t element) const {
  const auto whole = static_cast<double>(value(from, to, element));
  if (!spec_.fractions) return whole;
  const double scale =
      base::random_at(spec_.seed, 3, element + static_cast<uint64_t>(from)) % 2 == 0 ? 1e-5 : 1e2;
  const double fine = (whole + 4.1) / 3 * scale;
  return spec_.dtype == DType::f32 ? static_cast<float>(fine) : fine;
}

double Exercise::reduced(Rank part, uint64_t element) const {
  if (spec_.fractions) {
    double sum = 0;
    for (Rank rank = 0; rank < spec_.size; ++rank) sum += typed_value(rank, part, element);
    return spec_.reduce == ReduceOp::average ? sum / spec_.size : sum;
  }
  int64_t result = value(0, part, element);
  for (Rank rank = 1; rank < spec_.size; ++rank) {
    const int64_t next = value(rank, part, element);
    switch (spec_.reduce) {
      case ReduceOp::min:
        result = std::min(result, next);
        break;
      case ReduceOp::max:
        result = std::max(result, next);
        break;
      default:
        result += next;
        break;
    }
  }
  if (spec_.reduce != ReduceOp::average) return static_cast<double>(result);
  if (spec_.dtype == DType::i32 || spec_.dtype == DType::i64) {
    const auto towards_zero = result / spec_.size;
    return static_cast<double>(towards_zero);
  }
  if (spec_.dtype == DType::f32) {
    return static_cast<float>(result) / static_cast<float>(spec_.size);
  }
  return static_cast<double>(result) / spec_.size;
}

void Exercise::fill(std::vector<std::byte>& buffer, Rank from, Rank to, uint64_t elements) const {
  const size_t element = size_bytes(spec_.dtype);
  buffer.resize(elements * element);
  for (uint64_t i = 0; i < elements; ++i) {
    store(spec_.dtype, buffer.data() + i * element, typed_value(from, to, i));
  }
}

Call Exercise::call(Rank rank) {
  Buffers& own = buffers_[static_cast<size_t>(rank)];
  const size_t element = size_bytes(spec_.dtype);
  const bool root = rank == spec_.root;
  const auto in = [&](Rank to) {
    fill(own.inputs.emplace_back(), rank, to, part_elements(rank, to));
  };
  const auto out = [&](Rank from, Rank to) {
    own.outputs.emplace_back(part_elements(from, to) * element, kUntouched);
  };
  const auto each = [&](auto&& make) {
    for (Rank other = 0; other < spec_.size; ++other) make(other);
  };
  switch (spec_.kind) {
    case OpKind::all_reduce:
      if (spec_.in_place) {
        fill(own.outputs.emplace_back(), rank, 0, spec_.elements);
      } else {
        in(0);
        out(0, 0);
      }
      break;
    case OpKind::reduce:
      in(0);
      if (root) out(0, 0);
      break;
    case OpKind::reduce_scatter:
      each(in);
      out(0, rank);
      break;
    case OpKind::all_gather:
      in(0);
      each([&](Rank from) { out(from, 0); });
      break;
    case OpKind::broadcast:
      out(0, 0);
      if (root) fill(own.outputs[0], rank, 0, spec_.elements);
      break;
    case OpKind::gather:
      in(0);
      if (root) each([&](Rank from) { out(from, 0); });
      break;
    case OpKind::scatter:
      if (root) each(in);
      out(spec_.root, rank);
      break;
    case OpKind::all_to_all:
      each(in);
      each([&](Rank from) { out(from, rank); });
      break;
    case OpKind::exchange:
      each(in);
      for (Rank from = 0; from < spec_.size; ++from) {
        own.outputs.emplace_back(spec_.elements * element, kUntouched);
      }
      own.received.assign(static_cast<size_t>(spec_.size), UINT64_MAX);
      break;
    case OpKind::send:
    case OpKind::recv:
    case OpKind::barrier:
      break;
  }
  return call_on(own, rank);
}

Call Exercise::call_on(Buffers& own, Rank rank) const {
  Call call;
  call.kind = spec_.kind;
  call.dtype = spec_.dtype;
  call.reduce = spec_.reduce;
  call.root = spec_.root;
  for (auto& buffer : own.inputs) call.inputs.emplace_back(buffer);
  for (auto& buffer : own.outputs) call.outputs.emplace_back(buffer);
  if (spec_.kind == OpKind::all_reduce && spec_.in_place) call.inputs = {own.outputs[0]};
  if (spec_.kind == OpKind::exchange && spec_.in_place) {
    const auto index = static_cast<size_t>(rank);
    std::copy(own.inputs[index].begin(), own.inputs[index].end(), own.outputs[index].begin());
    call.inputs[index] = Bytes(own.outputs[index]).first(own.inputs[index].size());
  }
  call.received = own.received;
  return call;
}

// What came, how much of it, and that nothing lies behind it.
std::string Exercise::compare_exchange(Rank rank) const {
  const Buffers& own = buffers_[static_cast<size_t>(rank)];
  for (size_t i = 0; i < own.outputs.size(); ++i) {
    const auto from = static_cast<Rank>(i);
    const Bytes buffer = own.outputs[i];
    const uint64_t bytes = part_elements(from, rank) * size_bytes(spec_.dtype);
    if (own.received[i] != bytes) {
      return std::to_string(own.received[i]) + " bytes came from " + std::to_string(from) +
             ", should be " + std::to_string(bytes);
    }
    std::string wrong = compare(buffer.first(bytes), from, rank, false);
    const Bytes rest = buffer.subspan(bytes);
    if (wrong.empty() && std::count(rest.begin(), rest.end(), kUntouched) !=
                             static_cast<std::ptrdiff_t>(rest.size())) {
      wrong = "the part from " + std::to_string(from) + " is written beyond its end";
    }
    if (!wrong.empty()) return wrong;
  }
  return {};
}

std::string Exercise::compare(Bytes buffer, Rank from, Rank to, bool reduction) const {
  const size_t element = size_bytes(spec_.dtype);
  for (uint64_t i = 0; i < buffer.size() / element; ++i) {
    const double want = reduction ? reduced(to, i) : static_cast<double>(value(from, to, i));
    const double have = load(spec_.dtype, buffer.data() + i * element);
    const double slack = spec_.fractions ? 1e-5 * std::abs(want) : 0;
    if (!(std::abs(want - have) <= slack)) {
      return "element " + std::to_string(i) + " of the part from " + std::to_string(from) + " is " +
             std::to_string(have) + ", should be " + std::to_string(want);
    }
  }
  return {};
}

std::string Exercise::verify(Rank rank) const {
  const Buffers& own = buffers_[static_cast<size_t>(rank)];
  if (spec_.kind == OpKind::exchange && !own.outputs.empty()) {
    const std::string wrong = compare_exchange(rank);
    return wrong.empty() ? "" : "rank " + std::to_string(rank) + ": " + wrong;
  }
  for (size_t i = 0; i < own.outputs.size(); ++i) {
    const auto other = static_cast<Rank>(i);
    std::string wrong;
    switch (spec_.kind) {
      case OpKind::all_reduce:
      case OpKind::reduce:
        wrong = compare(own.outputs[i], 0, 0, true);
        break;
      case OpKind::reduce_scatter:
        wrong = compare(own.outputs[i], 0, rank, true);
        break;
      case OpKind::all_gather:
      case OpKind::gather:
        wrong = compare(own.outputs[i], other, 0, false);
        break;
      case OpKind::broadcast:
        wrong = compare(own.outputs[i], spec_.root, 0, false);
        break;
      case OpKind::scatter:
        wrong = compare(own.outputs[i], spec_.root, rank, false);
        break;
      case OpKind::all_to_all:
        wrong = compare(own.outputs[i], other, rank, false);
        break;
      default:
        break;
    }
    if (!wrong.empty()) return "rank " + std::to_string(rank) + ": " + wrong;
  }
  return {};
}

uint32_t Exercise::digest(Rank rank) const {
  uint32_t crc = 0;
  for (const auto& buffer : buffers_[static_cast<size_t>(rank)].outputs) {
    crc = base::crc32c(buffer, crc);
  }
  return crc;
}

void Exercise::drop(Rank rank) { buffers_[static_cast<size_t>(rank)] = Buffers{}; }

}  // namespace scant::collective
