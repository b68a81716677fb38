// Bodies of the test support.
#include "net/testing/conformance_world.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <poll.h>
#include <thread>

namespace scant::net {
namespace {

constexpr auto kMachineTimeMax = std::chrono::minutes(1);  // only a defect takes that long

}  // namespace

std::vector<std::byte> payload_of(Rank from, Rank to, uint32_t index, size_t bytes) {
  std::vector<std::byte> content(bytes);
  const auto stream = static_cast<uint64_t>(from) << 32 | static_cast<uint64_t>(to);
  for (size_t i = 0; i < bytes; i += 8) {
    const uint64_t word = base::random_at(index, stream, i / 8);
    std::memcpy(content.data() + i, &word, std::min<size_t>(8, bytes - i));
  }
  return content;
}

MutableBytes RecordingSink::on_header(Rank, const FrameHeader& header) {
  if (discards && discards(header)) return {};
  std::vector<std::byte> memory(header.length);
  const MutableBytes view(memory);
  memory_.emplace(memory.data(), std::move(memory));
  return view;
}

void RecordingSink::on_frame(Rank peer, const FrameHeader& header, MutableBytes payload) {
  const std::string what =
      "frame " + std::to_string(header.operation) + " of rank " + std::to_string(peer);
  if (payload.size() != header.length) problems.push_back(what + " has another length");
  const auto expected = payload_of(peer, self_, header.operation, payload.size());
  if (!std::equal(payload.begin(), payload.end(), expected.begin(), expected.end())) {
    problems.push_back(what + " has other bytes");
  }
  if (!frames[peer].insert(header.operation).second) problems.push_back(what + " came twice");
  if (down.contains(peer)) problems.push_back(what + " came after its loss");
  payload_bytes += payload.size();
  if (!payload.empty()) memory_.erase(payload.data());
  if (also) also(peer, header);
}

void RecordingSink::on_sent(uint64_t token) {
  if (!tokens.insert(token).second) {
    problems.push_back("token " + std::to_string(token) + " came twice");
  }
}

void RecordingSink::on_peer_down(Rank peer, const Error& error) {
  if (!down.emplace(peer, error).second) {
    problems.push_back("rank " + std::to_string(peer) + " went down twice");
  }
}

World::World(const WorldKind& kind, int size, uint64_t seed)
    : kind_(kind), held_(static_cast<size_t>(size)), gone_(static_cast<size_t>(size)) {
  clock_.set(Time(std::chrono::hours(1)));
  for (Rank r = 0; r < size; ++r) sinks_.push_back(std::make_unique<RecordingSink>(r));
  if (kind.base != WorldKind::Base::simulated) {
    start_sockets(size);
    return;
  }
  SimulatedOptions options;
  options.size = size;
  options.seed = seed;
  options.peer_timeout = peer_timeout_;
  options.link = kind.link;
  options.heartbeat_traffic = kind.heartbeat_traffic;
  options.sent_when_acknowledged = kind.sent_when_acknowledged;
  network_ = std::make_unique<SimulatedNetwork>(options);
  for (Rank r = 0; r < size; ++r) {
    transports_.push_back(&network_->endpoint(r));
    network_->make_runnable(r);
  }
}

World::~World() = default;

void World::start_sockets(int size) {
  owned_.resize(static_cast<size_t>(size));
  MemoryStore store;
  std::vector<std::thread> threads;
  std::vector<std::string> errors(static_cast<size_t>(size));
  for (Rank r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      CommunicatorOptions options;
      options.rank = r;
      options.size = size;
      options.address = kind_.base == WorldKind::Base::tcp6 ? "::1" : "127.0.0.1";
      options.same_host_sockets = kind_.base == WorldKind::Base::unix_socket;
      options.connections_per_pair = kind_.lanes;
      options.peer_timeout = peer_timeout_;
      options.connect_timeout = kMachineTimeMax;
      auto made = TcpTransport::create(store, options, clock_);
      if (made) {
        owned_[index(r)] = std::move(made).value();
      } else {
        errors[index(r)] = made.error().to_string();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (Rank r = 0; r < size; ++r) {
    if (!owned_[index(r)]) {
      sinks_[index(r)]->problems.push_back(errors[index(r)]);
      gone_[index(r)] = true;
    }
    transports_.push_back(owned_[index(r)].get());
  }
}

void World::send(Rank from, Rank to, uint32_t index, size_t bytes, uint64_t token) {
  payloads_.push_back(payload_of(from, to, index, bytes));
  FrameHeader header;
  header.type = FrameType::data;
  header.operation = index;
  transport(from).send(to, header, payloads_.back(), token);
  if (simulated()) network_->make_runnable(from);
}

void World::poll(Rank rank) { transport(rank).poll(transport(rank).now(), sink(rank)); }

void World::poll_only(Rank rank) {
  if (simulated()) {
    transport(rank).poll(kNever, sink(rank));
  } else {
    poll(rank);
  }
}

// True when something happened, or might still be on its way.
bool World::round() {
  if (simulated()) {
    if (!network_->advance()) return false;
    for (const Rank r : network_->take_runnable()) transport(r).poll(kNever, sink(r));
    return true;
  }
  for (Rank r = 0; r < size(); ++r) {
    if (!gone_[index(r)] && !held_[index(r)]) poll(r);
  }
  return true;
}

bool World::run_until(const std::function<bool()>& condition) {
  const auto begin = std::chrono::steady_clock::now();
  while (!condition()) {
    if (!round()) return condition();
    if (std::chrono::steady_clock::now() - begin > kMachineTimeMax) return false;
    if (!simulated()) ::poll(nullptr, 0, 0);  // other processes of this machine get their turn
  }
  return true;
}

void World::pass(Duration duration) {
  if (!simulated()) {
    // In steps shorter than what transports take for a stall of their own.
    const Duration step = peer_timeout_ / 20;
    for (Duration passed{}; passed < duration; passed += step) {
      clock_.advance(std::min(step, duration - passed));
      // What is sent in one round is read in the next.
      for (int i = 0; i < 3; ++i) round();
    }
    return;
  }
  const Time until = network_->now() + duration;
  while (network_->advance(until)) {
    for (const Rank r : network_->take_runnable()) transport(r).poll(kNever, sink(r));
  }
}

void World::kill(Rank rank) {
  gone_[index(rank)] = true;
  if (simulated()) {
    network_->kill(rank);
  } else {
    owned_[index(rank)].reset();
  }
}

void World::hold(Rank rank, bool held) {
  held_[index(rank)] = held;
  if (!simulated()) return;
  if (held) {
    network_->stop(rank);
  } else {
    network_->resume(rank);
  }
}

void World::close(Rank rank, Duration within) {
  gone_[index(rank)] = true;
  if (simulated()) {
    transport(rank).close(network_->now() + within);
    return;
  }
  std::atomic<bool> done{false};  // pairs with the loop below
  std::thread closer([&] {
    transport(rank).close(transport(rank).now() + within);
    done.store(true, std::memory_order_release);
  });
  static_cast<void>(run_until([&] { return done.load(std::memory_order_acquire); }));
  closer.join();
}

std::string World::problems() const {
  std::string all;
  for (size_t r = 0; r < sinks_.size(); ++r) {
    for (const auto& problem : sinks_[r]->problems) {
      all += "at rank " + std::to_string(r) + ": " + problem + "\n";
    }
  }
  return all;
}

struct MemoryStore::Shared {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, std::string, std::less<>> values;
};

std::shared_ptr<MemoryStore::Shared> MemoryStore::make_shared_state() {
  return std::make_shared<Shared>();
}

Result<void> MemoryStore::set(std::string_view key, std::string_view value) {
  const std::lock_guard lock(shared_->mutex);
  shared_->values.insert_or_assign(std::string(key), std::string(value));
  shared_->changed.notify_all();
  return {};
}

Result<bool> MemoryStore::set_if_absent(std::string_view key, std::string_view value) {
  const std::lock_guard lock(shared_->mutex);
  const bool fresh = shared_->values.emplace(key, value).second;
  shared_->changed.notify_all();
  return fresh;
}

Result<std::string> MemoryStore::get(std::string_view key, Duration timeout) {
  std::unique_lock lock(shared_->mutex);
  const auto there = [&] { return shared_->values.contains(key); };
  if (!shared_->changed.wait_for(lock, timeout, there)) {
    return Error{ErrorCode::timeout, 0, kNoRank, "key '" + std::string(key) + "' did not appear"};
  }
  return shared_->values.find(key)->second;
}

}  // namespace scant::net
