// The scheduler over a model that reads its text back from the pages: whatever runs together, each
// answer is that of its request alone.
#include "serve/step/scheduler.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <map>

#include "base/rng.h"

namespace scant::serve {
namespace {

constexpr uint32_t kVocabulary = 11;
constexpr size_t kWidth = 3;

// What a model would do: it writes tokens into pages and reads the text from there. So a page that
// is shared, reused or copied wrongly changes an answer.
class FakeModel {
 public:
  explicit FakeModel(uint32_t pages) : memory_(pages * kPageTokens, UINT32_MAX) {}

  // The logits; vectors() has the rest.
  std::vector<float> run(const Step& step) {
    vectors_.clear();
    for (const PageCopy& copy : step.copies) {
      std::copy_n(memory_.begin() + copy.from * kPageTokens, kPageTokens,
                  memory_.begin() + copy.to * kPageTokens);
    }
    std::vector<float> logits;
    rows_ = 0;
    for (const Planned& one : step.planned) {
      EXPECT_FALSE(one.tokens.empty());
      for (size_t i = 0; i < one.tokens.size(); ++i) at(one, one.position + i) = one.tokens[i];
      tokens_ += one.tokens.size();
      const size_t end = one.position + one.tokens.size();
      uint64_t hash = 1;
      for (size_t i = 0; i < end; ++i) {
        hash = base::random_at(hash, at(one, i), i);
        if (i + one.outputs < end) continue;
        one.vectors ? append_vector(hash, vectors_) : append_logits(hash, logits);
        if (!one.vectors) ++rows_;
      }
    }
    return logits;
  }
  [[nodiscard]] uint64_t tokens() const { return tokens_; }
  [[nodiscard]] uint32_t rows() const { return rows_; }  // of logits, in the last step
  [[nodiscard]] const std::vector<float>& vectors() const { return vectors_; }

  // Vectors of all tokens, without scheduler and pages.
  static std::vector<float> all_vectors(const std::vector<uint32_t>& text) {
    std::vector<float> all;
    uint64_t hash = 1;
    for (size_t i = 0; i < text.size(); ++i) {
      hash = base::random_at(hash, text[i], i);
      append_vector(hash, all);
    }
    return all;
  }
  // The logprob of each token of a text but the first.
  static std::vector<float> logprobs(const std::vector<uint32_t>& text) {
    std::vector<float> all;
    uint64_t hash = 1;
    for (size_t i = 0; i + 1 < text.size(); ++i) {
      hash = base::random_at(hash, text[i], i);
      std::vector<float> logits;
      append_logits(hash, logits);
      all.push_back(Sampler::tell(logits, text[i + 1], 0).value().logprob);
    }
    return all;
  }

  // The answer without scheduler and pages.
  static std::vector<uint32_t> answer(const Request& request, uint32_t context) {
    std::vector<uint32_t> text = request.prompt;
    Sampler sampler;
    while (true) {
      uint64_t hash = 1;
      for (size_t i = 0; i < text.size(); ++i) hash = base::random_at(hash, text[i], i);
      std::vector<float> logits;
      append_logits(hash, logits);
      const std::span<const uint32_t> told = std::span(text).subspan(request.prompt.size());
      const uint32_t token =
          sampler.choose(logits, request.prompt, told, request.sampling).value().token;
      text.push_back(token);
      if (std::ranges::count(request.stop_tokens, token) > 0 ||
          text.size() == request.prompt.size() + request.tokens_max || text.size() == context) {
        return {text.begin() + static_cast<ptrdiff_t>(request.prompt.size()), text.end()};
      }
    }
  }

 private:
  uint32_t& at(const Planned& one, size_t position) {
    return memory_[one.pages[position / kPageTokens] * kPageTokens + position % kPageTokens];
  }
  static void append_vector(uint64_t hash, std::vector<float>& vectors) {
    for (uint64_t i = 0; i < kWidth; ++i)
      vectors.push_back(static_cast<float>(base::random_at(hash, 8, i) % 1000) / 100 - 5);
  }
  static void append_logits(uint64_t hash, std::vector<float>& logits) {
    for (uint32_t i = 0; i < kVocabulary; ++i)
      logits.push_back(static_cast<float>(base::random_at(hash, 7, i) % 1000) / 100);
  }

