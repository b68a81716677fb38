#include "plan/calibrate.h"

#include <algorithm>
#include <array>
#include <new>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "codec/accumulate.h"
#include "codec/encoder.h"
#include "codec/rank/factors.h"

namespace scant::plan {
namespace {

using codec::Encoder;
using codec::Point;
using codec::ValueKind;

constexpr uint64_t kElements = 65536;  // as a slice has them, and in the cache as after backward
constexpr int kTrials = 3;
constexpr double kLow = 0.01;
constexpr double kHigh = 0.1;
constexpr std::array<double, 3> kDensities = {1, kLow, kHigh};

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
Result<Trial> trial(const Clock& now, std::span<const float> gradient, Point point,
                    codec::Workspace& workspace) {
  Result<Encoder> encoder = Encoder::create(0, {1, gradient.size()}, {});
  if (!encoder) return encoder.error();
  codec::RecordBuffer record;
  std::vector<float> sum(gradient.size());
  Trial best{1e9, 1e9};
  for (int i = 0; i <= kTrials; ++i) {
    std::optional<Error> failed;
    const auto note = [&](const auto& done) {
      if (!done) failed = done.error();
    };
    const double encoded =
        seconds(now, [&] { note(encoder.value().encode(gradient, point, workspace, record)); });
    if (failed) return *failed;
    const auto view = codec::RecordView::parse(std::as_const(record).view());
    if (!view) return view.error();
    const double decoded = seconds(now, [&] {
      note(codec::accumulate({&view.value(), 1}, 0, {1, gradient.size()}, 0, sum, 1.0f, workspace));
    });
    if (failed) return *failed;
    if (i == 0) continue;
    best = {std::min(best.encode_s, encoded), std::min(best.decode_s, decoded)};
  }
  return best;
}

// What a kind of value costs: dense, and a share at two densities.
Result<void> rate(const Clock& now, ValueKind kind, std::span<const float> all,
                  codec::Workspace& workspace, WorkRates& rates) {
  constexpr double kCount = kElements;
  std::array<Trial, 3> trials;
  for (size_t i = 0; i < trials.size(); ++i) {
    Result<Trial> made = trial(now, all, {kDensities[i], kind}, workspace);
    if (!made) return made.error();
    trials[i] = made.value();
  }
  const auto& [dense, low, high] = trials;
  const double entries = (kHigh - kLow) * kCount;
  auto& encode = rates.encode[static_cast<size_t>(kind)];
  auto& decode = rates.decode[static_cast<size_t>(kind)];
  encode = {dense.encode_s / kCount, std::max(0.0, high.encode_s - low.encode_s) / entries};
  decode = {dense.decode_s / kCount, std::max(0.0, high.decode_s - low.decode_s) / entries};
  if (kind == ValueKind::bf16) {
    rates.scan_s = std::max(0.0, low.encode_s / kCount - kLow * encode.entry_s);
    rates.clear_s = std::max(0.0, low.decode_s / kCount - kLow * decode.entry_s);
  }
  return {};
}

// A square matrix of so many elements, with a few directions.
Result<void> rate_factors(const Clock& now, std::span<const float> all, codec::Workspace& workspace,
                          WorkRates& rates) {
  constexpr uint32_t kRank = 8;
  constexpr uint64_t kSide = 256;
  static_assert(kSide * kSide == kElements);
  std::vector<float> copy(all.begin(), all.end());
  const codec::Range whole{0, kElements};
  const codec::MatrixSlice slice{.range = whole, .gradient = copy};
  codec::Factors factors({kSide, kSide}, whole, 1);
  if (Result<void> set = factors.set_rank(kRank); !set) return set;
  std::vector<float> left(factors.left_elements());
  std::vector<float> right(factors.right_elements());
  double product_s = 1e9;
  double basis_s = 1e9;
  for (int i = 0; i <= kTrials; ++i) {
    Result<void> done;
    const double three = seconds(now, [&] {
      done = factors.project({&slice, 1}, workspace, left);
      const Result<bool> usable = factors.coefficients({&slice, 1}, workspace, right);
      if (!usable) done = usable.error();
      factors.add(right, 1, whole, copy, workspace);
    });
    if (!done) return done;
    const double basis = seconds(now, [&] { factors.set_basis(left); });
    if (i == 0) continue;
    product_s = std::min(product_s, three / 3);
    basis_s = std::min(basis_s, basis);
  }
  rates.product_s = product_s / (kRank * static_cast<double>(kElements));
  rates.basis_s = basis_s / (kRank * kRank * static_cast<double>(kSide));
  return {};
}

}  // namespace

Result<WorkRates> calibrate(const Clock& now) try {
  codec::Workspace workspace;
  WorkRates rates;
  const std::vector<float> all = values(kElements);
  const Result<Trial> one = trial(now, std::span(all).first(64), {1, ValueKind::f32}, workspace);
  if (!one) return one.error();
  rates.record_s = one.value().encode_s;
  for (int i = 0; i < codec::kValueKindCount; ++i) {
    const Result<void> rated = rate(now, static_cast<ValueKind>(i), all, workspace, rates);
    if (!rated) return rated.error();
  }
  if (Result<void> rated = rate_factors(now, all, workspace, rates); !rated) return rated.error();
  return rates;
} catch (const std::bad_alloc&) {
  return Error{.code = ErrorCode::resource,
               .message = "no memory to measure what encoding costs here"};
}

}  // namespace scant::plan
