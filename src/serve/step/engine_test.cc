// The engine over a small model: answers do not depend on threads and cuts, any thread may ask, and
// nothing is padded whatever the lengths are.
#include "serve/step/engine.h"

#include <chrono>
#include <gtest/gtest.h>
#include <map>
#include <thread>

#include "serve/testing/models.h"

namespace scant::serve {
namespace {

using testing::small_description;

struct Made {
  explicit Made(const Description& d) {
    testing::write_model(folder.at("a.scp"), d, {});
    auto opened = testing::open_model(folder.at("a.scp"));
    EXPECT_TRUE(opened.ok()) << opened.error().to_string();
    model = std::move(opened).value();
  }
  [[nodiscard]] std::unique_ptr<Engine> start(EngineOptions options) const {
    return Engine::start(*model, options).value();
  }
  testing::Folder folder;
  std::unique_ptr<Model> model;
};

std::vector<uint32_t> text(size_t n, uint64_t seed) {
  base::Rng rng(seed);
  std::vector<uint32_t> tokens(n);
  for (uint32_t& one : tokens) one = static_cast<uint32_t>(rng.below(100));
  return tokens;
}

Request request(uint64_t number, size_t prompt, uint32_t tokens_max) {
  return {.number = number,
          .prompt = text(prompt, number),
          .tokens_max = tokens_max,
          .sampling = {.temperature = 0}};
}

struct Answer {
  std::vector<uint32_t> tokens;
  std::vector<float> vector;
  Finish finish = Finish::none;
};
using Answers = std::map<uint64_t, Answer>;

// Polls until so many requests are over.
Answers collect(Engine& engine, size_t count) {
  Answers answers;
  size_t over = 0;
  while (over < count) {
    for (Event& event : engine.poll(std::chrono::seconds(60))) {
      Answer& answer = answers[event.request];
      if (event.choice) answer.tokens.push_back(event.choice->token);
      if (event.finish == Finish::none) continue;
      answer.finish = event.finish;
      answer.vector = std::move(event.vector);
      ++over;
    }
  }
  return answers;
}

TEST(Engine, AnswersAndVectorsAreTheSameForAnyThreadsAndCut) {
  Description d = small_description();
  d.context = 512;
  const Made made(d);
  Answers wanted;
  for (const EngineOptions& options : {EngineOptions{.threads = 1, .answer_wait_s = 0},
                                       EngineOptions{.threads = 4, .choose_threads = true},
                                       EngineOptions{.threads = 3, .answer_wait_s = 1e-9},
                                       EngineOptions{.threads = 2, .step_tokens = 64}}) {
    const auto engine = made.start(options);
    constexpr uint64_t kCount = 24;
    for (uint64_t i = 0; i < kCount; ++i) {
      Request one = request(i, 1 + 17 * i, 60);
      if (i % 3 == 0) {
        one.wanted = i % 2 == 0 ? Wanted::mean_vector : Wanted::last_vector;
        one.tokens_max = 0;
      }
      ASSERT_TRUE(engine->submit(std::move(one)).ok());
    }
    const Answers found = collect(*engine, kCount);
    if (wanted.empty()) wanted = found;
    for (const auto& [number, answer] : wanted) {
      EXPECT_EQ(found.at(number).tokens, answer.tokens) << number;
      EXPECT_EQ(found.at(number).vector, answer.vector) << number;
      EXPECT_EQ(found.at(number).finish, number % 3 == 0 ? Finish::stop : Finish::length);
      EXPECT_EQ(answer.vector.size(), number % 3 == 0 ? d.width : 0);
    }
    const EngineStats stats = engine->stats();
    EXPECT_GE(stats.answers.threads, 1u);
    EXPECT_LE(stats.answers.threads, options.threads);
    if (!options.choose_threads) {
      EXPECT_EQ(stats.answers.threads, options.threads);
    }
  }
}

TEST(Engine, AnyThreadSubmitsCancelsAndReads) {
  const Made made(small_description());
  const auto engine = made.start({.threads = 2, .choose_threads = true, .waiting_max = 1000});
  constexpr uint64_t kThreads = 4;
  constexpr uint64_t kEach = 40;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&engine, t] {
      for (uint64_t i = 0; i < kEach; ++i) {
        const uint64_t number = t * kEach + i;
        Request one = request(number, 1 + i % 13, 10);
        one.echo = i % 5 == 1;
        EXPECT_TRUE(engine->submit(std::move(one)).ok());
        if (i % 4 == 0) engine->cancel(number);
        EXPECT_LE(engine->stats().running, 64u);
      }
    });
  }
  const Answers answers = collect(*engine, kThreads * kEach);
  for (std::thread& one : threads) one.join();
  for (const auto& [number, answer] : answers) {
    const bool echoed = number % kEach % 5 == 1;
    if (answer.finish == Finish::length) {
      EXPECT_EQ(answer.tokens.size(), 10 + (echoed ? 1 + number % kEach % 13 : 0));
    } else {
      EXPECT_EQ(answer.finish, Finish::cancelled);
    }
  }
  EXPECT_EQ(engine->open(), 0u);
}

