// Tokens are drawn as the options say, and options that make no sense are refused.
#include "serve/step/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <limits>
#include <map>

namespace scant::serve {
namespace {

const std::vector<float> kLogits = {1, 3, 2, -1, 3};  // tokens 1 and 4 are equally likely

uint32_t chosen(const Sampling& sampling, std::vector<uint32_t> prompt = {},
                std::vector<uint32_t> answer = {}) {
  Sampler sampler;
  const auto choice = sampler.choose(kLogits, prompt, answer, sampling);
  EXPECT_TRUE(choice.ok());
  return choice.ok() ? choice.value().token : 0;
}

// How often each token is drawn, of 4000 seeds.
std::map<uint32_t, int> drawn(Sampling sampling) {
  Sampler sampler;
  std::map<uint32_t, int> counts;
  for (sampling.seed = 0; sampling.seed < 4000; ++sampling.seed)
    ++counts[sampler.choose(kLogits, {}, {}, sampling).value().token];
  return counts;
}

double probability(uint32_t token, double temperature = 1) {
  double sum = 0;
  for (const float logit : kLogits) sum += std::exp(logit / temperature);
  return std::exp(kLogits[token] / temperature) / sum;
}

TEST(Sampler, WithoutTemperatureTheLikeliestAndOfEqualOnesTheFirst) {
  EXPECT_EQ(chosen({.temperature = 0}), 1u);
  EXPECT_EQ(chosen({.temperature = 0, .bias = {{1, -1}}}), 4u);
  EXPECT_EQ(chosen({.temperature = 0, .bias = {{3, 100}}}), 3u);
}

TEST(Sampler, DrawsByTheProbabilities) {
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    const auto counts = drawn({.temperature = temperature});
    for (uint32_t token = 0; token < kLogits.size(); ++token) {
      const double p = probability(token, temperature);
      const double found = counts.contains(token) ? counts.at(token) / 4000.0 : 0;
      EXPECT_NEAR(found, p, 4.5 * std::sqrt(p * (1 - p) / 4000)) << token;
    }
  }
}

TEST(Sampler, KeepsTheLikeliest) {
  EXPECT_EQ(drawn({.top_k = 1}).size(), 1u);
  EXPECT_TRUE(drawn({.top_k = 1}).contains(1));  // of equal ones the first
  auto counts = drawn({.top_k = 3});
  EXPECT_EQ(counts.size(), 3u);
  EXPECT_TRUE(counts.contains(1) && counts.contains(4) && counts.contains(2));
  // The two likeliest have 0.793 of it.
  counts = drawn({.top_p = 0.79f});
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_EQ(drawn({.top_p = 0.9f}).size(), 3u);
  EXPECT_EQ(drawn({.top_p = 0.01f}).size(), 1u);
  // e^-1 and e^-2 of the likeliest
  EXPECT_EQ(drawn({.min_p = 0.3f}).size(), 3u);
  EXPECT_EQ(drawn({.min_p = 0.1f}).size(), 4u);
}

TEST(Sampler, TopPOfManyTokensIsThatOfAWholeSort) {
  std::vector<float> logits(3000);
  for (size_t i = 0; i < logits.size(); ++i)
    logits[i] = std::sin(static_cast<float>(i) * 12.9898f) * 3;
  std::vector<float> sorted = logits;
  std::ranges::sort(sorted, std::greater<>());
  double total = 0;
  for (const float logit : logits) total += std::exp(logit);
  for (const float share : {0.1f, 0.5f, 0.97f}) {
    double kept = 0;
    size_t count = 0;
    while (kept < share * total) kept += std::exp(sorted[count++]);
    Sampler sampler;
    float least = 10;
    for (uint64_t seed = 0; seed < 300; ++seed) {
      const auto choice = sampler.choose(logits, {}, {}, {.top_p = share, .seed = seed});
      least = std::min(least, logits[choice.value().token]);
    }
    EXPECT_GE(least, sorted[count - 1]) << share;
    EXPECT_LE(least, sorted[count * 8 / 10]) << share;
  }
}

TEST(Sampler, PenaltiesCountTheTokensOfTheText) {
  // 3 / 2 is less than the 2 of token 2; token 4 stays.
  EXPECT_EQ(chosen({.temperature = 0, .repetition_penalty = 2}, {1}, {}), 4u);
  EXPECT_EQ(chosen({.temperature = 0, .repetition_penalty = 2}, {1}, {4, 4}), 2u);
  EXPECT_EQ(chosen({.temperature = 0, .presence_penalty = 0.5f}, {}, {1}), 4u);
  EXPECT_EQ(chosen({.temperature = 0, .presence_penalty = 0.5f}, {1}, {}), 1u);  // not of prompts
  EXPECT_EQ(chosen({.temperature = 0, .presence_penalty = 0.5f}, {}, {1, 1, 4}), 1u);
  EXPECT_EQ(chosen({.temperature = 0, .frequency_penalty = 0.5f}, {}, {1, 1, 4}), 4u);
  EXPECT_EQ(chosen({.temperature = 0, .frequency_penalty = 2}, {}, {1, 4}), 2u);
  // The same sampler afterwards: nothing is left of the counts.
  Sampler sampler;
  const std::vector<uint32_t> answer = {1, 1, 4};
  const Sampling penalty = {.temperature = 0, .repetition_penalty = 2, .frequency_penalty = 2};
  EXPECT_EQ(sampler.choose(kLogits, {}, answer, penalty).value().token, 2u);
  EXPECT_EQ(sampler.choose(kLogits, {}, {}, penalty).value().token, 1u);
}

TEST(Sampler, TheSameSeedAndPlaceGiveTheSameToken) {
  const Sampling sampling = {.temperature = 2, .seed = 7};
  std::vector<uint32_t> answer;
  std::vector<uint32_t> again;
  for (int i = 0; i < 20; ++i) answer.push_back(chosen(sampling, {}, answer));
  for (int i = 0; i < 20; ++i) again.push_back(chosen(sampling, {}, again));
  EXPECT_EQ(answer, again);
  EXPECT_NE(std::ranges::count(answer, answer[0]), 20);
}

TEST(Sampler, LogprobsAreOfTheModelItself) {
  Sampler sampler;
  const auto choice =
      sampler.choose(kLogits, {}, {}, {.temperature = 0, .logprobs = 3, .bias = {{0, 50}}});
  ASSERT_TRUE(choice.ok());
  EXPECT_EQ(choice.value().token, 0u);
  EXPECT_NEAR(choice.value().logprob, std::log(probability(0)), 1e-6);
  ASSERT_EQ(choice.value().top.size(), 3u);
  EXPECT_EQ(choice.value().top[0].token, 1u);
  EXPECT_EQ(choice.value().top[1].token, 4u);
  EXPECT_EQ(choice.value().top[2].token, 2u);
  EXPECT_NEAR(choice.value().top[2].logprob, std::log(probability(2)), 1e-6);
  EXPECT_TRUE(sampler.choose(kLogits, {}, {}, {.logprobs = 0}).value().top.empty());
  EXPECT_EQ(sampler.choose(kLogits, {}, {}, {.logprobs = 64}).value().top.size(), 5u);
}

TEST(Sampler, RefusesLogitsThatAreNoNumbers) {
  Sampler sampler;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float wrong : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
    const std::vector<float> logits = {0, wrong, 1};
    for (const float temperature : {0.0f, 1.0f}) {
      const auto choice = sampler.choose(logits, {}, {}, {.temperature = temperature});
      ASSERT_FALSE(choice.ok());
      EXPECT_EQ(choice.error().code, ErrorCode::corrupt);
    }
  }
  EXPECT_FALSE(sampler.choose(std::vector{-kInfinity, -kInfinity}, {}, {}, {}).ok());
  const std::vector<float> one = {-kInfinity, 0, -kInfinity};
  EXPECT_EQ(sampler.choose(one, {}, {}, {.temperature = 5}).value().token, 1u);
}

TEST(Sampler, OptionsThatMakeNoSenseAreNamed) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(sampling_fault({}, 5));
  const std::pair<Sampling, const char*> wrong[] = {
      {{.temperature = -1}, "temperature"},
      {{.temperature = kNan}, "temperature"},
      {{.top_p = 0}, "top_p"},
      {{.top_p = 1.5f}, "top_p"},
      {{.min_p = -0.1f}, "min_p"},
      {{.repetition_penalty = 0}, "repetition_penalty"},
      {{.frequency_penalty = 3}, "frequency_penalty"},
      {{.presence_penalty = kNan}, "presence_penalty"},
      {{.logprobs = 65}, "logprobs"},
      {{.bias = {{5, 1}}}, "logit_bias"},
      {{.bias = {{0, 101}}}, "logit_bias"},
  };
  for (const auto& [sampling, name] : wrong) {
    const auto fault = sampling_fault(sampling, 5);
    ASSERT_TRUE(fault) << name;
    EXPECT_EQ(fault->find(name), 0u) << *fault;
  }
}

}  // namespace
}  // namespace scant::serve
