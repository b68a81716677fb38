#include "plan/calibrate.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "codec/accumulate.h"
#include "codec/encoder.h"

namespace scant::plan {
namespace {

using codec::Encoder;
using codec::Point;
using codec::ValueKind;

constexpr uint64_t kElements = 65536;  // as a slice has them, and in the cache as after backward
constexpr int kTrials = 3;
constexpr double kLow = 0.01;
constexpr double kHigh = 0.1;

// Sums of uniform draws: near enough to a gradient for its cost.
std::vector<float> values(uint64_t elements) {
  std::vector<float> result(elements);
  base::Rng rng(1, 7);
  for (float& value : result) {
    double sum = -2;
    for (int i = 0; i < 4; ++i) sum += rng.uniform();
    value = static_cast<float>(sum);
  }
  return result;
}

using Clock = std::function<Time()>;

template <typename F>
double seconds(const Clock& now, const F& body) {
  const Time begin = now();
  body();
  return std::chrono::duration<double>(now() - begin).count();
}

struct Trial {
  double encode_s = 0;
  double decode_s = 0;
};

// The fastest of a few, after the thresholds have settled.
Trial trial(const Clock& now, const std::vector<float>& gradient, Point point,
            codec::Workspace& workspace) {
  auto encoder = Encoder::create(0, {1, gradient.size()}, {});
  SCANT_CHECK(encoder.ok());
  codec::RecordBuffer record;
  std::vector<float> sum(gradient.size());
  Trial best{1e9, 1e9};
  for (int i = 0; i <= kTrials; ++i) {
    const double encoded = seconds(
        now, [&] { SCANT_CHECK(encoder.value().encode(gradient, point, workspace, record).ok()); });
    const auto view = codec::RecordView::parse(std::as_const(record).view());
    SCANT_CHECK(view.ok());
    const double decoded = seconds(now, [&] {
      SCANT_CHECK(
          codec::accumulate({&view.value(), 1}, 0, {1, gradient.size()}, 0, sum, 1.0f, workspace)
              .ok());
    });
    if (i == 0) continue;
    best = {std::min(best.encode_s, encoded), std::min(best.decode_s, decoded)};
  }
  return best;
}

}  // namespace

WorkRates calibrate(const Clock& now) {
  codec::Workspace workspace;
  WorkRates rates;
  const std::vector<float> all = values(kElements);
  const std::vector<float> few(all.begin(), all.begin() + 64);
  constexpr double kCount = kElements;
  rates.record_s = trial(now, few, {1, ValueKind::f32}, workspace).encode_s;
  for (int i = 0; i < codec::kValueKindCount; ++i) {
    const auto kind = static_cast<ValueKind>(i);
    const auto index = static_cast<size_t>(i);
    const Trial dense = trial(now, all, {1, kind}, workspace);
    const Trial low = trial(now, all, {kLow, kind}, workspace);
    const Trial high = trial(now, all, {kHigh, kind}, workspace);
    const double entries = (kHigh - kLow) * kCount;
    rates.encode[index] = {dense.encode_s / kCount,
                           std::max(0.0, high.encode_s - low.encode_s) / entries};
    rates.decode[index] = {dense.decode_s / kCount,
                           std::max(0.0, high.decode_s - low.decode_s) / entries};
    if (kind == ValueKind::bf16) {
      rates.scan_s = std::max(0.0, low.encode_s / kCount - kLow * rates.encode[index].entry_s);
      rates.clear_s = std::max(0.0, low.decode_s / kCount - kLow * rates.decode[index].entry_s);
    }
  }
  return rates;
}

}  // namespace scant::plan
