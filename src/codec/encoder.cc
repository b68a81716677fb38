#include "codec/encoder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "base/aligned.h"
#include "base/check.h"
#include "base/fault.h"
#include "base/rng.h"
#include "codec/step.h"

namespace scant::codec {
namespace {

using base::invalid;

std::string text(double value) {
  std::string digits = std::to_string(value);
  while (digits.find('.') != std::string::npos && (digits.back() == '0' || digits.back() == '.')) {
    const bool point = digits.back() == '.';
    digits.pop_back();
    if (point) break;
  }
  return digits;
}

std::optional<Error> check(Shape shape, const EncoderOptions& options, Range range) {
  uint64_t elements = 0;
  if (__builtin_mul_overflow(shape.rows, shape.columns, &elements) || elements >> 63 != 0) {
    return invalid("shape " + text(shape) + " has more than 2^63 elements");
  }
  if (range.first > elements || range.elements > elements - range.first) {
    return invalid("range of " + std::to_string(range.elements) + " elements from " +
                   std::to_string(range.first) + " lies outside of the tensor's " +
                   std::to_string(elements));
  }
  if (range.first % kGroupElements != 0) {
    return invalid("range begins at element " + std::to_string(range.first) +
                   ", which is no multiple of 64");
  }
  if (!(options.decay >= 0.0f && options.decay <= 1.0f))
    return invalid("decay must lie in 0 to 1, got " + text(options.decay));
  if (!(options.momentum >= 0.0f && options.momentum < 1.0f))
    return invalid("momentum must lie in 0 to below 1, got " + text(options.momentum));
  if (!(options.evenness >= 0.0f && options.evenness <= 1.0f))
    return invalid("evenness must lie in 0 to 1, got " + text(options.evenness));
  return std::nullopt;
}

// The most there is where no memory is large enough.
size_t float_bytes(uint64_t elements) {
  return elements > SIZE_MAX / sizeof(float) ? SIZE_MAX : elements * sizeof(float);
}

}  // namespace

std::optional<std::string> point_fault(Point point) {
  if (point.rank > 0)
    return "an encoder sends no factors: rank " + std::to_string(point.rank) +
           " is for a round of all ranks";
  if (point == kKeepAll) return std::nullopt;
  if (!(point.density > 0.0 && point.density <= 1.0))
    return "density must lie above 0 and up to 1, got " + text(point.density);
  if (static_cast<size_t>(point.values) >= kValueKindCount)
    return "no such kind of value: " + std::to_string(static_cast<int>(point.values));
  return std::nullopt;
}

Result<Encoder> Encoder::create(uint32_t tensor, Shape shape, const EncoderOptions& options,
                                std::optional<Range> range) {
  const Range whole = range.value_or(Range{0, shape.rows * shape.columns});
  if (auto wrong = check(shape, options, whole)) return *std::move(wrong);
  Result<ResidualStore> residual =
      ResidualStore::create(options.residual, whole.first, whole.elements);
  if (!residual) return residual.error();
  Result<base::Buffer> velocity =
      base::Buffer::allocate(options.momentum > 0 ? float_bytes(whole.elements) : 0);
  if (!velocity) return velocity.error();
  return Encoder(tensor, shape, options, whole, std::move(residual).value(),
                 std::move(velocity).value());
}

Encoder::Encoder(uint32_t tensor, Shape shape, const EncoderOptions& options, Range range,
                 ResidualStore residual, base::Buffer velocity)
    : tensor_(tensor),
      shape_(shape),
      options_(options),
      range_(range),
      residual_(std::move(residual)),
      velocity_memory_(std::move(velocity)),
      velocity_(reinterpret_cast<float*>(velocity_memory_.data()),
                velocity_memory_.size() / sizeof(float)) {
  std::ranges::fill(velocity_, 0.0f);
}

DrawKey Encoder::draw_key(uint64_t block, uint32_t use) const {
  const uint64_t stream = (uint64_t{tensor_} << 1 | use) ^ range_.first << 20;
  const uint64_t drawn = base::random_at(options_.seed ^ step_ << 32, stream, block);
  return {static_cast<uint32_t>(drawn), static_cast<uint32_t>(drawn >> 32)};
}

size_t Encoder::memory_bytes() const {
  return residual_.memory_bytes() + velocity_.size() * sizeof(float) +
         threshold_.level.size() * sizeof(float);
}

std::optional<Error> Encoder::step_fault(size_t elements, Point point) const {
  if (elements != range_.elements) {
    return invalid("gradient has " + std::to_string(elements) + " elements, the range has " +
                   std::to_string(range_.elements));
  }
  if (auto fault = point_fault(point)) return invalid(*std::move(fault));
  return std::nullopt;
}

Result<EncodeReport> Encoder::encode(std::span<const float> gradient, Point point,
                                     Workspace& workspace, RecordBuffer& record) {
  if (auto fault = step_fault(gradient.size(), point)) return *std::move(fault);
  Result<EncodeReport> report =
      point == kKeepAll ? KeepStep(*this, gradient.data(), workspace).run(record)
      : point.density == 1.0
          ? DenseStep(*this, gradient.data(), point, workspace).run(record)
          : SparseStep(*this, gradient.data(), options_.decay, point, workspace).run(record);
  return ended(std::move(report), record);
}

// A sparse step may look at elements more than once, so the rest is made where they lie.
Result<EncodeReport> Encoder::encode_rest(std::span<float> whole, const Product& rest, Point point,
                                          Workspace& workspace, RecordBuffer& record) {
  if (auto fault = step_fault(whole.size(), point)) return *std::move(fault);
  if (options_.momentum > 0) return invalid("momentum goes with no factors");
  if (point == kKeepAll) {
    return ended(KeepStep(*this, whole.data(), workspace, &rest).run(record), record);
  }
  if (point.density == 1.0) {
    return ended(DenseStep(*this, whole.data(), point, workspace, &rest).run(record), record);
  }
  rest.add(range_, whole, workspace);
  return ended(SparseStep(*this, whole.data(), 0.0f, point, workspace).run(record), record);
}

Result<EncodeReport> Encoder::ended(Result<EncodeReport> report, const RecordBuffer& record) {
  if (!report) return report;
  report.value().bytes = record.view().size();
  ++step_;
  return report;
}

void Encoder::peek(uint64_t at, const float* gradient, std::span<float> work) const {
  peek(at, gradient, options_.decay, work);
}

void Encoder::peek(uint64_t at, const float* gradient, float decay, std::span<float> work) const {
  SCANT_CHECK(at + work.size() <= range_.elements && work.size() <= kDenseBlockElements);
  residual_.load(range_.first + at, work.size(), work.data());
  std::array<float, kDenseBlockElements> velocity;  // NOLINT(*-member-init): filled when needed
  if (!velocity_.empty()) {
    std::copy_n(velocity_.data() + at, work.size(), velocity.data());
    kernels().accumulate(gradient, velocity.data(), work.size(), options_.momentum);
    gradient = velocity.data();
  }
  kernels().accumulate(gradient, work.data(), work.size(), decay);
}

bool Encoder::kept_in_place() const {
  return residual_.kind() == ResidualKind::none || residual_.in_place() != nullptr;
}

const float* Encoder::kept(uint64_t at, size_t count, float* work) const {
  SCANT_CHECK(at + count <= range_.elements);
  if (residual_.kind() == ResidualKind::none) return nullptr;
  if (const float* in_place = residual_.in_place()) return in_place + at;
  const uint64_t begin = at / kGroupElements * kGroupElements;
  const uint64_t whole = base::align_up(at + count, kGroupElements);
  residual_.load(range_.first + begin, std::min<uint64_t>(whole, range_.elements) - begin, work);
  return work + (at - begin);
}

void Encoder::read_residual(std::span<float> out) const {
  SCANT_CHECK(out.size() == range_.elements);
  residual_.load(range_.first, out.size(), out.data());
}

Result<void> Encoder::add_residual(std::span<const float> addend) {
  SCANT_CHECK(addend.size() == range_.elements);
  const auto bad = std::find_if_not(addend.begin(), addend.end(), is_finite);
  if (bad != addend.end())
    return invalid("addend " + std::to_string(bad - addend.begin()) + " is not finite");
  std::vector<float> sum(addend.size());
  read_residual(sum);
  std::transform(sum.begin(), sum.end(), addend.begin(), sum.begin(), finite_sum);
  residual_.store(range_.first, sum.size(), sum.data(), draw_key(~uint64_t{0}, 1));
  return {};
}

void Encoder::clear_residual() {
  residual_.clear();
  std::fill(velocity_.begin(), velocity_.end(), 0.0f);
}

void Encoder::scale_residual(float factor) {
  SCANT_CHECK(is_finite(factor));
  std::vector<float> scaled(range_.elements);
  read_residual(scaled);
  constexpr float kMost = std::numeric_limits<float>::max();
  const auto scale = [&](float value) { return std::clamp(value * factor, -kMost, kMost); };
  std::transform(scaled.begin(), scaled.end(), scaled.begin(), scale);
  residual_.store(range_.first, scaled.size(), scaled.data(), draw_key(~uint64_t{2}, 1));
  std::transform(velocity_.begin(), velocity_.end(), velocity_.begin(), scale);
  threshold_.threshold = std::abs(scale(threshold_.threshold));
}

Result<void> Encoder::take_over(const Encoder& other) {
  if (other.tensor_ != tensor_ || other.shape_ != shape_) {
    return Error{.code = ErrorCode::mismatch,
                 .message = "tensor " + std::to_string(tensor_) +
                            " cannot take over the residual of tensor " +
                            std::to_string(other.tensor_) + ": number or shape differ"};
  }
  residual_.merge(other.residual_, draw_key(~uint64_t{1}, 1));
  if (!velocity_.empty() && !other.velocity_.empty()) {
    const uint64_t begin = std::max(range_.first, other.range_.first);
    const uint64_t end =
        std::min(range_.first + range_.elements, other.range_.first + other.range_.elements);
    for (uint64_t i = begin; i < end; ++i)
      velocity_[i - range_.first] += other.velocity_[i - other.range_.first];
  }
  return {};
}

}  // namespace scant::codec