  std::vector<uint32_t> memory_;
  std::vector<float> vectors_;
  uint64_t tokens_ = 0;
  uint32_t rows_ = 0;
};

struct Answer {
  std::vector<uint32_t> tokens;
  std::vector<float> logprobs;
  std::vector<float> vector;
  Finish finish = Finish::none;
  uint32_t cached = 0;
};

class Trial {
 public:
  explicit Trial(SchedulerOptions options, uint32_t pages)
      : scheduler(options, pages), model(pages), options_(options) {}

  bool step(uint32_t prompt_tokens = UINT32_MAX) {
    const uint32_t answering = scheduler.answering();
    const Step& planned = scheduler.plan(prompt_tokens);
    if (planned.planned.empty()) return false;
    size_t tokens = 0;
    for (const Planned& one : planned.planned) tokens += one.tokens.size();
    EXPECT_LE(tokens, options_.step_tokens);
    if (prompt_tokens < options_.step_tokens) {
      EXPECT_LE(tokens, size_t{prompt_tokens} + answering + scheduler.running());
    }
    EXPECT_LE(planned.planned.size(), options_.running_max);
    const std::vector<float> logits = model.run(planned);
    EXPECT_LE(model.rows(), 2 * options_.running_max);
    scheduler.take(logits, model.vectors());
    collect();
    return true;
  }
  void collect() {
    for (Event& event : scheduler.events()) {
      Answer& answer = answers[event.request];
      EXPECT_EQ(answer.finish, Finish::none) << "nothing is told of a request that is over";
      if (event.choice) {
        answer.tokens.push_back(event.choice->token);
        answer.logprobs.push_back(event.choice->logprob);
      }
      if (event.finish != Finish::none) answer.vector = std::move(event.vector);
      answer.finish = event.finish;
      answer.cached = event.cached_tokens;
    }
  }
  void run_all() {
    while (step()) {
    }
    EXPECT_EQ(scheduler.waiting() + scheduler.running(), 0u);
    EXPECT_EQ(scheduler.pool().held(), 0u) << "pages are lost";
  }

  Scheduler scheduler;
  FakeModel model;
  std::map<uint64_t, Answer> answers;

 private:
  SchedulerOptions options_;
};

SchedulerOptions options(uint32_t step_tokens = 32, uint32_t running_max = 4) {
  return {.vocabulary = kVocabulary,
          .context = 200,
          .step_tokens = step_tokens,
          .running_max = running_max,
          .waiting_max = 1000};
}

std::vector<uint32_t> tokens(size_t count, uint32_t first = 0) {
  std::vector<uint32_t> all(count);
  for (size_t i = 0; i < count; ++i)
    all[i] = static_cast<uint32_t>(base::random_at(first, 3, i) % kVocabulary);
  return all;
}

Request request(uint64_t number, std::vector<uint32_t> prompt, uint32_t tokens_max) {
  return {.number = number,
          .prompt = std::move(prompt),
          .tokens_max = tokens_max,
          .sampling = {.temperature = 0}};
}

TEST(Scheduler, AnswersAreThoseOfEachRequestAlone) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    base::Rng rng(seed);
    const uint32_t running_max = 1 + static_cast<uint32_t>(rng.below(6));
    const SchedulerOptions limits =
        options(running_max + static_cast<uint32_t>(rng.below(60)), running_max);
    const auto pages = static_cast<uint32_t>(8 + rng.below(30));
    Trial run(limits, pages);
    std::map<uint64_t, Request> asked;
    std::vector<std::vector<uint32_t>> texts = {tokens(1 + rng.below(100), 1)};
    for (uint64_t number = 0; number < 40; ++number) {
      // Many begin like an earlier one.
      std::vector<uint32_t> prompt = texts[rng.below(texts.size())];
      prompt.resize(1 + rng.below(prompt.size()));
      for (uint32_t token : tokens(rng.below(30), static_cast<uint32_t>(rng.below(3))))
        prompt.push_back(token);
      texts.push_back(prompt);
      Request one = request(number, prompt, static_cast<uint32_t>(1 + rng.below(40)));
      if (rng.chance(0.3)) one.sampling = {.temperature = 1, .top_p = 0.9f, .seed = rng.next()};
      if (rng.chance(0.5)) one.stop_tokens = {static_cast<uint32_t>(rng.below(kVocabulary))};
      const bool fits = !request_fault(one, limits, pages);
      EXPECT_EQ(run.scheduler.add(one).ok(), fits);
      if (fits) asked.emplace(number, std::move(one));
      while (rng.chance(0.6)) run.step(rng.chance(0.3) ? 16 : UINT32_MAX);
    }
    run.run_all();
    for (const auto& [number, one] : asked) {
      const Answer& answer = run.answers[number];
      EXPECT_EQ(answer.tokens, FakeModel::answer(one, limits.context)) << seed << ", " << number;
      const bool stopped = std::ranges::count(one.stop_tokens, answer.tokens.back()) > 0;
      EXPECT_EQ(answer.finish, stopped ? Finish::stop : Finish::length);
    }
    const SchedulerCounts& counts = run.scheduler.counts();
    EXPECT_EQ(counts.prompt_tokens + counts.answer_tokens, run.model.tokens());
  }
}

