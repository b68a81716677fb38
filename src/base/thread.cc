// Starting, naming, pinning and joining a thread.
#include "base/thread.h"

#include <cerrno>
#include <csignal>
#include <future>
#include <pthread.h>
#include <sched.h>
#include <system_error>
#include <utility>

#include "base/check.h"

namespace scant::base {
namespace {

constexpr size_t kNameMax = 15;  // Linux: 16 bytes with the terminator

// Pins the calling thread.
Result<void> pin_to(int cpu) {
  if (cpu < 0 || cpu >= CPU_SETSIZE) {
    return Error{ErrorCode::invalid_argument, 0, kNoRank,
                 "cpu " + std::to_string(cpu) + " does not exist"};
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  const int failed = pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
  if (failed == 0) return {};
  // Linux answers EINVAL for a cpu that is offline, or that a container may not use.
  return Error{failed == EINVAL ? ErrorCode::invalid_argument : ErrorCode::io, failed, kNoRank,
               "cannot pin a thread to cpu " + std::to_string(cpu)};
}

// Signals are for the program's own threads: Python's main thread, say, must be the one that Ctrl-C
// interrupts. Faults and the profiler's clock stay with the thread that they concern.
void block_signals() {
  sigset_t set;
  sigfillset(&set);
  for (const int kept : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS, SIGPROF}) {
    sigdelset(&set, kept);
  }
  static_cast<void>(pthread_sigmask(SIG_BLOCK, &set, nullptr));
}

}  // namespace

Thread::~Thread() { join(); }

Result<void> Thread::start(const std::string& name, std::function<void()> body, int cpu) {
  SCANT_CHECK(!thread_.joinable(), "the thread runs already");
  std::promise<Result<void>> prepared;
  std::future<Result<void>> outcome = prepared.get_future();
  try {
    thread_ = std::thread([prepared = std::move(prepared), short_name = name.substr(0, kNameMax),
                           body = std::move(body), cpu]() mutable {
      block_signals();
      static_cast<void>(pthread_setname_np(pthread_self(), short_name.c_str()));
      const Result<void> pinned = cpu == -1 ? Result<void>() : pin_to(cpu);
      prepared.set_value(pinned);
      if (pinned.ok()) body();
    });
  } catch (
      const std::system_error& error) {  // the standard library offers no other way to learn it
    return Error{ErrorCode::resource, error.code().value(), kNoRank, "cannot start thread " + name};
  }
  Result<void> result = outcome.get();
  if (!result.ok()) thread_.join();
  return result;
}

void Thread::join() {
  if (thread_.joinable()) thread_.join();
}

}  // namespace scant::base
