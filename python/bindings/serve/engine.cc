#include "bindings/serve/engine.h"

#include <chrono>
#include <cmath>
#include <limits>
#if defined(__GLIBC__)
#include <malloc.h>
#endif
#include <memory>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <string>
#include <utility>
#include <vector>

#include "bindings/base/errors.h"
#include "bindings/base/gil.h"
#include "bindings/base/options.h"
#include "bindings/serve/model.h"
#include "serve/file/mapped_file.h"
#include "serve/step/engine.h"
#include "serve/step/reading_speed.h"

namespace scant::python {
namespace {

using serve::Engine;
using serve::Event;
using serve::Finish;

Duration from_seconds(double seconds) {
  constexpr double kLongest = 1e9;
  return std::chrono::duration_cast<Duration>(
      std::chrono::duration<double>(std::min(seconds, kLongest)));
}

serve::Sampling sampling_of(const nb::dict& given) {
  Options options("sampling", given);
  serve::Sampling sampling;
  options.get("temperature", sampling.temperature);
  options.get("top_k", sampling.top_k);
  options.get("top_p", sampling.top_p);
  options.get("min_p", sampling.min_p);
  options.get("repetition_penalty", sampling.repetition_penalty);
  options.get("frequency_penalty", sampling.frequency_penalty);
  options.get("presence_penalty", sampling.presence_penalty);
  options.get("seed", sampling.seed);
  options.get("logprobs", sampling.logprobs);
  options.get("bias", sampling.bias);
  options.done();
  return sampling;
}

serve::Wanted wanted_of(const std::string& name) {
  if (name == "answer") return serve::Wanted::answer;
  if (name == "last") return serve::Wanted::last_vector;
  if (name == "mean") return serve::Wanted::mean_vector;
  refuse("wanted: there is no '" + name + "'; known: answer, last, mean");
}

nb::dict dict_of(const serve::EngineStats::Chosen& chosen) {
  nb::dict out;
  out["threads"] = chosen.threads;
  out["to_plain"] = chosen.to_plain;
  out["compared"] = chosen.compared;
  return out;
}

// (request, token, logprob, ((token, logprob), ...), finish, error, prompt tokens, cached tokens,
// vector as bytes)
nb::tuple tuple_of(const Event& event) {
  nb::object token = nb::none();
  nb::object logprob = nb::none();
  nb::list top;
  if (event.choice) {
    token = nb::int_(event.choice->token);
    // Of a prompt's first token there is none.
    if (!std::isnan(event.choice->logprob)) logprob = nb::float_(event.choice->logprob);
    for (const serve::Alternative& one : event.choice->top)
      top.append(nb::make_tuple(one.token, one.logprob));
  }
  nb::object finish = nb::none();
  if (event.finish != Finish::none) finish = nb::str(serve::name(event.finish));
  nb::object message = nb::none();
  if (event.finish == Finish::failed) message = nb::str(event.message.c_str());
  nb::object vector = nb::none();
  if (!event.vector.empty())
    vector = nb::bytes(event.vector.data(), event.vector.size() * sizeof(float));
  return nb::make_tuple(event.request, token, logprob, nb::tuple(top), finish, message,
                        event.prompt_tokens, event.cached_tokens, vector);
}

#if defined(__GLIBC__)
size_t free_heap_bytes() {
#if __GLIBC_PREREQ(2, 33)
  return ::mallinfo2().fordblks;
#else
  return std::numeric_limits<size_t>::max();  // mallinfo() counts up to 2 GiB alone
#endif
}
#endif

class RunningEngine {
 public:
  RunningEngine(const OpenModel& model, const nb::dict& given) {
    Options options("engine", given);
    serve::EngineOptions wanted;
    std::string kernels;
    std::string kv = "bf16";
    options.get("threads", wanted.threads);
    options.get("choose_threads", wanted.choose_threads);
    options.get("answer_wait_s", wanted.answer_wait_s);
    options.get("kernels", kernels);
    options.get("kv", kv);
    options.get("kv_bytes", wanted.kv_bytes);
    options.get("context", wanted.context);
    options.get("step_tokens", wanted.step_tokens);
    options.get("running_max", wanted.running_max);
    options.get("waiting_max", wanted.waiting_max);
    options.done();
    wanted.kernels = unwrap(serve::kernels_named(kernels));
    wanted.kv = kv_kind_of(kv);
    engine_ = unwrap(without_gil([&] { return Engine::start(model.get(), wanted); }));
  }
  ~RunningEngine() {
    const nb::gil_scoped_release release;  // waits for a step
    engine_.reset();
  }
  RunningEngine(const RunningEngine&) = delete;
  RunningEngine& operator=(const RunningEngine&) = delete;

