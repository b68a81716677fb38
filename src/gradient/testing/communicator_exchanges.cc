// Exchanges over communicators on loopback: each has an I/O thread, one test drives them all.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "collective/testing/threads_as_ranks.h"
#include "gradient/communicator_exchange.h"
#include "gradient/testing/exchanges.h"

namespace scant::gradient {
namespace {

// Tells when an operation is done.
class Told final : public Exchange {
 public:
  Told(std::unique_ptr<CommunicatorExchange> exchange, std::function<void()> tell)
      : exchange_(std::move(exchange)), tell_(std::move(tell)) {}
  [[nodiscard]] Time now() const override { return exchange_->now(); }
  [[nodiscard]] Members members() const override { return exchange_->members(); }
  void submit(const Members& among, Operation operation, Done done) override {
    exchange_->submit(among, std::move(operation),
                      [this, done = std::move(done)](const Outcome& o) {
                        done(o);
                        tell_();
                      });
  }
  void cancel(const Members& among, Lane lane) override { exchange_->cancel(among, lane); }
  [[nodiscard]] CommunicatorExchange& told() { return *exchange_; }

 private:
  std::unique_ptr<CommunicatorExchange> exchange_;
  std::function<void()> tell_;
};

class Threads final : public Exchanges {
 public:
  explicit Threads(int size) : size_(size) {
    std::vector<std::unique_ptr<Communicator>> made = connect_all(size);
    for (Rank rank = 0; rank < size; ++rank) {
      auto& communicator = communicators_[rank] = std::move(made[static_cast<size_t>(rank)]);
      auto exchange = CommunicatorExchange::create(*communicator, {});
      if (!exchange) std::abort();
      exchanges_[rank] = told(std::move(exchange).value());
    }
  }
  ~Threads() override {
    exchanges_.clear();
    std::vector<std::unique_ptr<Communicator>> all;
    for (auto& [station, communicator] : communicators_) all.push_back(std::move(communicator));
    leave(all);
  }
  [[nodiscard]] int size() const override { return size_; }
  [[nodiscard]] Exchange& at(Rank station) override { return *exchanges_.at(station); }
  [[nodiscard]] uint32_t slots() const override { return kSlotsMax; }
  [[nodiscard]] bool run(const std::function<bool()>& over) override {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), over);
  }
  void pass(uint64_t) override {}
  ErrorCode lose(Rank station) override {
    exchanges_.erase(station);
    communicators_.erase(station);
    return ErrorCode::closed;
  }
  // Without newcomers on the same communicators, with them on others.
  [[nodiscard]] std::vector<Members> go_on(int newcomers) override {
    std::vector<Rank> survivors;
    for (const auto& [station, exchange] : exchanges_) survivors.push_back(station);
    const auto before = static_cast<size_t>(newcomers);
    std::vector<std::unique_ptr<Communicator>> next(before + survivors.size());
    if (newcomers > 0) next = connect_all(static_cast<int>(next.size()));
    std::vector<std::unique_ptr<Told>> joined;
    for (int i = 0; i < newcomers; ++i) {
      joined.push_back(told(CommunicatorExchange::newcomer("gradients")));
    }
    std::vector<Members> members(next.size());
    std::vector<std::thread> threads;
    for (size_t place = 0; place < next.size(); ++place) {
      threads.emplace_back([&, place] {
        const bool is_new = place < before;
        const Rank station = is_new ? kNoRank : survivors[place - before];
        Told& exchange = is_new ? *joined[place] : *exchanges_.at(station);
        Communicator& on = newcomers > 0 ? *next[place] : *communicators_.at(station);
        if (newcomers == 0) {
          ASSERT_TRUE(on.shrink(std::chrono::seconds(30)).ok());
        }
        const auto meeting = exchange.told().continue_on(on, {});
        ASSERT_TRUE(meeting.ok()) << meeting.error().to_string();
        members[place] = meeting.value().members;
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (size_t place = 0; newcomers > 0 && place < next.size(); ++place) {
      const Rank station = members[place].stations[place];
      if (place < before) exchanges_[station] = std::move(joined[place]);
      communicators_[station].swap(next[place]);
    }
    leave(next);
    std::ranges::sort(members, {}, &Members::self);
    return members;
  }
  [[nodiscard]] std::string leaks() override { return {}; }

 private:
  static std::vector<std::unique_ptr<Communicator>> connect_all(int size) {
    const collective::TemporaryDirectory directory;
    std::vector<std::unique_ptr<Communicator>> made(static_cast<size_t>(size));
    std::vector<std::thread> threads;
    for (Rank rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        made[static_cast<size_t>(rank)] = collective::connect(directory.path(), rank, size);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const auto& communicator : made) {
      if (communicator == nullptr) std::abort();
    }
    return made;
  }
  // Each waits for the others' goodbyes.
  static void leave(std::vector<std::unique_ptr<Communicator>>& communicators) {
    std::vector<std::thread> threads;
    for (auto& communicator : communicators) {
      threads.emplace_back([&communicator] { communicator.reset(); });
    }
    for (std::thread& thread : threads) thread.join();
  }
  [[nodiscard]] std::unique_ptr<Told> told(std::unique_ptr<CommunicatorExchange> exchange) {
    return std::make_unique<Told>(std::move(exchange), [this] {
      const std::lock_guard lock(mutex_);
      changed_.notify_all();
    });
  }

  const int size_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Rank, std::unique_ptr<Communicator>> communicators_;  // by station, as exchanges_
  std::map<Rank, std::unique_ptr<Told>> exchanges_;
};

std::unique_ptr<Exchanges> communicator_exchanges(int size, double, uint64_t) {
  return std::make_unique<Threads>(size);
}

}  // namespace

std::vector<Backend> backends() { return {{"communicator", communicator_exchanges}}; }

}  // namespace scant::gradient