TEST(Scheduler, AFullCachePausesTheYoungestAndTheOthersGoOn) {
  Trial run(options(64, 4), 8);  // 128 tokens
  for (uint64_t i = 0; i < 3; ++i)
    ASSERT_TRUE(run.scheduler.add(request(i, tokens(20, static_cast<uint32_t>(i)), 60)));
  std::vector<uint64_t> ended;
  while (run.step()) {
    for (const auto& [number, answer] : run.answers) {
      if (answer.finish != Finish::none && std::ranges::count(ended, number) == 0)
        ended.push_back(number);
    }
  }
  EXPECT_EQ(ended, (std::vector<uint64_t>{0, 1, 2}));
  EXPECT_GT(run.scheduler.counts().paused, 0u);
  for (const auto& [number, answer] : run.answers) EXPECT_EQ(answer.tokens.size(), 60u) << number;
}

TEST(Scheduler, ACommonBeginningRunsOnce) {
  Trial run(options(64, 4), 40);
  const std::vector<uint32_t> common = tokens(70);
  for (uint64_t i = 0; i < 4; ++i) {
    std::vector<uint32_t> prompt = common;
    prompt.push_back(static_cast<uint32_t>(i));
    ASSERT_TRUE(run.scheduler.add(request(i, prompt, 1)));
  }
  run.run_all();
  EXPECT_EQ(run.answers[0].cached, 0u);
  for (uint64_t i = 1; i < 4; ++i) EXPECT_EQ(run.answers[i].cached, 64u) << i;
  EXPECT_EQ(run.scheduler.counts().prompt_tokens, 71u + 3 * 7u);
}

TEST(Scheduler, APageThatBeginsAlikeIsCopied) {
  Trial run(options(64, 4), 40);
  std::vector<uint32_t> prompt = tokens(40);
  ASSERT_TRUE(run.scheduler.add(request(0, prompt, 9)));  // 48 tokens run: three full pages
  run.run_all();
  prompt.resize(38);
  prompt.push_back((prompt.back() + 1) % kVocabulary);
  ASSERT_TRUE(run.scheduler.add(request(1, prompt, 1)));
  run.run_all();
  EXPECT_GE(run.answers[1].cached, 38u);
  EXPECT_EQ(run.answers[1].tokens, FakeModel::answer(request(1, prompt, 1), 200));
}

TEST(Scheduler, AnswersDoNotWaitForAPrompt) {
  Trial run(options(8, 4), 40);
  ASSERT_TRUE(run.scheduler.add(request(0, tokens(4), 30)));
  run.step();
  ASSERT_TRUE(run.scheduler.add(request(1, tokens(100, 5), 1)));
  for (size_t i = 2; i < 12; ++i) {
    run.step();
    EXPECT_EQ(run.answers[0].tokens.size(), i);
  }
}

TEST(Scheduler, PromptsTakeNoMoreTokensThanTheyAreGiven) {
  Trial run(options(64, 4), 40);
  ASSERT_TRUE(run.scheduler.add(request(0, tokens(4), 60)));
  run.step();
  ASSERT_TRUE(run.scheduler.add(request(1, tokens(100, 5), 1)));
  ASSERT_TRUE(run.scheduler.add(request(2, tokens(100, 6), 1)));
  uint64_t before = run.model.tokens();
  for (size_t i = 0; i < 12; ++i) {
    EXPECT_EQ(run.scheduler.answering(), 1u);
    run.step(16);
    EXPECT_LE(run.model.tokens() - before, 17u);
    before = run.model.tokens();
  }
  EXPECT_EQ(run.answers[1].tokens.size(), 1u);
  EXPECT_EQ(run.answers[2].tokens.size(), 0u);
}