// Prompts and answers of Azure's trace of conversations, 2023 (CC-BY): every 484th row by length.
// A model this narrow spends most of its time in attention, so that it is the hardest case.
constexpr std::pair<size_t, uint32_t> kAzureConversation[] = {
    {42, 142},   {181, 91},   {194, 170},  {203, 207},  {213, 76},   {309, 18},   {375, 82},
    {383, 81},   {390, 104},  {395, 79},   {398, 94},   {401, 128},  {405, 104},  {410, 100},
    {420, 99},   {448, 86},   {877, 101},  {966, 404},  {996, 451},  {1013, 402}, {1027, 392},
    {1040, 392}, {1052, 97},  {1064, 428}, {1077, 376}, {1090, 405}, {1104, 393}, {1120, 409},
    {1140, 403}, {1168, 427}, {1223, 438}, {1313, 198}, {1335, 41},  {1644, 163}, {2088, 54},
    {2530, 35},  {3536, 144}, {4079, 32},  {4087, 39},  {4123, 48}};

TEST(Engine, FivePercentOfTheWorkAtMostIsPadding) {
  Description d = small_description();
  d.context = 8192;
  d.layers = 2;
  const Made made(d);
  const auto engine = made.start({.threads = 2, .choose_threads = true});
  uint64_t tokens = 0;
  uint64_t rows = 0;
  uint64_t seen = 0;
  for (uint64_t i = 0; i < std::size(kAzureConversation); ++i) {
    const auto [prompt, answer] = kAzureConversation[i];
    Request one = request(i, prompt, answer);
    one.prompt[0] = static_cast<uint32_t>(i);  // no two begin alike
    ASSERT_TRUE(engine->submit(std::move(one)).ok());
    // By hand: all tokens see those before in the first layer, those with outputs in the second.
    const uint64_t all = prompt + answer - 1;
    tokens += all;
    rows += answer;
    seen += all * (all + 1) / 2 + answer * (prompt + all) / 2;
  }
  static_cast<void>(collect(*engine, std::size(kAzureConversation)));
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.counts.prompt_tokens + stats.counts.answer_tokens, tokens);
  const uint64_t heads = uint64_t{d.heads} * d.head_size;
  const uint64_t keys = uint64_t{d.width} * (heads + 2 * d.kv_heads * d.head_size);
  const uint64_t rest = d.width * (heads + 3 * d.ffn);
  EXPECT_EQ(stats.work.products,
            tokens * (2 * keys + rest) + rows * (rest + uint64_t{d.width} * d.vocabulary));
  EXPECT_EQ(stats.work.seen, 2 * heads * seen);
  const double all = static_cast<double>(stats.work.products + stats.work.attention);
  const double useful = static_cast<double>(stats.work.products + stats.work.seen);
  EXPECT_LE(all / useful, 1.05);
}

}  // namespace
}  // namespace scant::serve
