// The public API: user threads queue commands, one I/O thread runs the pump and finishes their
// Work. What begins a call stands in communicator_calls.cc.
#include "scant/collective/communicator.h"

#include <algorithm>
#include <new>
#include <utility>

#include "base/check.h"
#include "base/crc.h"
#include "base/fault.h"
#include "collective/communicator_impl.h"
#include "collective/transport_factory.h"
#include "net/tcp/tcp_transport.h"

namespace scant {
namespace {

using namespace std::chrono_literals;

// Commands taken before the sockets get their turn.
constexpr int kCommandsPerTurn = 64;
// A Work reports by its operation's deadline plus the time that a frame in progress may take to
// drain.
constexpr Duration kReportGrace = 30s;
constexpr Duration kPollMax = 1s;

using base::closed;

uint32_t group_hash(const std::vector<Rank>& members, std::string_view key, uint32_t times,
                    uint32_t epoch) {
  std::string text(key);
  text += '\n' + std::to_string(times) + '\n' + std::to_string(epoch);
  for (const Rank member : members) text += ',' + std::to_string(member);
  const uint32_t hash = base::crc32c(std::as_bytes(std::span(text)));
  return hash == kWorldGroup ? 1 : hash;
}

}  // namespace

Work Communicator::Impl::submit(collective::Call call, const CallOptions& how) {
  const Duration timeout = how.timeout > Duration::zero() ? how.timeout : options.operation_timeout;
  const Duration grace = kReportGrace + options.peer_timeout;
  auto* state = new Work::State(timeout < Duration::max() - grace ? timeout + grace : timeout);
  Work work(state);
  if (in_child()) {
    state->finish(closed("the communicator belongs to the parent process"), kNoRank);
    return work;
  }
  call.group = how.group;
  call.timeout = how.timeout;
  call.priority = how.priority;
  state->add_reference();
  if (queue.push(Command{state, nullptr, false, std::move(call)})) {
    transport->wake();
  } else {
    state->finish(closed("the communicator is shut down"), kNoRank);
    state->drop_reference();
  }
  return work;
}

// Waits until the action has run. What it touches must outlive a timeout: capture shared state
// only.
Result<void> Communicator::Impl::run_on_io_thread(std::function<void()> action, Duration limit) {
  if (in_child()) return closed("the communicator belongs to the parent process");
  auto* state = new Work::State(limit);
  const Work work(state);
  state->add_reference();
  if (!queue.push(Command{state, std::move(action), false, {}})) {
    state->drop_reference();
    return closed("the communicator is shut down");
  }
  transport->wake();
  return work.wait(limit);
}

void Communicator::Impl::execute(Command command) {
  Work::State* state = command.state;
  if (state != nullptr) expect(*state);
  if (command.action) {
    command.action();
    if (state != nullptr && !command.finishes_later) settle(*state, {}, kNoRank);
    return;
  }
  engine.submit(
      transport->now(), std::move(command.call),
      [this, state](const Result<void>& outcome, Rank source) { settle(*state, outcome, source); });
}

void Communicator::Impl::expect(Work::State& state) {
  state.next = expected;
  if (expected != nullptr) expected->previous = &state;
  expected = &state;
}

// All groups went with the last epoch. Ranks that made unlike numbers of them, since one gave up,
// count alike again.
void Communicator::Impl::begin_epoch(uint32_t next) {
  const base::MutexLock lock(mutex);
  if (epoch.exchange(next, std::memory_order_relaxed) != next) group_keys.clear();
}

void Communicator::Impl::settle(Work::State& state, const Result<void>& outcome, Rank source) {
  (state.previous != nullptr ? state.previous->next : expected) = state.next;
  if (state.next != nullptr) state.next->previous = state.previous;
  state.finish(outcome, source);
  state.drop_reference();
}

// An allocation that fails on this thread leaves engine and connections in no known state: they are
// touched no more, and this rank is as good as lost. Its own operations end with `resource`; the
// others see it go at once.
void Communicator::Impl::loop() {
  try {
    run();
    close_down();
  } catch (const std::bad_alloc&) {
    out_of_memory = true;
    for (Rank station = 0; station < options.size; ++station) {
      if (station != options.rank) transport->forget(station);
    }
  }
  queue.close();
  finish_rest(why_closed());
}

void Communicator::Impl::run() {
  while (!stopping) {
    for (int taken = 0; taken < kCommandsPerTurn && !stopping; ++taken) {
      std::optional<Command> command = queue.try_pop();
      if (!command) break;
      execute(std::move(*command));
    }
    // The queue may hold more: then a wake() is due, and the poll returns at once.
    if (queue.size() > 0) transport->wake();
    if (!stopping) pump.step(transport->now() + kPollMax);
  }
}

Error Communicator::Impl::why_closed() const try {
  if (out_of_memory) {
    return {ErrorCode::resource, 0, options.rank, "no memory on the communicator's own thread"};
  }
  return closed(abort_reason ? "aborted: " + *abort_reason : "the communicator was shut down");
} catch (const std::bad_alloc&) {
  return Error{.code = ErrorCode::resource, .message = {}};
}

void Communicator::Impl::close_down() {
  const Error error = why_closed();
  queue.close();
  refresh_peers();
  engine.set_now(transport->now());
  if (failure) {
    const Error told{ErrorCode::failed, 0, options.rank,
                     "rank " + std::to_string(engine.rank()) + " failed: " + *failure};
    engine.fail_all(told);
    engine.tell_all(told);
  }
  engine.fail_all(error);
  if (abort_reason) {
    // No goodbye: the peers are to see a loss.
    for (const PeerInfo& peer : transport->peers()) {
      if (peer.rank != options.rank) transport->forget(peer.rank);
    }
    transport->close(transport->now());
  } else {
    while ((engine.operations_in_flight() > 0 || !engine.pending_peers().empty()) &&
           transport->now() < stop_deadline) {
      pump.step(std::min(stop_deadline, transport->now() + 50ms));
    }
    transport->close(stop_deadline);
  }
  // The object stays: a user thread may be about to wake it.
  engine.on_transport_closed(error);
}

void Communicator::Impl::finish_rest(const Error& error) {
  while (std::optional<Command> command = queue.try_pop()) {
    if (command->state != nullptr) expect(*command->state);
  }
  while (expected != nullptr) settle(*expected, error, kNoRank);
}

void Communicator::Impl::refresh_peers() {
  std::vector<PeerInfo> now;
  for (PeerInfo& peer : transport->peers()) {
    peer.rank = engine.rank_of(peer.rank);
    if (peer.rank != kNoRank) now.push_back(std::move(peer));
  }
  const base::MutexLock lock(mutex);
  last_peers = std::move(now);
}

void Communicator::Impl::stop(Duration timeout, std::optional<std::string> reason,
                              std::optional<std::string> failed) {
  if (in_child()) return;
  const base::MutexLock lock(stop_mutex);
  if (stopped) return;
  stopped = true;
  Command command;
  command.action = [this, timeout, reason = std::move(reason), failed = std::move(failed)] {
    stopping = true;
    abort_reason = reason;
    failure = failed;
    stop_deadline = transport->now() + timeout;
  };
  // False where the I/O thread has ended by itself, for want of memory.
  static_cast<void>(queue.push(std::move(command)));
  transport->wake();
  thread.join();
}

Communicator::Communicator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<Communicator>> Communicator::create(Store& store,
                                                           const CommunicatorOptions& options) {
  return CommunicatorFactory::create(store, options,
                                     [](Store& from, const CommunicatorOptions& how) {
                                       return net::TcpTransport::create(from, how);
                                     });
}

Result<std::unique_ptr<Communicator>> CommunicatorFactory::create(
    Store& store, const CommunicatorOptions& options, const collective::TransportFactory& factory) {
  const auto refuse = [](std::string message) {
    return Error{ErrorCode::invalid_argument, 0, kNoRank, std::move(message)};
  };
  if (options.size < 1 || options.size > 65535) {
    return refuse("size " + std::to_string(options.size) + " lies outside 1 to 65,535");
  }
  if (options.rank < 0 || options.rank >= options.size) {
    return refuse("rank " + std::to_string(options.rank) + " lies outside 0 to " +
                  std::to_string(options.size - 1));
  }
  if (options.operation_timeout <= Duration::zero() || options.peer_timeout <= Duration::zero() ||
      options.connect_timeout <= Duration::zero()) {
    return refuse("timeouts must be above zero");
  }
  base::set_check_rank(options.rank);
  Result<std::unique_ptr<net::Transport>> transport = factory(store, options);
  if (!transport) return transport.error();
  auto impl = std::make_unique<Communicator::Impl>(options, std::move(transport.value()));
  impl->refresh_peers();
  Communicator::Impl* shared = impl.get();
  const Result<void> started = impl->thread.start(
      "scant-io", [shared] { shared->loop(); }, options.io_cpu);
  if (!started) return started.error();
  return std::unique_ptr<Communicator>(new Communicator(std::move(impl)));
}

Communicator::~Communicator() {
  if (impl_->in_child()) {
    // The I/O thread exists in the parent only; joining it or freeing what it owns would hang or
    // corrupt.
    static_cast<void>(impl_.release());
    return;
  }
  static_cast<void>(shutdown());
}

Rank Communicator::rank() const { return impl_->rank.load(std::memory_order_relaxed); }
int Communicator::size() const { return impl_->size.load(std::memory_order_relaxed); }
uint32_t Communicator::epoch() const { return impl_->epoch.load(std::memory_order_relaxed); }

std::vector<PeerInfo> Communicator::peers() const {
  Impl* impl = impl_.get();
  // Fails when the communicator is shut down: then the last state stands.
  static_cast<void>(impl->run_on_io_thread([impl] { impl->refresh_peers(); }, 5s));
  const base::MutexLock lock(impl->mutex);
  return impl->last_peers;
}

Result<GroupId> Communicator::make_group(const std::vector<Rank>& members, std::string_view key) {
  GroupId id = 0;
  {
    std::string name(key);
    for (const Rank member : members) name += ',' + std::to_string(member);
    const base::MutexLock lock(impl_->mutex);
    id = group_hash(members, key, impl_->group_keys[name]++, epoch());
  }
  const auto outcome = std::make_shared<Result<void>>();
  Impl* impl = impl_.get();
  Result<void> ran = impl->run_on_io_thread(
      [impl, id, members, outcome] { *outcome = impl->engine.add_group(id, members); }, 30s);
  if (!ran) return ran.error();
  if (!*outcome) return outcome->error();
  return id;
}

Result<void> Communicator::release_group(GroupId group) {
  const auto outcome = std::make_shared<Result<void>>();
  Impl* impl = impl_.get();
  Result<void> ran = impl->run_on_io_thread(
      [impl, group, outcome] { *outcome = impl->engine.release_group(group); }, 30s);
  return ran ? *outcome : ran;
}

Result<std::vector<Rank>> Communicator::shrink(Duration timeout) {
  if (impl_->in_child()) return closed("the communicator belongs to the parent process");
  struct Shared {
    std::optional<Result<std::vector<Rank>>> survivors;
  };
  const auto shared = std::make_shared<Shared>();
  auto* state = new Work::State(timeout + kReportGrace);
  const Work work(state);
  state->add_reference();
  Impl* impl = impl_.get();
  Impl::Command command;
  command.state = state;
  command.finishes_later = true;
  command.action = [impl, shared, state, timeout] {
    const Time now = impl->transport->now();
    impl->engine.begin_shrink(now, now + timeout, [=](Result<std::vector<Rank>> survivors) {
      shared->survivors = std::move(survivors);
      impl->rank = impl->engine.rank();
      impl->size = impl->engine.size();
      impl->begin_epoch(impl->engine.epoch());
      impl->settle(*state, {}, kNoRank);
    });
  };
  if (!impl->queue.push(std::move(command))) {
    state->drop_reference();
    return closed("the communicator is shut down");
  }
  impl->transport->wake();
  const Result<void> waited = work.wait();
  if (!waited) return waited.error();
  SCANT_CHECK(shared->survivors.has_value());
  return *shared->survivors;
}

Result<void> Communicator::shutdown(Duration timeout) {
  impl_->stop(timeout, std::nullopt);
  return {};
}

Result<void> Communicator::fail(std::string_view reason, Duration timeout) {
  impl_->stop(timeout, std::nullopt, std::string(reason));
  return {};
}

void Communicator::abort(std::string_view reason) { impl_->stop(0s, std::string(reason)); }

}  // namespace scant
