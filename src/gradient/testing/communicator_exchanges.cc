// Exchanges over communicators on loopback: each has an I/O thread, one test drives them all.
#include <chrono>
#include <condition_variable>
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

 private:
  std::unique_ptr<CommunicatorExchange> exchange_;
  std::function<void()> tell_;
};

class Threads final : public Exchanges {
 public:
  explicit Threads(int size) : communicators_(static_cast<size_t>(size)) {
    std::vector<std::thread> threads;
    for (Rank rank = 0; rank < size; ++rank) {
      threads.emplace_back([this, rank, size] {
        communicators_[static_cast<size_t>(rank)] =
            collective::connect(directory_.path(), rank, size);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const auto& communicator : communicators_) {
      if (communicator == nullptr) std::abort();
      auto made = CommunicatorExchange::create(*communicator, {});
      if (!made) std::abort();
      exchanges_.push_back(std::make_unique<Told>(std::move(made).value(), [this] {
        const std::lock_guard lock(mutex_);
        changed_.notify_all();
      }));
    }
  }
  ~Threads() override {
    exchanges_.clear();
    // Each waits for the others' goodbyes.
    std::vector<std::thread> threads;
    for (auto& communicator : communicators_) {
      threads.emplace_back([&communicator] { communicator.reset(); });
    }
    for (std::thread& thread : threads) thread.join();
  }
  [[nodiscard]] int size() const override { return static_cast<int>(communicators_.size()); }
  [[nodiscard]] Exchange& at(Rank station) override {
    return *exchanges_[static_cast<size_t>(station)];
  }
  [[nodiscard]] uint32_t slots() const override { return kSlotsMax; }
  [[nodiscard]] bool run(const std::function<bool()>& over) override {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), over);
  }
  void pass(uint64_t) override {}
  ErrorCode lose(Rank station) override {
    exchanges_[static_cast<size_t>(station)].reset();
    communicators_[static_cast<size_t>(station)].reset();
    return ErrorCode::closed;
  }
  [[nodiscard]] std::string leaks() override { return {}; }

 private:
  collective::TemporaryDirectory directory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Communicator>> communicators_;
  std::vector<std::unique_ptr<Told>> exchanges_;
};

std::unique_ptr<Exchanges> communicator_exchanges(int size, double, uint64_t) {
  return std::make_unique<Threads>(size);
}

}  // namespace

std::vector<Backend> backends() { return {{"communicator", communicator_exchanges}}; }

}  // namespace scant::gradient
