// Named threads that are always joined. A thread starts in start(), never in a constructor of a
// data class.
#pragma once

#include <functional>
#include <string>
#include <thread>

#include "scant/base/result.h"

namespace scant::base {

class Thread {
 public:
  Thread() = default;
  ~Thread();  // joins
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;

  // Returns once the thread is named and pinned; after an error `body` has not run and never will.
  // Linux cuts `name` to 15 characters; `cpu` -1 leaves the thread unpinned. The thread takes no
  // asynchronous signals.
  Result<void> start(const std::string& name, std::function<void()> body, int cpu = -1);
  void join();
  [[nodiscard]] bool running() const { return thread_.joinable(); }
  [[nodiscard]] std::thread::id id() const { return thread_.get_id(); }

 private:
  std::thread thread_;
};

}  // namespace scant::base
