#include "serve/step/choice.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/check.h"

namespace scant::serve {
namespace {

constexpr size_t kEachUpTo = 8;  // threads, of which each number is a way
constexpr double kNewest = 1.0 / 64;
constexpr uint64_t kStepsCounted = 128;  // that a mean with this weight stands for
constexpr uint32_t kCutUnit = 16;        // prompt tokens
constexpr uint32_t kCutLeast = 32;       // so that a prompt goes on
constexpr double kLossMost = 1.02;
constexpr double kChanceMost = 0.03;
constexpr uint64_t kCutsInARow =
    256;  // steps, of which one is not cut, so that large ones are known
// Steps of less tokens than these read the same weights, whatever their number.
constexpr uint32_t kManyTokens = 32;
// Ratios that another row measured are about those of a new one.
constexpr double kAbout = 1.05;

}  // namespace

std::vector<size_t> thread_ways(size_t threads) {
  std::vector<size_t> ways;
  if (threads <= kEachUpTo) {
    for (size_t n = threads; n >= 1; --n) ways.push_back(n);
  } else {
    for (size_t eighths = 8; eighths >= 1; --eighths) ways.push_back(threads * eighths / 8);
    if (ways.back() > 1) ways.push_back(1);
  }
  return ways;
}

uint32_t token_class(uint32_t tokens) {
  if (tokens <= 2) return std::max(tokens, 1U);
  const uint32_t above = std::bit_ceil(tokens);
  return tokens <= above / 4 * 3 ? above / 4 * 3 : above;
}

StepChoice::StepChoice(ChoiceOptions options) : options_(options) {
  SCANT_CHECK(options.threads >= 1);
  if (options.choose_threads) {
    ways_ = thread_ways(options.threads);
  } else {
    ways_ = {options.threads};
  }
}

// Of each way, what it costs at most: as many times as it has fewer threads; about what the nearest
// row of this kind has measured, where that is less.
std::vector<double> StepChoice::at_most(StepShape shape) const {
  const Entry* nearest = nullptr;
  double distance = 0;
  for (const auto& [bound, one] : entries(shape.kind)) {
    const double now = std::abs(std::log2(static_cast<double>(bound) / shape.tokens));
    if (nearest != nullptr && now >= distance) continue;
    nearest = &one;
    distance = now;
  }
  std::vector<double> all;
  for (size_t way = 0; way < ways_.size(); ++way) {
    double most = static_cast<double>(options_.threads) / static_cast<double>(ways_[way]);
    if (nearest != nullptr && way > 0) {
      if (const auto ratio = nearest->guard.ratio(way)) most = std::min(most, *ratio * kAbout);
    }
    all.push_back(most);
  }
  return all;
}

StepChoice::Entry& StepChoice::entry(StepShape shape) {
  Entries& all = entries(shape.kind);
  const uint32_t bound = token_class(shape.tokens);
  const auto found = all.find(bound);
  return found != all.end() ? found->second : all.emplace(bound, at_most(shape)).first->second;
}

size_t StepChoice::threads(StepShape shape) {
  SCANT_CHECK(shape.tokens > 0);
  return ways_[entry(shape).guard.next()];
}

void StepChoice::took(StepShape shape, size_t threads, double seconds) {
  Entry& to = entry(shape);
  const auto way = static_cast<size_t>(std::ranges::find(ways_, threads) - ways_.begin());
  SCANT_CHECK(way < ways_.size());
  last_[static_cast<size_t>(shape.kind)] = token_class(shape.tokens);
  if (shape.kind == StepKind::prompts) ++prompt_steps_;
  const bool held = way == to.guard.held();
  to.guard.add(way, shape.tokens < kManyTokens ? seconds : seconds / shape.tokens);
  if (!held) return;
  ++to.steps;
  const double weight = std::max(kNewest, 1.0 / static_cast<double>(to.steps));
  if (to.steps > 1) {
    const double of_token = seconds / shape.tokens / (to.step_s / to.tokens) - 1;
    const double of_step = seconds / to.step_s - 1;
    const double off = std::min(std::abs(of_token), std::abs(of_step));
    to.spread += weight * (off * off - to.spread);
  }
  to.tokens += weight * (shape.tokens - to.tokens);
  to.step_s += weight * (seconds - to.step_s);
}

// Between two rows on the line between them. Beyond all rows, steps with prompts take time in
// proportion; steps of answers alone, which read the weights in any case, as long as the nearest.
std::optional<double> StepChoice::seconds_of(StepKind kind, double tokens) const {
  const Entry* below = nullptr;
  const Entry* above = nullptr;
  for (const auto& [bound, one] : entries(kind)) {
    if (one.steps == 0) continue;
    if (one.tokens <= tokens) {
      below = &one;
    } else if (above == nullptr) {
      above = &one;
    }
  }
  if (below == nullptr && above == nullptr) return std::nullopt;
  if (below == nullptr || above == nullptr) {
    const Entry& nearest = below == nullptr ? *above : *below;
    return kind == StepKind::answers ? nearest.step_s : nearest.step_s * tokens / nearest.tokens;
  }
  const double share = (tokens - below->tokens) / (above->tokens - below->tokens);
  return below->step_s + share * (above->step_s - below->step_s);
}

double StepChoice::Entry::error() const {
  return std::sqrt(spread / static_cast<double>(std::clamp<uint64_t>(steps, 1, kStepsCounted)));
}

double StepChoice::error_of(uint32_t tokens) const {
  const Entries& all = entries(StepKind::prompts);
  const auto found = all.find(token_class(tokens));
  return found == all.end() ? 0 : found->second.error();
}

uint32_t StepChoice::prompt_tokens(uint32_t answering) const {
  const uint32_t plain = options_.step_tokens - std::min(answering, options_.step_tokens);
  const Entry* largest = nullptr;
  for (const auto& [bound, one] : entries(StepKind::prompts)) {
    if (one.steps > 0) largest = &one;
  }
  if (answering == 0 || options_.answer_wait_s <= 0 || largest == nullptr ||
      largest->step_s <= options_.answer_wait_s || prompt_steps_ % kCutsInARow == kCutsInARow - 1)
    return plain;
  const double most = largest->tokens - answering;
  // Where answers never ran alone: what their tokens take at least.
  const double alone = seconds_of(StepKind::answers, answering)
                           .value_or(largest->step_s * answering / largest->tokens);
  const auto step_s = [&](uint32_t prompts) {
    // No step is shorter than that of its answers alone.
    return std::max(alone, *seconds_of(StepKind::prompts, answering + prompts));
  };
  uint32_t cut = kCutLeast;
  while (cut + kCutUnit < most && step_s(cut + kCutUnit) <= options_.answer_wait_s) cut += kCutUnit;
  for (; cut < most; cut += kCutUnit) {
    const double share = cut / most;
    const double same = share * largest->step_s + (1 - share) * alone;
    const double chance = std::hypot(error_of(answering + cut), largest->error());
    if (step_s(cut) <= (kLossMost + std::min(2 * chance, kChanceMost)) * same)
      return std::min(cut, plain);
  }
  return plain;
}

StepChoice::Row StepChoice::row(StepKind kind, uint32_t bound, const Entry& entry) const {
  return {.shape = {.kind = kind, .tokens = bound},
          .steps = entry.steps,
          .tokens = entry.tokens,
          .step_s = entry.step_s,
          .threads = ways_[entry.guard.held()],
          .to_plain = entry.guard.ratio(entry.guard.held()).value_or(1),
          .compared = entry.guard.compared()};
}

std::vector<StepChoice::Row> StepChoice::table() const {
  std::vector<Row> rows;
  for (const StepKind kind : {StepKind::answers, StepKind::prompts}) {
    for (const auto& [bound, one] : entries(kind)) rows.push_back(row(kind, bound, one));
  }
  return rows;
}

std::optional<StepChoice::Row> StepChoice::last(StepKind kind) const {
  const Entries& all = entries(kind);
  const auto found = all.find(last_[static_cast<size_t>(kind)]);
  if (found == all.end()) return std::nullopt;
  return row(kind, found->first, found->second);
}

}  // namespace scant::serve