// Vectors, echoes and answers run side by side in few pages, and are those of each alone.
TEST(Scheduler, VectorsAndEchoesRunBesideAnswers) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    base::Rng rng(seed);
    const SchedulerOptions limits = options(static_cast<uint32_t>(8 + rng.below(60)), 4);
    Trial run(limits, static_cast<uint32_t>(14 + rng.below(20)));
    std::map<uint64_t, Request> asked;
    const std::vector<uint32_t> common = tokens(64, 1);
    for (uint64_t number = 0; number < 24; ++number) {
      std::vector<uint32_t> prompt(common.begin(),
                                   common.begin() + static_cast<ptrdiff_t>(rng.below(64)));
      for (uint32_t token : tokens(1 + rng.below(60), static_cast<uint32_t>(rng.below(5))))
        prompt.push_back(token);
      Request one = request(number, prompt, static_cast<uint32_t>(1 + rng.below(30)));
      const auto kind = rng.below(4);
      if (kind < 2) {
        one.wanted = kind == 0 ? Wanted::mean_vector : Wanted::last_vector;
        one.tokens_max = 0;
      } else if (kind == 2) {
        one.echo = true;
        one.sampling.logprobs = 1;
        if (rng.chance(0.5)) one.tokens_max = 0;
      }
      ASSERT_TRUE(run.scheduler.add(one)) << number;
      asked.emplace(number, std::move(one));
      while (rng.chance(0.5)) run.step();
    }
    run.run_all();
    for (const auto& [number, one] : asked) {
      const Answer& answer = run.answers[number];
      if (one.wanted != Wanted::answer) {
        const std::vector<float> rows = FakeModel::all_vectors(one.prompt);
        double sums[kWidth] = {};
        const size_t first = one.wanted == Wanted::mean_vector ? 0 : rows.size() - kWidth;
        for (size_t i = first; i < rows.size(); ++i) sums[i % kWidth] += rows[i];
        double squares = 0;
        for (const double sum : sums) squares += sum * sum;
        ASSERT_EQ(answer.vector.size(), kWidth) << seed << ", " << number;
        for (size_t i = 0; i < kWidth; ++i)
          EXPECT_EQ(answer.vector[i], static_cast<float>(sums[i] / std::sqrt(squares)));
        EXPECT_EQ(answer.finish, Finish::stop);
        EXPECT_TRUE(answer.tokens.empty());
        continue;
      }
      std::vector<uint32_t> wanted;
      if (one.echo) wanted = one.prompt;
      if (one.tokens_max > 0) {
        for (const uint32_t token : FakeModel::answer(one, limits.context)) wanted.push_back(token);
      }
      EXPECT_EQ(answer.tokens, wanted) << seed << ", " << number;
      if (!one.echo) continue;
      EXPECT_TRUE(std::isnan(answer.logprobs[0]));
      EXPECT_EQ(std::vector(answer.logprobs.begin() + 1, answer.logprobs.end()),
                FakeModel::logprobs(wanted))
          << seed << ", " << number;
      EXPECT_EQ(answer.finish, Finish::length);
    }
  }
}

TEST(Scheduler, AVectorWithoutADirectionFailsItsRequest) {
  Trial run(options(64, 2), 40);
  Request one = request(0, tokens(20), 0);
  one.wanted = Wanted::mean_vector;
  ASSERT_TRUE(run.scheduler.add(one));
  const size_t rows = run.scheduler.plan().planned[0].outputs;
  run.scheduler.take({}, std::vector<float>(rows * kWidth));
  run.collect();
  EXPECT_EQ(run.answers[0].finish, Finish::failed);
}

