// The next token of a text, from the logits of its last one. docs/serve.md, "Sampling". A pure
// function: the same logits, texts, options and draw give the same token. One owner thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "scant/base/result.h"

namespace scant::serve {

inline constexpr uint32_t kTopLogprobsMax = 64;

struct Sampling {
  float temperature = 1;  // 0: the likeliest token
  uint32_t top_k = 0;     // 0: all
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float frequency_penalty = 0;
  float presence_penalty = 0;
  uint64_t seed = 0;
  int logprobs = -1;  // -1: none; else the token's own, and of so many of the likeliest
  std::vector<std::pair<uint32_t, float>> bias{};  // added to the logit of a token
};
// What is wrong with them; nothing if they can be used.
[[nodiscard]] std::optional<std::string> sampling_fault(const Sampling& sampling,
                                                        uint32_t vocabulary);

struct Alternative {
  uint32_t token = 0;
  float logprob = 0;
};
struct Choice {
  uint32_t token = 0;
  float logprob = 0;               // 0 if it was not asked for
  std::vector<Alternative> top{};  // the likeliest first
};

class Sampler {
 public:
  // `answer` is the tokens chosen so far, `prompt` those before. ErrorCode::corrupt: a logit is not
  // a number, or all are minus infinity. May throw std::bad_alloc.
  [[nodiscard]] Result<Choice> choose(std::span<const float> logits,
                                      std::span<const uint32_t> prompt,
                                      std::span<const uint32_t> answer, const Sampling& sampling);
  // A token that was given, not chosen, with `logprobs` of the likeliest. Errors as above.
  [[nodiscard]] static Result<Choice> tell(std::span<const float> logits, uint32_t token,
                                           int logprobs);

 private:
  void weigh(std::span<const float> logits, std::span<const uint32_t> prompt,
             std::span<const uint32_t> answer, const Sampling& sampling);
  [[nodiscard]] uint32_t likeliest() const;
  [[nodiscard]] uint32_t draw(const Sampling& sampling, double drawn);
  void keep_top_k(size_t count);
  [[nodiscard]] double keep_top_p(double total, double share);

  struct Candidate {
    uint32_t token = 0;
    double weight = 0;  // not scaled to a sum of 1
  };
  std::vector<float> logits_;
  std::vector<uint32_t> counts_;  // of tokens, zeros between calls
  std::vector<Candidate> candidates_;
};

}  // namespace scant::serve
