// What happens on a simulated network, and its links.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "net/simulated/simulated_transport.h"

namespace scant::net {
namespace {

constexpr Time kStart{std::chrono::hours(1)};  // so that "some time ago" exists

}  // namespace

SimulatedNetwork::SimulatedNetwork(const SimulatedOptions& options)
    : options_(options),
      rng_(options.seed, 0x6E6574),
      events_(kStart),
      hosts_(static_cast<size_t>(options.size)) {
  SCANT_CHECK(options.size >= 1 && options.size <= 65535);
  SCANT_CHECK(options.datagram_bytes >= kDatagramOverheadBytes + kFrameHeaderBytes &&
              options.datagram_bytes <= kDatagramBytesMax);
  base::set_check_seed(options.seed);
  for (Rank r = 0; r < options.size; ++r) {
    endpoints_.push_back(std::make_unique<SimulatedTransport>(*this, r));
  }
}

SimulatedNetwork::~SimulatedNetwork() = default;

SimulatedTransport& SimulatedNetwork::endpoint(Rank rank) {
  return *endpoints_[static_cast<size_t>(rank)];
}

bool SimulatedNetwork::advance(Time limit) {
  if (wakes_.exchange(0, std::memory_order_acquire) > 0) {
    for (Rank r = 0; r < size(); ++r) {
      if (endpoint(r).woken_.load(std::memory_order_relaxed)) make_runnable(r);
    }
  }
  while (runnable_.empty()) {
    std::optional<Event> event = events_.pop(limit);
    if (!event) break;
    // All that happens at this time, before anybody is polled.
    for (; event; event = events_.pop(now())) {
      std::visit([this](auto& what) { this->run(std::move(what)); }, *event);
    }
  }
  if (!runnable_.empty()) return true;
  if (limit != kNever) events_.advance(limit);
  return false;
}

void SimulatedNetwork::run(Arrival arrival) {
  if (host(arrival.to).dead) return;
  if (!reachable(arrival.from, arrival.to)) {
    ++link(arrival.from, arrival.to).statistics.dropped;
    return;
  }
  endpoint(arrival.to).receive(arrival.from, std::move(arrival.bytes));
  make_runnable(arrival.to);
}

void SimulatedNetwork::run(Timer timer) {
  if (host(timer.rank).timer == now()) host(timer.rank).timer = kNever;
  make_runnable(timer.rank);
}

void SimulatedNetwork::run(Notice notice) {
  if (host(notice.to).dead || !reachable(notice.from, notice.to)) return;
  endpoint(notice.to).notices_.push_back(notice.from);
  make_runnable(notice.to);
}

std::vector<Rank> SimulatedNetwork::take_runnable() {
  std::vector<Rank> due;
  due.swap(runnable_);
  for (const Rank rank : due) host(rank).runnable = false;
  std::erase_if(due, [this](Rank rank) {
    return host(rank).dead || host(rank).stopped || endpoint(rank).closed_;
  });
  for (size_t i = due.size(); i > 1; --i) std::swap(due[i - 1], due[rng_.below(i)]);
  return due;
}

void SimulatedNetwork::make_runnable(Rank rank) {
  Host& of = host(rank);
  if (of.dead || of.stopped) return;
  if (endpoint(rank).closed_) {
    endpoint(rank).linger();
    return;
  }
  if (std::exchange(of.runnable, true)) return;
  runnable_.push_back(rank);
}

void SimulatedNetwork::schedule(Rank rank, Time at) {
  if (host(rank).timer <= at) return;
  host(rank).timer = at;
  events_.schedule(at, Timer{rank});
}

void SimulatedNetwork::at(Time time, std::function<void()> action) {
  events_.schedule(time, std::move(action));
}

void SimulatedNetwork::transmit(Rank from, Rank to, std::vector<std::byte> bytes) {
  Link& on = link(from, to);
  const LinkModel& model = model_of(on);
  ++on.statistics.datagrams;
  on.statistics.bytes += bytes.size();
  const Time begin = std::max(now(), on.free_at);
  if (!reachable(from, to) || begin - now() > model.queue_max) {
    ++on.statistics.dropped;
    return;
  }
  on.free_at = begin;
  if (model.rate_bytes_per_second > 0) {
    const double seconds =
        static_cast<double>(bytes.size()) / static_cast<double>(model.rate_bytes_per_second);
    on.free_at += std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
  }
  const auto some = [this](Duration most) {
    if (most <= Duration::zero()) return Duration::zero();
    return Duration(static_cast<int64_t>(rng_.below(static_cast<uint64_t>(most.count()) + 1)));
  };
  const auto chance = [this](double probability) {
    return probability > 0 && rng_.chance(probability);
  };
  if (chance(model.loss)) {
    ++on.statistics.dropped;
    return;
  }
  const Time arrival = on.free_at + model.latency;
  if (chance(model.duplicate)) {
    ++on.statistics.duplicated;
    deliver_at(arrival + some(model.jitter) + some(model.reorder_delay), from, to, bytes);
  }
  if (chance(model.corrupt)) {
    ++on.statistics.corrupted;
    const uint64_t bit = rng_.below(bytes.size() * 8);
    bytes[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
  }
  const Duration extra = chance(model.reorder) ? some(model.reorder_delay) : Duration::zero();
  deliver_at(arrival + some(model.jitter) + extra, from, to, std::move(bytes));
}

void SimulatedNetwork::deliver_at(Time at, Rank from, Rank to, std::vector<std::byte> bytes) {
  events_.schedule(at, Arrival{from, to, std::move(bytes)});
}

void SimulatedNetwork::notice(Rank from, Rank to) {
  const auto found = links_.find(key(from, to));
  const LinkModel& model = found == links_.end() ? options_.link : model_of(found->second);
  events_.schedule(now() + model.latency, Notice{from, to});
}

void SimulatedNetwork::set_link(Rank from, Rank to, const LinkModel& model) {
  link(from, to).own_model = true;
  link(from, to).model = model;
}

void SimulatedNetwork::set_all_links(const LinkModel& model) {
  options_.link = model;
  for (auto& [pair, on] : links_) on.own_model = false;
}

void SimulatedNetwork::cut(Rank from, Rank to) {
  Link& on = link(from, to);
  if (std::exchange(on.cut, true)) return;
  on.cut_since = now();
  judge_later(to);
}

void SimulatedNetwork::mend(Rank from, Rank to) {
  link(from, to).cut = false;
  judge_later(to);
}

void SimulatedNetwork::partition(std::vector<int> side_of_rank) {
  SCANT_CHECK(side_of_rank.empty() || side_of_rank.size() == hosts_.size());
  side_ = std::move(side_of_rank);
  side_since_ = now();
  judge_all_later();
}

bool SimulatedNetwork::reachable(Rank from, Rank to) const {
  if (!side_.empty() && side_[static_cast<size_t>(from)] != side_[static_cast<size_t>(to)]) {
    return false;
  }
  const auto found = links_.find(key(from, to));
  return found == links_.end() || !found->second.cut;
}

Time SimulatedNetwork::silent_since(Rank from, Rank to) const {
  Time since = kNever;
  const Host& of = host(from);
  if (of.dead || of.stopped) since = of.silent_since;
  if (!side_.empty() && side_[static_cast<size_t>(from)] != side_[static_cast<size_t>(to)]) {
    since = std::min(since, side_since_);
  }
  const auto found = links_.find(key(from, to));
  if (found != links_.end() && found->second.cut) since = std::min(since, found->second.cut_since);
  return since;
}

void SimulatedNetwork::judge_later(Rank rank) {
  if (options_.heartbeat_traffic || host(rank).dead) return;
  // Now, to note from when on somebody is silent; the endpoint asks to be woken for the verdict.
  endpoint(rank).judge_at_ = now();
  schedule(rank, now());
}

void SimulatedNetwork::judge_all_later() {
  for (Rank r = 0; r < size(); ++r) judge_later(r);
}

void SimulatedNetwork::kill(Rank rank, Death death) {
  Host& of = host(rank);
  if (of.dead) return;
  if (!of.stopped) of.silent_since = now();
  of.dead = true;
  of.stopped = false;
  if (death == Death::process) endpoint(rank).reset_all();
  judge_all_later();
}

void SimulatedNetwork::stop(Rank rank) {
  Host& of = host(rank);
  if (of.dead || std::exchange(of.stopped, true)) return;
  of.silent_since = now();
  judge_all_later();
}

void SimulatedNetwork::resume(Rank rank) {
  if (!std::exchange(host(rank).stopped, false)) return;
  make_runnable(rank);
  judge_all_later();
}

void SimulatedNetwork::leave(Rank rank) {
  host(rank).dead = true;
  host(rank).silent_since = now();
  // Peers that its goodbye did not reach will find it silent; the others have it down already.
  if (!endpoint(rank).delivered_all()) judge_all_later();
}

LinkStatistics SimulatedNetwork::statistics(Rank from, Rank to) const {
  const auto found = links_.find(key(from, to));
  return found == links_.end() ? LinkStatistics{} : found->second.statistics;
}

LinkStatistics SimulatedNetwork::statistics() const {
  LinkStatistics sum;
  for (const auto& [pair, on] : links_) {
    sum.datagrams += on.statistics.datagrams;
    sum.bytes += on.statistics.bytes;
    sum.dropped += on.statistics.dropped;
    sum.duplicated += on.statistics.duplicated;
    sum.corrupted += on.statistics.corrupted;
  }
  return sum;
}

}  // namespace scant::net
