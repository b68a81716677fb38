// A network in one process and in virtual time: N transports joined by links that delay, drop,
// repeat, reorder and damage datagrams as a seed decides. One thread owns the network and all its
// endpoints. Nothing happens between two calls: a runner moves time and pumps whoever is due,
//
//   while (network.advance()) for (Rank r : network.take_runnable()) pump(network.endpoint(r));
//
// and the same seed gives the same run. Links and peers are allocated on first use, so 1,024 idle
// endpoints cost little; heartbeats are traffic only when asked for (SimulatedOptions).
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <unordered_map>
#include <variant>
#include <vector>

#include "base/event_queue.h"
#include "base/rng.h"
#include "net/transport.h"

namespace scant::net {

class SimulatedTransport;

// One direction of one pair.
struct LinkModel {
  uint64_t rate_bytes_per_second = 0;  // 0: no limit
  Duration latency = std::chrono::microseconds(50);
  Duration jitter = Duration::zero();  // added, uniform
  double loss = 0;                     // probability for each datagram
  double duplicate = 0;
  double corrupt = 0;  // one bit flips
  double reorder = 0;  // probability of an extra delay of up to `reorder_delay`
  Duration reorder_delay = std::chrono::milliseconds(1);
  Duration queue_max = Duration::max();  // a datagram that would wait longer is dropped
};

struct SimulatedOptions {
  int size = 2;
  uint64_t seed = 0;
  Duration peer_timeout = std::chrono::milliseconds(1500);
  LinkModel link;                // of every pair until set_link()
  size_t datagram_bytes = 8192;  // of a datagram, at most
  // False: heartbeats are not sent; a silence is judged from what the network knows of deaths and
  // cuts. True: every endpoint sends them, as the tcp transport does; costs size^2.
  bool heartbeat_traffic = false;
  // True: on_sent() comes when the frame is acknowledged, as with zero-copy sends, instead of when
  // its last datagram has left.
  bool sent_when_acknowledged = false;
};

struct LinkStatistics {
  uint64_t datagrams = 0;  // handed to the link
  uint64_t bytes = 0;
  uint64_t dropped = 0;  // lost, cut, queue full
  uint64_t duplicated = 0;
  uint64_t corrupted = 0;
};

enum class Death {
  process,  // the operating system resets its connections
  host,     // nothing is heard from it any more
};

class SimulatedNetwork {
 public:
  explicit SimulatedNetwork(const SimulatedOptions& options);
  ~SimulatedNetwork();
  SimulatedNetwork(const SimulatedNetwork&) = delete;
  SimulatedNetwork& operator=(const SimulatedNetwork&) = delete;

  [[nodiscard]] SimulatedTransport& endpoint(Rank rank);
  [[nodiscard]] int size() const { return options_.size; }
  [[nodiscard]] Time now() const { return events_.now(); }
  [[nodiscard]] uint64_t seed() const { return options_.seed; }
  [[nodiscard]] const SimulatedOptions& options() const { return options_; }

  // Somebody is due: true at once. Otherwise moves to the next event, at most to `limit`; false
  // when nothing happens until then (the clock stands at `limit`, or still if there is no limit).
  bool advance(Time limit = kNever);
  // Endpoints to poll now, in an order that the seed decides. An endpoint whose poll handled
  // something is due again, so that its owner can send what follows from it.
  [[nodiscard]] std::vector<Rank> take_runnable();
  void make_runnable(Rank rank);  // its owner has something to send

  void set_link(Rank from, Rank to, const LinkModel& model);
  void set_all_links(const LinkModel& model);
  // A link that is cut drops everything, what is under way too.
  void cut(Rank from, Rank to);
  void mend(Rank from, Rank to);
  // Ranks with different numbers cannot reach each other; replaces the last partition.
  void partition(std::vector<int> side_of_rank);
  void heal() { partition({}); }

  void kill(Rank rank, Death death = Death::process);
  // Like SIGSTOP: it does nothing while its bytes queue up; take_runnable() leaves it out.
  void stop(Rank rank);
  void resume(Rank rank);
  [[nodiscard]] bool alive(Rank rank) const { return !host(rank).dead; }
  [[nodiscard]] bool stopped(Rank rank) const { return host(rank).stopped; }
  // Runs once, at that time, between two polls.
  void at(Time time, std::function<void()> action);

  [[nodiscard]] LinkStatistics statistics(Rank from, Rank to) const;
  [[nodiscard]] LinkStatistics statistics() const;  // of all links together

 private:
  friend class SimulatedTransport;
  struct Arrival {
    Rank from = kNoRank;
    Rank to = kNoRank;
    std::vector<std::byte> bytes;
  };
  struct Timer {
    Rank rank = kNoRank;
  };
  struct Notice {
    Rank from = kNoRank;
    Rank to = kNoRank;
  };
  using Action = std::function<void()>;
  using Event = std::variant<Arrival, Timer, Notice, Action>;
  struct Link {
    bool own_model = false;
    LinkModel model;
    Time free_at{};  // when its last datagram has left
    bool cut = false;
    Time cut_since{};
    LinkStatistics statistics;
  };
  struct Host {
    bool dead = false;
    bool stopped = false;
    bool runnable = false;
    Time silent_since{};  // while dead or stopped
    Time timer = kNever;  // its earliest event in the queue
  };

  [[nodiscard]] static uint64_t key(Rank from, Rank to) {
    return static_cast<uint64_t>(from) << 32 | static_cast<uint64_t>(to);
  }
  [[nodiscard]] Host& host(Rank rank) { return hosts_[static_cast<size_t>(rank)]; }
  [[nodiscard]] const Host& host(Rank rank) const { return hosts_[static_cast<size_t>(rank)]; }
  [[nodiscard]] Link& link(Rank from, Rank to) { return links_[key(from, to)]; }
  [[nodiscard]] const LinkModel& model_of(const Link& of) const {
    return of.own_model ? of.model : options_.link;
  }
  void run(Arrival arrival);
  void run(Timer timer);
  void run(Notice notice);
  static void run(const Action& action) { action(); }
  [[nodiscard]] bool reachable(Rank from, Rank to) const;
  // Since when nothing of `from` reaches `to`; kNever: it does.
  [[nodiscard]] Time silent_since(Rank from, Rank to) const;
  void judge_later(Rank rank);
  void judge_all_later();

  // For the endpoints.
  void transmit(Rank from, Rank to, std::vector<std::byte> bytes);
  void deliver_at(Time at, Rank from, Rank to, std::vector<std::byte> bytes);
  // A goodbye to a peer that never exchanged a frame with this one: no link state needed.
  void notice(Rank from, Rank to);
  void schedule(Rank rank, Time at);
  void leave(Rank rank);  // closed, and all it sent has arrived or its time is over

  SimulatedOptions options_;
  base::Rng rng_;
  base::EventQueue<Event> events_;
  std::unordered_map<uint64_t, Link> links_;
  std::vector<Host> hosts_;
  std::vector<int> side_;
  Time side_since_{};
  std::vector<Rank> runnable_;
  std::atomic<int> wakes_{0};  // endpoints whose wake() was called; pairs with their woken_
  std::vector<std::unique_ptr<SimulatedTransport>> endpoints_;
};

}  // namespace scant::net