TEST(Scheduler, WhatCanNeverRunIsRefusedAtOnce) {
  Scheduler scheduler(options(), 4);
  Request vector_and_tokens = request(0, tokens(4), 1);
  vector_and_tokens.wanted = Wanted::mean_vector;
  const std::pair<Request, const char*> wrong[] = {
      {request(0, {}, 1), "prompt"},
      {request(0, {kVocabulary}, 1), "prompt"},
      {request(0, tokens(200), 1), "prompt"},
      {request(0, tokens(60), 5), "max_tokens"},  // 65 tokens do not fit four pages
      {request(0, tokens(4), 0), "max_tokens"},
      {vector_and_tokens, "max_tokens"},
  };
  for (const auto& [one, name] : wrong) {
    const auto added = scheduler.add(one);
    ASSERT_FALSE(added.ok()) << name;
    EXPECT_EQ(added.error().code, ErrorCode::invalid_argument);
    EXPECT_EQ(added.error().message.find(name), 0u) << added.error().message;
  }
  EXPECT_TRUE(scheduler.add(request(0, tokens(60), 4)));
}

TEST(Scheduler, TooManyThatWaitAreRefused) {
  SchedulerOptions few = options();
  few.waiting_max = 2;
  Scheduler scheduler(few, 10);
  EXPECT_TRUE(scheduler.add(request(0, tokens(4), 1)));
  EXPECT_TRUE(scheduler.add(request(1, tokens(4), 1)));
  const auto third = scheduler.add(request(2, tokens(4), 1));
  ASSERT_FALSE(third.ok());
  EXPECT_EQ(third.error().code, ErrorCode::resource);
}

TEST(Scheduler, CancelledAndLateRequestsEndAndGiveTheirPagesBack) {
  Trial run(options(64, 2), 40);
  Request late = request(1, tokens(20, 1), 50);
  late.deadline = Time(std::chrono::seconds(5));
  ASSERT_TRUE(run.scheduler.add(request(0, tokens(20, 9), 50)));
  ASSERT_TRUE(run.scheduler.add(late));
  late.number = 2;  // waits
  ASSERT_TRUE(run.scheduler.add(late));
  run.step();
  EXPECT_EQ(run.scheduler.next_deadline(), late.deadline);
  EXPECT_TRUE(run.scheduler.cancel(0, Finish::cancelled));
  EXPECT_FALSE(run.scheduler.cancel(0, Finish::cancelled));
  run.scheduler.expire(late.deadline - std::chrono::nanoseconds(1));
  run.collect();
  EXPECT_EQ(run.answers[0].finish, Finish::cancelled);
  EXPECT_EQ(run.answers[1].finish, Finish::none);
  run.scheduler.expire(late.deadline);
  run.collect();
  EXPECT_EQ(run.answers[1].finish, Finish::deadline);
  EXPECT_EQ(run.answers[2].finish, Finish::deadline);
  EXPECT_EQ(run.scheduler.next_deadline(), kNever);
  EXPECT_FALSE(run.step());
  EXPECT_EQ(run.scheduler.pool().held(), 0u);
}

TEST(Scheduler, AStepThatFailsEndsItsRequestsAlone) {
  Trial run(options(64, 1), 40);
  ASSERT_TRUE(run.scheduler.add(request(0, tokens(20), 5)));
  ASSERT_TRUE(run.scheduler.add(request(1, tokens(20), 5)));
  EXPECT_EQ(run.scheduler.plan().planned.size(), 1u);
  run.scheduler.fail({.code = ErrorCode::resource, .message = "no memory"});
  run.collect();
  EXPECT_EQ(run.answers[0].finish, Finish::failed);
  run.run_all();
  EXPECT_EQ(run.answers[1].tokens.size(), 5u);
}

TEST(Scheduler, LogitsThatAreNoNumbersFailOneRequest) {
  Trial run(options(64, 2), 40);
  ASSERT_TRUE(run.scheduler.add(request(0, tokens(20, 1), 3)));
  ASSERT_TRUE(run.scheduler.add(request(1, tokens(20, 2), 3)));
  std::vector<float> logits = run.model.run(run.scheduler.plan());
  logits[3] = std::numeric_limits<float>::quiet_NaN();
  run.scheduler.take(logits);
  run.collect();
  EXPECT_EQ(run.answers[0].finish, Finish::failed);
  run.run_all();
  EXPECT_EQ(run.answers[1].finish, Finish::length);
}

TEST(Scheduler, TheContextEndsAnAnswer) {
  Trial run(options(), 40);
  ASSERT_TRUE(run.scheduler.add(request(0, tokens(190), 100)));
  run.run_all();
  EXPECT_EQ(run.answers[0].tokens.size(), 10u);
  EXPECT_EQ(run.answers[0].finish, Finish::length);
}

}  // namespace
}  // namespace scant::serve
