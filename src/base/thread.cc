// Starting, naming, pinning and joining a thread.
#include "base/thread.h"

#include <pthread.h>
#include <sched.h>
#include <system_error>

#include "base/check.h"

namespace scant::base {
namespace {

constexpr size_t kNameMax = 15;  // Linux: 16 bytes with the terminator

Result<void> pin(pthread_t thread, int cpu) {
  if (cpu < 0 || cpu >= CPU_SETSIZE) {
    return Error{ErrorCode::invalid_argument, 0, kNoRank,
                 "cpu " + std::to_string(cpu) + " does not exist"};
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  const int failed = pthread_setaffinity_np(thread, sizeof(set), &set);
  if (failed != 0) {
    return Error{ErrorCode::io, failed, kNoRank,
                 "cannot pin a thread to cpu " + std::to_string(cpu)};
  }
  return {};
}

}  // namespace

Thread::~Thread() { join(); }

Result<void> Thread::start(const std::string& name, std::function<void()> body, int cpu) {
  SCANT_CHECK(!thread_.joinable(), "the thread runs already");
  try {
    thread_ = std::thread(std::move(body));
  } catch (
      const std::system_error& error) {  // the standard library offers no other way to learn of it
    return Error{ErrorCode::resource, error.code().value(), kNoRank, "cannot start thread " + name};
  }
  static_cast<void>(pthread_setname_np(thread_.native_handle(), name.substr(0, kNameMax).c_str()));
  return cpu >= 0 ? pin(thread_.native_handle(), cpu) : Result<void>();
}

void Thread::join() {
  if (thread_.joinable()) thread_.join();
}

}  // namespace scant::base