  void submit(uint64_t number, std::vector<uint32_t> prompt, uint32_t tokens_max,
              const nb::dict& sampling, std::vector<uint32_t> stop_tokens, double deadline_s,
              bool echo, const std::string& wanted) {
    serve::Request request = {.number = number,
                              .prompt = std::move(prompt),
                              .tokens_max = tokens_max,
                              .sampling = sampling_of(sampling),
                              .stop_tokens = std::move(stop_tokens),
                              .wanted = wanted_of(wanted),
                              .echo = echo};
    if (deadline_s > 0) request.deadline = base::MonotonicClock().now() + from_seconds(deadline_s);
    unwrap(without_gil([&] { return engine_->submit(std::move(request)); }));
  }
  void cancel(uint64_t number) {
    without_gil([&] { engine_->cancel(number); });
  }
  nb::list poll(double timeout_s) {
    const auto events = without_gil([&] { return engine_->poll(from_seconds(timeout_s)); });
    nb::list all;
    for (const Event& event : events) all.append(tuple_of(event));
    return all;
  }
  [[nodiscard]] int fileno() const { return engine_->fd(); }
  void close() {
    without_gil([&] { engine_->close(); });
  }
  [[nodiscard]] bool closed() const { return engine_->closed(); }
  [[nodiscard]] uint32_t context() const { return engine_->limits().context; }
  [[nodiscard]] uint32_t open() const { return engine_->open(); }

  [[nodiscard]] nb::dict stats() const {
    const serve::EngineStats stats = engine_->stats();
    nb::dict out;
    out["running"] = stats.running;
    out["waiting"] = stats.waiting;
    out["requests"] = stats.counts.requests;
    out["steps"] = stats.counts.steps;
    out["prompt_tokens"] = stats.counts.prompt_tokens;
    out["answer_tokens"] = stats.counts.answer_tokens;
    out["cached_tokens"] = stats.counts.cached_tokens;
    out["paused"] = stats.counts.paused;
    out["pages"] = stats.pages;
    out["pages_held"] = stats.pages_held;
    out["step_s"] = stats.step_s;
    out["answer_steps"] = stats.answer_steps;
    out["answer_s"] = stats.answer_s;
    out["memory_bytes"] = stats.memory_bytes;
    out["vectors"] = stats.counts.vectors;
    out["multiply_adds"] = stats.work.products + stats.work.attention;
    out["multiply_adds_useful"] = stats.work.products + stats.work.seen;
    out["chosen_answers"] = dict_of(stats.answers);
    out["chosen_prompts"] = dict_of(stats.prompts);
    out["prompt_tokens_beside"] = stats.prompt_tokens_beside;
    return out;
  }

 private:
  std::unique_ptr<Engine> engine_;
};

}  // namespace

void bind_serve_engine(nb::module_& module) {
  // Bytes a second that so many threads read of a file, once it is in memory.
  module.def("reading_speed", [](const std::string& path, size_t threads) {
    return unwrap(without_gil([&]() -> Result<double> {
      const auto file = serve::MappedFile::open(path);
      if (!file) return file.error();
      return serve::reading_speed(file.value().bytes(), threads);
    }));
  });
  // The best first. The first call asks Linux for AMX's tiles.
  module.def("serve_kernels", [] {
    nb::list names;
    for (const std::string_view name : serve::kernel_names())
      names.append(nb::str(name.data(), name.size()));
    return names;
  });
  // What opening a model took and does not need any more goes back to the system.
  // What threads free goes back to the system, at the price of some page faults: one heap for all
  // threads, and pieces from 256 KiB on apart from it. glibc's own bounds grow with what was freed.
  module.def("keep_memory_small", [] {
#if defined(__GLIBC__)
    ::mallopt(M_ARENA_MAX, 1);
    ::mallopt(M_MMAP_THRESHOLD, 256 << 10);
    ::mallopt(M_TRIM_THRESHOLD, 1 << 20);
#endif
  });
  // Does nothing while less than so many bytes of the heap are free.
  module.def("give_memory_back", [](size_t free_bytes_min) {
#if defined(__GLIBC__)
    without_gil([&] {
      if (free_heap_bytes() >= free_bytes_min) static_cast<void>(::malloc_trim(0));
    });
#else
    static_cast<void>(free_bytes_min);
#endif
  });
  nb::class_<RunningEngine>(module, "Engine")
      .def(nb::init<const OpenModel&, const nb::dict&>(), nb::keep_alive<1, 2>())
      .def("submit", &RunningEngine::submit)
      .def("cancel", &RunningEngine::cancel)
      .def("poll", &RunningEngine::poll)
      .def("fileno", &RunningEngine::fileno)
      .def("close", &RunningEngine::close)
      .def("stats", &RunningEngine::stats)
      .def_prop_ro("closed", &RunningEngine::closed)
      .def_prop_ro("context", &RunningEngine::context)
      .def_prop_ro("open", &RunningEngine::open);
}

}  // namespace scant::python
