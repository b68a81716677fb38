#include "base/guard.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "base/check.h"

namespace scant::base {
namespace {

constexpr uint64_t kUsesFirst = 8;  // of the plain way, before anything is tried
constexpr size_t kPairsMax = 32;
constexpr uint64_t kWaitFirst = 32;
constexpr uint64_t kWaitMost = 4096;
constexpr uint64_t kCheckLeast = 8;  // uses between two looks at the plain way
constexpr uint64_t kCheckMost = 512;
constexpr double kForget = 1.0 / 8192;  // of the accounts, each use
constexpr double kWorthIt = 0.01;       // log of the gain that another way must show
constexpr double kPlainly = 0.1;        // log: each of three pairs shows more
constexpr double kDisturbed = 1;        // of the held way's cost
constexpr double kUnknownLeast = 1.02;  // expected ratio of a way that was not compared
constexpr double kHuge = 1e9;
constexpr double kPairsToHold = 5;
// Level of the held way's costs.
constexpr size_t kLast = 5;
constexpr double kLevelStep = 0.02;
constexpr double kOtherLevel = 0.2;
// A pair that contradicts what was known.
constexpr double kContradiction = 0.15;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

struct Weighted {
  double value;
  double weight;
};
double weighted_median(std::vector<Weighted>& all, double total) {
  std::ranges::sort(all, {}, &Weighted::value);
  double sum = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    sum += all[i].weight;
    if (sum > total / 2) return all[i].value;
    if (sum == total / 2) return (all[i].value + all[i + 1].value) / 2;
  }
  return all.back().value;
}

}  // namespace

Guard::Guard(const std::vector<double>& at_most, GuardOptions options) : options_(options) {
  SCANT_CHECK(!at_most.empty());
  for (const double one : at_most)
    ways_.push_back({.at_most = one, .due = kUsesFirst, .wait = kWaitFirst});
  for (size_t way = 0; way < ways_.size(); ++way) expect(way);
}

Guard::Evidence Guard::evidence(size_t way) const {
  const std::vector<Pair>& pairs = ways_[way].pairs;
  if (pairs.empty()) return {.count = 0, .middle = 0, .error = kHuge, .spread = 0};
  std::vector<Weighted> all;
  double total = 0;
  for (const Pair& one : pairs) {
    const double weight =
        std::exp2(-static_cast<double>(uses_ - one.at) / std::max(options_.half_life, 1.0));
    all.push_back({one.log_ratio, weight});
    total += weight;
  }
  const double middle = weighted_median(all, total);
  if (all.size() < 3) return {.count = total, .middle = middle, .error = kHuge, .spread = 0};
  for (Weighted& one : all) one.value = std::abs(one.value - middle);
  // From the median of distances to a standard error of a median, of Gaussian samples; few samples
  // tell too little of their own spread.
  const double spread = 1.4826 * weighted_median(all, total);
  const auto count = static_cast<double>(all.size());
  const double error = 1.2533 * std::max(spread, 0.002) / std::sqrt(total) * (1 + 2 / count);
  return {.count = total, .middle = middle, .error = error, .spread = spread};
}

void Guard::expect(size_t way) {
  Way& one = ways_[way];
  one.expected = one.pairs.empty() ? std::max(one.at_most / ways_[held_].at_most, kUnknownLeast)
                                   : std::exp(evidence(way).middle);
}

std::optional<double> Guard::ratio(size_t way) const {
  const auto to_held = [&](size_t of) -> std::optional<double> {
    if (of == held_) return 0;
    if (ways_[of].pairs.empty()) return std::nullopt;
    return evidence(of).middle;
  };
  const auto one = to_held(way);
  const auto plain = to_held(0);
  if (!one || !plain) return std::nullopt;
  return std::exp(*one - *plain);
}

void Guard::add(size_t way, double cost) {
  SCANT_CHECK(way < ways_.size());
  if (!(cost > 0)) return;
  ++uses_;
  all_ += cost - kForget * all_;
  trials_ -= kForget * trials_;
  checks_ -= kForget * checks_;
  if (way == held_) {
    watch_level(std::log(cost));
    if (challenge_ > 0) close_pair(cost);
    if (way == held_) before_ = cost;
  } else if (way == next_ && before_ > 0 && challenge_ == 0) {
    tried_ = way;
    challenge_ = cost;
  }
  choose_next();
}

// If the held way's cost is another one, then the others' may be too: they are tried again soon.
void Guard::watch_level(double cost) {
  last_.push_back(cost);
  if (last_.size() > kLast) last_.erase(last_.begin());
  ++level_count_;
  level_ += (cost - level_) * std::max(kLevelStep, 1.0 / static_cast<double>(level_count_));
  if (last_.size() < kLast || std::abs(median(last_) - level_) < kOtherLevel) return;
  level_ = median(last_);
  for (Way& one : ways_) {
    one.wait = kWaitFirst;
    one.due = std::min(one.due, uses_);
  }
}

