#include "serve/step/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/fault.h"
#include "base/rng.h"

namespace scant::serve {
namespace {

// The likelier first; of equal ones that with the smaller number, so that an order is never open.
template <typename Item, typename Value>
auto by(Value Item::*value) {
  return [value](const Item& x, const Item& y) {
    return x.*value != y.*value ? x.*value > y.*value : x.token < y.token;
  };
}

// log of the sum of e^logit, by the largest one.
double log_sum(std::span<const float> logits, float largest) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum);
}

Result<float> largest_of(std::span<const float> logits) {
  float largest = -std::numeric_limits<float>::infinity();
  bool numbers = true;
  for (const float logit : logits) {
    numbers = numbers && logit < std::numeric_limits<float>::infinity();
    largest = std::max(largest, logit);
  }
  if (!numbers || std::isinf(largest)) {
    return base::corrupt(
        "a logit is not finite: the weights are damaged, or too large for the model");
  }
  return largest;
}

// Of the model itself: before penalties, bias and temperature.
void add_logprobs(std::span<const float> logits, float largest, int logprobs, Choice& choice) {
  if (logprobs < 0) return;
  const double sum = log_sum(logits, largest);
  choice.logprob = static_cast<float>(logits[choice.token] - sum);
  const auto count = std::min<size_t>(static_cast<size_t>(logprobs), logits.size());
  if (count == 0) return;
  std::vector<Alternative> all(logits.size());
  for (uint32_t i = 0; i < all.size(); ++i) all[i] = {i, static_cast<float>(logits[i] - sum)};
  std::ranges::partial_sort(all, all.begin() + static_cast<ptrdiff_t>(count),
                            by(&Alternative::logprob));
  choice.top.assign(all.begin(), all.begin() + static_cast<ptrdiff_t>(count));
}

}  // namespace

std::optional<std::string> sampling_fault(const Sampling& sampling, uint32_t vocabulary) {
  const auto outside = [](float value, float least, float most) {
    return !(value >= least && value <= most);  // NaN is outside
  };
  if (outside(sampling.temperature, 0, 100)) return "temperature is not within 0 and 100";
  if (outside(sampling.top_p, 0, 1) || sampling.top_p == 0)
    return "top_p is not above 0 and up to 1";
  if (outside(sampling.min_p, 0, 1)) return "min_p is not within 0 and 1";
  if (outside(sampling.repetition_penalty, 0.01f, 100))
    return "repetition_penalty is not within 0.01 and 100";
  if (outside(sampling.frequency_penalty, -2, 2)) return "frequency_penalty is not within -2 and 2";
  if (outside(sampling.presence_penalty, -2, 2)) return "presence_penalty is not within -2 and 2";
  if (sampling.logprobs < -1 || sampling.logprobs > static_cast<int>(kTopLogprobsMax))
    return "logprobs is not within -1 and " + std::to_string(kTopLogprobsMax);
  for (const auto& [token, bias] : sampling.bias) {
    if (token >= vocabulary)
      return "logit_bias names token " + std::to_string(token) + ", of " +
             std::to_string(vocabulary);
    if (outside(bias, -100, 100)) return "logit_bias is not within -100 and 100";
  }
  return std::nullopt;
}

Result<Choice> Sampler::choose(std::span<const float> logits, std::span<const uint32_t> prompt,
                               std::span<const uint32_t> answer, const Sampling& sampling) {
  const auto largest = largest_of(logits);
  if (!largest) return largest.error();
  weigh(logits, prompt, answer, sampling);
  Choice choice;
  choice.token =
      sampling.temperature == 0
          ? likeliest()
          : draw(sampling,
                 static_cast<double>(base::random_at(sampling.seed, 0, answer.size()) >> 11) *
                     0x1p-53);
  add_logprobs(logits, largest.value(), sampling.logprobs, choice);
  return choice;
}

