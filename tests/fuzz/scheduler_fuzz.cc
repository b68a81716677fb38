// The scheduler under any order of requests, cancellations, deadlines and failing steps. No page is
// written by two sequences or while others read it, every request ends once, and at the end no page
// is held. Input: pages, limits, then operations, two bytes or more each.
#include <map>
#include <set>
#include <vector>

#include "fuzz_input.h"
#include "serve/step/scheduler.h"

using namespace scant;
using namespace scant::serve;

namespace {

constexpr uint32_t kVocabulary = 5;
constexpr size_t kWidth = 3;  // of vectors

// What is known of a request that is not over: its text, and how much of it has run.
struct Open {
  std::vector<uint32_t> text;
  size_t prompt = 0;
  size_t tokens_max = 0;
  size_t echoed = 0;  // tokens of the prompt that are still to be told
};

class Run {
 public:
  Run(SchedulerOptions options, uint32_t pages) : options_(options), scheduler_(options, pages) {
    memory_.resize(size_t{pages} * kPageTokens, UINT32_MAX);
  }

  void add(Request request) {
    const size_t prompt = request.prompt.size();
    Open open{request.prompt, prompt, request.tokens_max, request.echo ? prompt : 0};
    const uint64_t number = request.number;
    if (scheduler_.add(std::move(request)).ok()) open_[number] = std::move(open);
  }
  void cancel(uint64_t number) {
    SCANT_CHECK(scheduler_.cancel(number, Finish::cancelled) == open_.contains(number));
    take_events();
  }
  void expire(uint32_t now) {
    scheduler_.expire(Time{} + Duration(now));
    take_events();
  }
  // False: nothing can run.
  bool step(bool fails, uint32_t prompt_tokens = UINT32_MAX) {
    const Step& step = scheduler_.plan(prompt_tokens);
    if (step.planned.empty()) {
      SCANT_CHECK(scheduler_.running() == 0);
      return false;
    }
    for (const PageCopy& copy : step.copies) {
      SCANT_CHECK(copy.from != copy.to);
      std::copy_n(memory_.data() + size_t{copy.from} * kPageTokens, kPageTokens,
                  memory_.data() + size_t{copy.to} * kPageTokens);
    }
    std::set<uint32_t> written;
    size_t tokens = 0;
    std::vector<float> logits;
    std::vector<float> vectors;
    for (const Planned& one : step.planned) {
      SCANT_CHECK(!one.tokens.empty());
      tokens += one.tokens.size();
      const uint64_t end = one.position + one.tokens.size();
      SCANT_CHECK(end <= options_.context && one.pages.size() * kPageTokens >= end);
      for (uint64_t at = one.position; at < end; ++at) {
        const uint32_t page = one.pages[at / kPageTokens];
        if (at == one.position || at % kPageTokens == 0) SCANT_CHECK(written.insert(page).second);
        memory_[size_t{page} * kPageTokens + at % kPageTokens] = one.tokens[at - one.position];
      }
      SCANT_CHECK(one.outputs <= one.tokens.size());
      if (one.vectors) {
        vectors.insert(vectors.end(), size_t{one.outputs} * kWidth, 1.0f);
        continue;
      }
      for (uint64_t at = end - one.outputs; at < end; ++at) {
        for (uint32_t i = 0; i < kVocabulary; ++i)
          logits.push_back(static_cast<float>((at * 3 + i) % kVocabulary));
      }
    }
    SCANT_CHECK(tokens <= options_.step_tokens && step.planned.size() <= options_.running_max);
    check_texts(step);
    if (fails) {
      scheduler_.fail(Error{.code = ErrorCode::resource, .message = "no memory"});
    } else {
      scheduler_.take(logits, vectors);
    }
    take_events();
    return true;
  }
  void end() {
    while (step(false)) {
    }
    SCANT_CHECK(open_.empty() && scheduler_.waiting() == 0 && scheduler_.pool().held() == 0);
  }

 private:
  // The pages of each sequence hold the text of some open request, from its beginning.
  void check_texts(const Step& step) {
    for (const Planned& one : step.planned) {
      const uint64_t end = one.position + one.tokens.size();
      const bool found = std::ranges::any_of(open_, [&](const auto& open) {
        const std::vector<uint32_t>& text = open.second.text;
        if (text.size() < end) return false;
        for (uint64_t at = 0; at < end; ++at) {
          const uint32_t page = one.pages[at / kPageTokens];
          if (memory_[size_t{page} * kPageTokens + at % kPageTokens] != text[at]) return false;
        }
        return true;
      });
      SCANT_CHECK(found);
    }
  }
  void take_events() {
    for (const Event& event : scheduler_.events()) {
      const auto found = open_.find(event.request);
      SCANT_CHECK(found != open_.end());
      Open& open = found->second;
      if (event.choice && open.echoed > 0) {
        SCANT_CHECK(event.choice->token == open.text[open.prompt - open.echoed--]);
      } else if (event.choice) {
        open.text.push_back(event.choice->token);
      }
      SCANT_CHECK(open.text.size() - open.prompt <= open.tokens_max);
      if (event.finish != Finish::none) open_.erase(found);
    }
  }

  SchedulerOptions options_;
  Scheduler scheduler_;
  std::vector<uint32_t> memory_;
  std::map<uint64_t, Open> open_;
};

Request take_request(fuzz::Input& input, uint64_t number) {
  Request request{.number = number, .prompt = {}, .sampling = {}};
  const uint8_t shape = input.byte();
  const uint32_t length = input.byte() % 70;
  const uint8_t begin = input.byte();  // prompts of the same one begin alike
  for (uint32_t i = 0; i < length; ++i)
    request.prompt.push_back((i + 1 < length ? begin : shape) % kVocabulary);
  request.tokens_max = shape % 40;
  request.sampling.temperature = 0;
  if (shape % 3 == 0) request.stop_tokens = {shape % kVocabulary};
  if (shape % 7 == 0) {
    request.wanted = shape % 2 == 0 ? Wanted::mean_vector : Wanted::last_vector;
    request.tokens_max = 0;
  } else {
    request.echo = shape % 11 == 0;
  }
  if (shape % 5 == 0) request.deadline = Time{} + Duration(input.byte());
  return request;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint32_t pages = 1 + input.byte() % 12;
  const SchedulerOptions options{.vocabulary = kVocabulary,
                                 .context = 1u + input.byte() % 100,
                                 .step_tokens = 4u + input.byte() % 40,
                                 .running_max = 1u + input.byte() % 4,
                                 .waiting_max = 1u + input.byte() % 6};
  Run run(options, pages);
  uint64_t number = 0;
  while (!input.rest().empty()) {
    const uint8_t what = input.byte();
    switch (what % 8) {
      case 0:
      case 1:
      case 2:
        run.add(take_request(input, ++number));
        break;
      case 3:
        run.cancel(number - std::min<uint64_t>(number, input.byte() % 8));
        break;
      case 4:
        run.expire(input.byte());
        break;
      default:
        run.step(what == 255, 1u + input.byte());
    }
  }
  run.end();
  return 0;
}
