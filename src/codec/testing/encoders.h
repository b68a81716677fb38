// What the tests of encoders share: gradients of several kinds, a step with its record decoded.
#pragma once

#include <cmath>
#include <gtest/gtest.h>
#include <numbers>
#include <vector>

#include "base/rng.h"
#include "codec/accumulate.h"
#include "codec/encoder.h"

namespace scant::codec::testing {

inline float gaussian(base::Rng& rng) {
  const double radius = std::sqrt(-2 * std::log(1 - rng.uniform()));
  return static_cast<float>(radius * std::cos(2 * std::numbers::pi * rng.uniform()));
}

inline std::vector<float> gaussians(size_t n, uint64_t seed, uint64_t stream, float scale = 1) {
  base::Rng rng(seed, stream);
  std::vector<float> values(n);
  for (float& value : values) value = scale * gaussian(rng);
  return values;
}

// For large arrays: sums of two from a table, so that equal values are as rare as in floats.
inline std::vector<float> many_gaussians(size_t n, uint64_t seed, uint64_t stream) {
  const std::vector<float> table = gaussians(1 << 16, seed, 0, std::numbers::sqrt2_v<float> / 2);
  base::Rng rng(seed, stream);
  std::vector<float> values(n);
  for (float& value : values) {
    const uint64_t drawn = rng.next();
    value = table[drawn & 0xFFFF] + table[drawn >> 48];
  }
  return values;
}

struct Stepped {
  EncodeReport report;
  std::vector<float> decoded;
  std::vector<std::byte> bytes;
};

inline Stepped step(Encoder& encoder, std::span<const float> gradient, Point point,
                    Workspace& workspace) {
  Stepped result;
  RecordBuffer record;
  auto encoded = encoder.encode(gradient, point, workspace, record);
  EXPECT_TRUE(encoded.ok()) << encoded.error().to_string();
  result.report = encoded.value();
  result.bytes.assign(record.view().begin(), record.view().end());
  auto parsed = RecordView::parse(result.bytes);
  EXPECT_TRUE(parsed.ok()) << parsed.error().to_string();
  EXPECT_EQ(parsed.value().bytes(), result.bytes.size());
  EXPECT_EQ(parsed.value().entries(), result.report.entries);
  result.decoded.resize(gradient.size());
  const auto added = accumulate({&parsed.value(), 1}, encoder.tensor(), encoder.shape(),
                                encoder.range().first, result.decoded, 1.0f, workspace);
  EXPECT_TRUE(added.ok()) << added.error().to_string();
  return result;
}

inline Encoder make(Shape shape, const EncoderOptions& options = {}, uint32_t tensor = 7) {
  auto made = Encoder::create(tensor, shape, options);
  EXPECT_TRUE(made.ok()) << made.error().to_string();
  return std::move(made).value();
}

inline constexpr ValueKind kAllKinds[] = {ValueKind::f32, ValueKind::bf16, ValueKind::f16,
                                          ValueKind::q8,  ValueKind::q4,   ValueKind::q3,
                                          ValueKind::q2,  ValueKind::q1};

}  // namespace scant::codec::testing
