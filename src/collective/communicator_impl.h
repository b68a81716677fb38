// What a communicator holds: the queue of its user threads' commands and, beyond it, what its one
// I/O thread owns from start() on. User threads touch the queue and three atomics. docs/threads.md.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/queue.h"
#include "base/thread.h"
#include "collective/call.h"
#include "collective/engine/pump.h"
#include "collective/work.h"
#include "net/transport.h"
#include "scant/collective/communicator.h"

namespace scant {

struct Communicator::Impl {
  // Submissions that may wait for the I/O thread; a user thread that is further ahead blocks.
  static constexpr size_t kCommandsMax = 4096;

  struct Command {
    Work::State* state = nullptr;  // holds a reference
    std::function<void()> action;  // on the I/O thread; empty: submit `call`
    bool finishes_later = false;   // the action keeps the reference
    collective::Call call;
  };

  Impl(const CommunicatorOptions& given, std::unique_ptr<net::Transport> made)
      : options(given),
        transport(std::move(made)),
        engine(engine_options(given), collective::CostModel{}),
        pump(engine, *transport),
        rank(given.rank),
        size(given.size),
        epoch(engine.epoch()) {}

  static collective::EngineOptions engine_options(const CommunicatorOptions& given) {
    collective::EngineOptions made;
    made.rank = given.rank;
    made.size = given.size;
    made.operation_timeout = given.operation_timeout;
    return made;
  }

  [[nodiscard]] bool in_child() const {
    return fork_generation != Work::State::current_fork_generation();
  }

  // User threads.
  Work submit(collective::Call call, const CallOptions& how);
  Result<void> run_on_io_thread(std::function<void()> action, Duration limit);
  void stop(Duration timeout, std::optional<std::string> abort_reason,
            std::optional<std::string> failure = std::nullopt);

  // The I/O thread.
  void loop();
  void run();
  void execute(Command command);
  void expect(Work::State& state);
  void settle(Work::State& state, const Result<void>& outcome, Rank source);
  void begin_epoch(uint32_t next);
  void finish_rest(const Error& error);
  [[nodiscard]] Error why_closed() const;
  void close_down();
  void refresh_peers();

  const CommunicatorOptions options;
  std::unique_ptr<net::Transport> transport;
  collective::Engine engine;
  collective::Pump pump;
  base::BoundedQueue<Command> queue{kCommandsMax};
  const uint32_t fork_generation = Work::State::current_fork_generation();

  // Written by the I/O thread when a new epoch begins, read by any thread; alone, so relaxed order
  // serves.
  std::atomic<Rank> rank;
  std::atomic<int> size;
  std::atomic<uint32_t> epoch;

  bool stopping = false;                    // I/O thread
  std::optional<std::string> abort_reason;  // I/O thread
  std::optional<std::string> failure;       // I/O thread
  bool out_of_memory = false;               // I/O thread
  Work::State* expected = nullptr;          // I/O thread: all that it has to finish, in a list
  Time stop_deadline{};                     // I/O thread

  base::Mutex mutex;  // what user threads share besides the queue
  std::map<std::string, uint32_t> group_keys SCANT_GUARDED_BY(mutex);
  std::vector<PeerInfo> last_peers SCANT_GUARDED_BY(mutex);
  base::Mutex stop_mutex;  // one thread stops at a time
  bool stopped SCANT_GUARDED_BY(stop_mutex) = false;
  base::Thread thread;
};

}  // namespace scant
