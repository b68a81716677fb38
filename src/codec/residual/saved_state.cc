// Saving and restoring an encoder (docs/codec.md, "Saved state"): one byte string with a checksum,
// so that error feedback survives a restart.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <string>

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

// What is wrong with the frame; nothing when the fields can be read.
std::optional<Error> frame_error(Bytes saved) {
  if (saved.size() < kFixedBytes + kCrcBytes)
    return corrupt(std::to_string(saved.size()) + " bytes are too few");
  if (base::load_little<uint32_t>(saved.data() + 0) != kStateMagic)
    return corrupt("it does not begin with SCRS");
  const auto version = base::load_little<uint8_t>(saved.data() + 4);
  if (version != kStateVersion) {
    return base::other_version("the saved encoder", version, kStateVersion);
  }
  const Bytes body = saved.first(saved.size() - kCrcBytes);
  if (base::crc32c(body) != base::load_little<uint32_t>(saved.data() + body.size()))
    return corrupt("its checksum does not fit");
  if (base::load_little<uint8_t>(saved.data() + 5) >= kResidualKindCount)
    return corrupt("it has no such residual");
  if (base::load_little<uint8_t>(saved.data() + 6) > 1 ||
      base::load_little<uint8_t>(saved.data() + 7) > 1)
    return corrupt("a flag is neither 0 nor 1");
  return std::nullopt;
}

}  // namespace

std::vector<std::byte> Encoder::save() const {
  const std::array<Bytes, 4> parts = {residual_.data(), bytes_of(residual_.scales()),
                                      bytes_of(std::span(velocity_)),
                                      bytes_of(std::span(threshold_.level))};
  size_t size = kFixedBytes;
  for (const Bytes part : parts) size += part.size();
  std::vector<std::byte> out(size + kCrcBytes);
  base::store_little(out.data() + 0, kStateMagic);
  base::store_little(out.data() + 4, kStateVersion);
  base::store_little(out.data() + 5, static_cast<uint8_t>(options_.residual));
  base::store_little(out.data() + 6, static_cast<uint8_t>(options_.mask_momentum ? 1 : 0));
  base::store_little(out.data() + 7, static_cast<uint8_t>(options_.stochastic ? 1 : 0));
  base::store_little(out.data() + 8, tensor_);
  base::store_little(out.data() + 12, std::bit_cast<uint32_t>(options_.decay));
  base::store_little(out.data() + 16, std::bit_cast<uint32_t>(options_.momentum));
  base::store_little(out.data() + 20, std::bit_cast<uint32_t>(options_.evenness));
  base::store_little(out.data() + 24, options_.seed);
  base::store_little(out.data() + 32, shape_.rows);
  base::store_little(out.data() + 40, shape_.columns);
  base::store_little(out.data() + 48, range_.first);
  base::store_little(out.data() + 56, range_.elements);
  base::store_little(out.data() + 64, step_);
  base::store_little(out.data() + 72, std::bit_cast<uint64_t>(threshold_.credit));
  base::store_little(out.data() + 80, std::bit_cast<uint64_t>(threshold_.density));
  base::store_little(out.data() + 88, std::bit_cast<uint32_t>(threshold_.threshold));
  base::store_little(out.data() + 92, std::bit_cast<uint32_t>(threshold_.slope));
  base::store_little(out.data() + 96, uint64_t{residual_.data().size()});
  base::store_little(out.data() + 104, static_cast<uint32_t>(threshold_.level.size()));
  base::store_little(out.data() + 108, threshold_.settled);
  base::store_little(out.data() + 112, std::bit_cast<uint32_t>(threshold_.trend));
  base::store_little(out.data() + 116, threshold_.sweeps);
  base::store_little(out.data() + 120, std::bit_cast<uint64_t>(threshold_.turn));
  size_t at = kFixedBytes;
  for (const Bytes part : parts) {
    if (!part.empty()) std::memcpy(out.data() + at, part.data(), part.size());
    at += part.size();
  }
  base::store_little(out.data() + size, base::crc32c(Bytes(out).first(size)));
  return out;
}

Result<Encoder> Encoder::restore(Bytes saved) {
  if (auto wrong = frame_error(saved)) return *std::move(wrong);
  const Bytes body = saved.first(saved.size() - kCrcBytes);
  const EncoderOptions options{
      .residual = static_cast<ResidualKind>(base::load_little<uint8_t>(saved.data() + 5)),
      .decay = std::bit_cast<float>(base::load_little<uint32_t>(saved.data() + 12)),
      .momentum = std::bit_cast<float>(base::load_little<uint32_t>(saved.data() + 16)),
      .mask_momentum = base::load_little<uint8_t>(saved.data() + 6) != 0,
      .stochastic = base::load_little<uint8_t>(saved.data() + 7) != 0,
      .evenness = std::bit_cast<float>(base::load_little<uint32_t>(saved.data() + 20)),
      .seed = base::load_little<uint64_t>(saved.data() + 24),
  };
  const Shape shape{base::load_little<uint64_t>(saved.data() + 32),
                    base::load_little<uint64_t>(saved.data() + 40)};
  const Range range{base::load_little<uint64_t>(saved.data() + 48),
                    base::load_little<uint64_t>(saved.data() + 56)};
  // Before anything of that size is made: do the bytes that follow have it?
  const uint64_t left = body.size() - kFixedBytes;
  const uint64_t data = base::load_little<uint64_t>(saved.data() + 96);
  const uint64_t levels = uint64_t{base::load_little<uint32_t>(saved.data() + 104)} * sizeof(float);
  const bool kept = options.residual != ResidualKind::none;
  if ((kept && range.elements > left) ||
      (options.momentum > 0 && range.elements > left / sizeof(float))) {
    return corrupt("its range is longer than its data");
  }
  auto made = create(base::load_little<uint32_t>(saved.data() + 8), shape, options, range);
  if (!made) return made.error();
  Encoder encoder = std::move(made).value();
  const uint64_t scales = encoder.residual_.scales().size_bytes();
  const uint64_t velocity = encoder.velocity_.size() * sizeof(float);
  if (data != encoder.residual_.data().size() || data > left ||
      data + scales + velocity + levels != left) {
    return corrupt("its lengths do not add up");
  }
  encoder.step_ = base::load_little<uint64_t>(saved.data() + 64);
  encoder.threshold_.credit = std::bit_cast<double>(base::load_little<uint64_t>(saved.data() + 72));
  encoder.threshold_.density =
      std::bit_cast<double>(base::load_little<uint64_t>(saved.data() + 80));
  encoder.threshold_.threshold =
      std::bit_cast<float>(base::load_little<uint32_t>(saved.data() + 88));
  encoder.threshold_.slope = std::bit_cast<float>(base::load_little<uint32_t>(saved.data() + 92));
  encoder.threshold_.settled = base::load_little<uint32_t>(saved.data() + 108);
  encoder.threshold_.trend = std::bit_cast<float>(base::load_little<uint32_t>(saved.data() + 112));
  encoder.threshold_.sweeps = base::load_little<uint32_t>(saved.data() + 116);
  encoder.threshold_.turn = std::bit_cast<double>(base::load_little<uint64_t>(saved.data() + 120));
  encoder.threshold_.level.resize(levels / sizeof(float));
  Bytes rest = body.subspan(kFixedBytes);
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