Result<Choice> Sampler::tell(std::span<const float> logits, uint32_t token, int logprobs) {
  const auto largest = largest_of(logits);
  if (!largest) return largest.error();
  Choice choice{.token = token};
  add_logprobs(logits, largest.value(), logprobs, choice);
  return choice;
}

// logits_: with penalties and bias.
void Sampler::weigh(std::span<const float> logits, std::span<const uint32_t> prompt,
                    std::span<const uint32_t> answer, const Sampling& sampling) {
  logits_.assign(logits.begin(), logits.end());
  if (sampling.repetition_penalty != 1) {
    counts_.resize(logits.size());
    for (const std::span<const uint32_t> text : {prompt, answer}) {
      for (const uint32_t token : text) {
        if (counts_[token]++ > 0) continue;
        float& logit = logits_[token];
        logit =
            logit > 0 ? logit / sampling.repetition_penalty : logit * sampling.repetition_penalty;
      }
    }
    for (const std::span<const uint32_t> text : {prompt, answer}) {
      for (const uint32_t token : text) counts_[token] = 0;
    }
  }
  if (sampling.frequency_penalty != 0 || sampling.presence_penalty != 0) {
    counts_.resize(logits.size());
    for (const uint32_t token : answer) {
      if (counts_[token]++ == 0) logits_[token] -= sampling.presence_penalty;
      logits_[token] -= sampling.frequency_penalty;
    }
    for (const uint32_t token : answer) counts_[token] = 0;
  }
  for (const auto& [token, bias] : sampling.bias) logits_[token] += bias;
}

uint32_t Sampler::likeliest() const {
  return static_cast<uint32_t>(std::ranges::max_element(logits_) - logits_.begin());
}

// Temperature, then min_p, top_k and top_p, each of what the one before left.
uint32_t Sampler::draw(const Sampling& sampling, double drawn) {
  const float largest = *std::ranges::max_element(logits_);
  if (std::isinf(largest)) return likeliest();
  candidates_.clear();
  double total = 0;
  for (uint32_t token = 0; token < logits_.size(); ++token) {
    const double weight =
        std::exp((static_cast<double>(logits_[token]) - largest) / sampling.temperature);
    if (weight == 0 || weight < sampling.min_p) continue;  // the largest is 1
    candidates_.push_back({token, weight});
    total += weight;
  }
  if (sampling.top_k > 0 && sampling.top_k < candidates_.size()) {
    keep_top_k(sampling.top_k);
    total = 0;
    for (const Candidate& one : candidates_) total += one.weight;
  }
  if (sampling.top_p < 1) total = keep_top_p(total, sampling.top_p);
  double left = drawn * total;
  for (const Candidate& one : candidates_) {
    left -= one.weight;
    if (left < 0) return one.token;
  }
  return candidates_.back().token;  // rounding
}

void Sampler::keep_top_k(size_t count) {
  std::ranges::nth_element(candidates_, candidates_.begin() + static_cast<ptrdiff_t>(count),
                           by(&Candidate::weight));
  candidates_.resize(count);
  std::ranges::sort(candidates_, {}, &Candidate::token);
}

// The fewest whose share is at least that; sorts only as many as it takes. Returns their total.
double Sampler::keep_top_p(double total, double share) {
  const double wanted = share * total;
  double kept = 0;
  size_t sorted = 0;
  for (size_t most = 64; sorted < candidates_.size(); most *= 4) {
    const size_t end = std::min(most, candidates_.size());
    std::partial_sort(candidates_.begin() + static_cast<ptrdiff_t>(sorted),
                      candidates_.begin() + static_cast<ptrdiff_t>(end), candidates_.end(),
                      by(&Candidate::weight));
    for (; sorted < end; ++sorted) {
      kept += candidates_[sorted].weight;
      if (kept >= wanted) {
        candidates_.resize(sorted + 1);
        return kept;
      }
    }
  }
  return kept;
}

}  // namespace scant::serve