void Guard::close_pair(double after) {
  const size_t way = tried_;
  const double cost = std::exchange(challenge_, 0);
  const double held = std::sqrt(before_ * after);
  // What costs far more than expected was disturbed, as a use of the held way could have been.
  const double most = held * std::max(kDisturbed, 2 * (ways_[way].expected - 1));
  double& account = way == 0 ? checks_ : trials_;
  account = std::max(0.0, account + std::min(cost - held, most));
  note(way, std::log(cost / held));
  expect(way);
  way == 0 ? judge_plain() : judge(way);
}

void Guard::note(size_t way, double log_ratio) {
  std::vector<Pair>& pairs = ways_[way].pairs;
  ++compared_;
  pairs.push_back({log_ratio, uses_});
  if (pairs.size() > kPairsMax) pairs.erase(pairs.begin());
  if (pairs.size() < 5) return;
  // Three in a row on one side, far from what the older ones say: the machine is another.
  std::vector<double> older;
  for (size_t i = 0; i + 3 < pairs.size(); ++i) older.push_back(pairs[i].log_ratio);
  const double middle = median(older);
  for (double& one : older) one = std::abs(one - middle);
  const double far = std::max(kContradiction, 3 * median(older));
  const auto last = std::span(pairs).last(3);
  const bool above = std::ranges::all_of(last, [&](auto& p) { return p.log_ratio > middle + far; });
  const bool below = std::ranges::all_of(last, [&](auto& p) { return p.log_ratio < middle - far; });
  if (above || below) pairs.erase(pairs.begin(), pairs.end() - 3);
}

void Guard::judge(size_t way) {
  const std::vector<Pair>& pairs = ways_[way].pairs;
  const Evidence now = evidence(way);
  const bool plainly =
      pairs.size() >= 3 && std::ranges::all_of(std::span(pairs).last(3),
                                               [](auto& p) { return p.log_ratio < -kPlainly; });
  const bool proven = now.count >= kPairsToHold - 0.5 && now.middle + 2 * now.error < -kWorthIt;
  const bool hopeless = pairs.size() < 3
                            ? now.middle > kWorthIt * static_cast<double>(5 - 2 * pairs.size())
                            : now.middle - now.error > -kWorthIt;
  if (plainly || proven) {
    hold(way);
  } else if (hopeless || pairs.size() == kPairsMax) {
    lose(way);
  }
}

void Guard::lose(size_t way) {
  Way& one = ways_[way];
  one.due = uses_ + one.wait;
  one.wait = std::min(2 * one.wait, kWaitMost);
}

// The held way is another one. It is left if it measures worse, without waiting for a proof.
void Guard::judge_plain() {
  Way& plain = ways_[0];
  const std::vector<Pair>& pairs = plain.pairs;
  const Evidence now = evidence(0);
  // Two in a row count at once, unless such pairs are chance by all that is known.
  const double least = std::min(-kContradiction / 3, now.middle - 2 * now.spread);
  const bool twice =
      pairs.size() >= 2 && pairs.back().log_ratio < least && pairs.end()[-2].log_ratio < least;
  if (twice || (pairs.size() >= 3 && now.middle < 0)) {
    const size_t left = held_;
    hold(0);
    lose(left);
    return;
  }
  const double extra = std::exp(now.middle) - 1;
  plain.due = uses_ + 1;
  if (pairs.back().log_ratio < 0) return;  // again at once, beside another use of the held way
  plain.due += static_cast<uint64_t>(std::clamp(extra / options_.check_share, double{kCheckLeast},
                                                static_cast<double>(kCheckMost)));
}

void Guard::hold(size_t way) {
  const double middle = evidence(way).middle;
  std::vector<Pair> back = std::move(ways_[way].pairs);
  for (Pair& one : back) one.log_ratio = -one.log_ratio;
  ways_[way].pairs.clear();
  for (Way& one : ways_) {
    for (Pair& pair : one.pairs) pair.log_ratio -= middle;
    one.wait = kWaitFirst;
    one.due = uses_;
  }
  ways_[held_].pairs = std::move(back);
  ways_[held_].due = uses_ + kWaitFirst;
  held_ = way;
  for (size_t other = 0; other < ways_.size(); ++other) expect(other);
  ++changes_;
  before_ = 0;
  last_.clear();
  level_count_ = 0;
}

// The cheapest of those that are due and can be afforded; the plain way first.
void Guard::choose_next() {
  next_ = held_;
  if (challenge_ > 0 || before_ == 0) return;
  double least = kHuge;
  for (size_t way = 0; way < ways_.size(); ++way) {
    if (way == held_ || ways_[way].due > uses_) continue;
    const double ratio = ways_[way].expected;
    const double share = way == 0 ? options_.check_share : options_.trial_share;
    const double spent = way == 0 ? checks_ : trials_;
    const double extra = std::max(0.0, ratio - 1) * before_;
    if (!affords(share, all_, spent, extra)) continue;
    if (way == 0) {
      next_ = 0;
      return;
    }
    if (ratio < least) {
      least = ratio;
      next_ = way;
    }
  }
}

}  // namespace scant::base
