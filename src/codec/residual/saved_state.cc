// Saving and restoring an encoder (docs/codec.md, "Saved state"): one byte string with a checksum,
// so that error feedback survives a restart.
#include <algorithm>
#include <array>
#include <string>

#include "base/bytes.h"
#include "base/check.h"
#include "base/crc.h"
#include "base/fault.h"
#include "base/little_endian.h"
#include "base/version.h"
#include "codec/encoder.h"

namespace scant::codec {
namespace {

constexpr uint32_t kStateMagic = 0x53524353;  // "SCRS" in memory
constexpr uint8_t kStateVersion = 1;
constexpr size_t kFixedBytes = 128;
constexpr size_t kCrcBytes = 4;

Error corrupt(const std::string& what) { return base::corrupt("saved encoder: " + what); }

template <typename T>
Bytes bytes_of(std::span<T> values) {
  return std::as_bytes(values);
}

bool finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), is_finite);
}

// What stands before the data, in this order: save() and restore() both go through this list.
struct Fixed {
  uint32_t magic = kStateMagic;
  uint8_t version = kStateVersion;
  uint8_t residual = 0;
  uint8_t mask_momentum = 0;
  uint8_t stochastic = 0;
  uint32_t tensor = 0;
  float decay = 0;
  float momentum = 0;
  float evenness = 0;
  uint64_t seed = 0;
  Shape shape{};
  Range range{};
  uint64_t step = 0;
  double credit = 0;
  double density = 0;
  float threshold = 0;
  float slope = 0;
  uint64_t data_bytes = 0;
  uint32_t levels = 0;
  uint32_t settled = 0;
  float trend = 0;
  uint32_t sweeps = 0;
  double turn = 0;

  template <typename Field>
  void each(const Field& field) {
    field(magic), field(version), field(residual), field(mask_momentum), field(stochastic);
    field(tensor), field(decay), field(momentum), field(evenness), field(seed);
    field(shape.rows), field(shape.columns), field(range.first), field(range.elements);
    field(step), field(credit), field(density), field(threshold), field(slope);
    field(data_bytes), field(levels), field(settled), field(trend), field(sweeps), field(turn);
  }
};

Result<Fixed> read_fixed(Bytes saved) {
  if (saved.size() < kFixedBytes + kCrcBytes)
    return corrupt(std::to_string(saved.size()) + " bytes are too few");
  Fixed fixed;
  base::ByteReader in(saved.first(kFixedBytes));
  fixed.each([&]<typename T>(T& value) { value = in.get<T>(); });
  SCANT_CHECK(in.ok() && in.at_end(), "the list has all fields");
  if (fixed.magic != kStateMagic) return corrupt("it does not begin with SCRS");
  if (fixed.version != kStateVersion) {
    return base::other_version("the saved encoder", fixed.version, kStateVersion);
  }
  const Bytes body = saved.first(saved.size() - kCrcBytes);
  if (base::crc32c(body) != base::load_little<uint32_t>(saved.data() + body.size()))
    return corrupt("its checksum does not fit");
  if (fixed.residual >= kResidualKindCount) return corrupt("it has no such residual");
  if (fixed.mask_momentum > 1 || fixed.stochastic > 1) return corrupt("a flag is neither 0 nor 1");
  return fixed;
}

}  // namespace

std::vector<std::byte> Encoder::save() const {
  const std::array<Bytes, 4> parts = {residual_.data(), bytes_of(residual_.scales()),
                                      bytes_of(std::span(velocity_)),
                                      bytes_of(std::span(threshold_.level))};
  size_t size = kFixedBytes;
  for (const Bytes part : parts) size += part.size();
  std::vector<std::byte> bytes(size + kCrcBytes);
  base::ByteWriter out(bytes);
  Fixed fixed{.residual = static_cast<uint8_t>(options_.residual),
              .mask_momentum = options_.mask_momentum,
              .stochastic = options_.stochastic,
              .tensor = tensor_,
              .decay = options_.decay,
              .momentum = options_.momentum,
              .evenness = options_.evenness,
              .seed = options_.seed,
              .shape = shape_,
              .range = range_,
              .step = step_,
              .credit = threshold_.credit,
              .density = threshold_.density,
              .threshold = threshold_.threshold,
              .slope = threshold_.slope,
              .data_bytes = residual_.data().size(),
              .levels = static_cast<uint32_t>(threshold_.level.size()),
              .settled = threshold_.settled,
              .trend = threshold_.trend,
              .sweeps = threshold_.sweeps,
              .turn = threshold_.turn};
  fixed.each([&](const auto& value) { out.put(value); });
  for (const Bytes part : parts) out.put_bytes(part);
  out.put(base::crc32c(Bytes(bytes).first(size)));
  return bytes;
}

Result<Encoder> Encoder::restore(Bytes saved) {
  const Result<Fixed> read = read_fixed(saved);
  if (!read) return read.error();
  const Fixed& fixed = read.value();
  const EncoderOptions options{
      .residual = static_cast<ResidualKind>(fixed.residual),
      .decay = fixed.decay,
      .momentum = fixed.momentum,
      .mask_momentum = fixed.mask_momentum != 0,
      .stochastic = fixed.stochastic != 0,
      .evenness = fixed.evenness,
      .seed = fixed.seed,
  };
  const Range& range = fixed.range;
  // Before anything of that size is made: do the bytes that follow have it?
  const Bytes data = saved.subspan(kFixedBytes, saved.size() - kFixedBytes - kCrcBytes);
  const uint64_t left = data.size();
  const uint64_t levels = uint64_t{fixed.levels} * sizeof(float);
  const bool kept = options.residual != ResidualKind::none;
  if ((kept && range.elements > left) ||
      (options.momentum > 0 && range.elements > left / sizeof(float))) {
    return corrupt("its range is longer than its data");
  }
  auto made = create(fixed.tensor, fixed.shape, options, range);
  if (!made) return made.error();
  Encoder encoder = std::move(made).value();
  const uint64_t scales = encoder.residual_.scales().size_bytes();
  const uint64_t velocity = encoder.velocity_.size() * sizeof(float);
  if (fixed.data_bytes != encoder.residual_.data().size() || fixed.data_bytes > left ||
      fixed.data_bytes + scales + velocity + levels != left) {
    return corrupt("its lengths do not add up");
  }
  encoder.step_ = fixed.step;
  encoder.threshold_ = {.credit = fixed.credit,
                        .density = fixed.density,
                        .threshold = fixed.threshold,
                        .slope = fixed.slope,
                        .trend = fixed.trend,
                        .settled = fixed.settled,
                        .level = std::vector<float>(levels / sizeof(float)),
                        .turn = fixed.turn,
                        .sweeps = fixed.sweeps};
  Bytes rest = data;
  const auto take = [&](MutableBytes to) {
    std::copy_n(rest.begin(), to.size(), to.begin());
    rest = rest.subspan(to.size());
  };
  take(encoder.residual_.data());
  take(std::as_writable_bytes(encoder.residual_.scales()));
  take(std::as_writable_bytes(std::span(encoder.velocity_)));
  take(std::as_writable_bytes(std::span(encoder.threshold_.level)));
  if (!encoder.threshold_.valid(range.elements)) return corrupt("its thresholds are no numbers");
  std::vector<float> values(kept ? range.elements : 0);
  if (kept) encoder.read_residual(values);
  if (!finite(values) || !finite(encoder.velocity_)) return corrupt("its residual is not finite");
  return encoder;
}

}  // namespace scant::codec
