// Exchange over a Communicator: a group for each lane and for each value of members. Owner: the
// thread that owns the rounds calls everything but now(), which any may; `done` comes on the
// communicator's I/O thread. The communicator outlives this object, or its continue_on() another
// one. Always exact: a bounded delivery arrives as a whole, or fails.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gradient/exchange.h"
#include "gradient/meeting.h"
#include "scant/collective/communicator.h"

namespace scant::gradient {

class CommunicatorExchange final : public Exchange {
 public:
  struct Options {
    std::string key = "gradients";  // of its groups: equal on all ranks
    std::vector<Rank> ranks{};      // of the communicator; stations are places here; empty: all
  };
  static Result<std::unique_ptr<CommunicatorExchange>> create(Communicator& communicator,
                                                              const Options& options);
  // One that is no member yet: continue_on() makes it a newcomer among those who are.
  static std::unique_ptr<CommunicatorExchange> newcomer(std::string key);
  // Nothing is under way any more, or ends with ErrorCode::closed.
  ~CommunicatorExchange() override;
  CommunicatorExchange(const CommunicatorExchange&) = delete;
  CommunicatorExchange& operator=(const CommunicatorExchange&) = delete;

  [[nodiscard]] Time now() const override;
  // All stations, epoch 1, until continue_on() gives others. A newcomer before: none, epoch 0.
  [[nodiscard]] Members members() const override { return members_; }
  // The peer of an error is a rank of the communicator; after continue_on() a station.
  void submit(const Members& among, Operation operation, Done done) override;
  void cancel(const Members& among, Lane lane) override;

  struct ContinueOptions {
    std::vector<Rank> ranks{};            // of the communicator, that take part; empty: all
    uint64_t steps = 0;                   // that this rank has begun
    int layout_ranks = 0;                 // that its layout was cut for
    Duration timeout = Duration::zero();  // zero: the communicator's
  };
  // Between rounds: the members of the next ones are those who call it together. `next` is the same
  // communicator, after its shrink() say, or one that members created, with newcomers or without.
  // Who was a member keeps its station, newcomers get numbers that nobody had. Blocks until all
  // have told what they are. After an error the members are those of before.
  Result<Meeting> continue_on(Communicator& next, const ContinueOptions& options);

  // Makes the lane's group now instead of with its first operation. All members call it, in one
  // order with one another's groups of the same key.
  Result<void> make(const Members& among, Lane lane);

 private:
  // Members (by their hash), slot and leg.
  using Key = std::tuple<uint64_t, uint32_t, Leg>;
  struct Group {
    GroupId id = kWorldGroup;
    bool closed = false;
  };
  explicit CommunicatorExchange(std::string key) : key_(std::move(key)) {}
  [[nodiscard]] Result<std::vector<Arrival>> tell_all(Communicator& next,
                                                      const std::vector<Rank>& ranks,
                                                      const ContinueOptions& options) const;
  void attach(Communicator& to, std::vector<Rank> ranks, Members members);
  void release_groups();
  [[nodiscard]] Rank station() const;
  [[nodiscard]] Result<GroupId> group_of(const Members& among, Lane lane);
  [[nodiscard]] std::string name_of(const Members& among, Lane lane) const;
  [[nodiscard]] Work call(Operation& operation, GroupId group);

  Communicator* communicator_ = nullptr;  // a newcomer has none before continue_on()
  uint32_t communicator_epoch_ = 0;       // that groups_ and ranks_ are of
  const std::string key_;
  Members members_{.epoch = 0};
  Rank stations_used_ = 0;               // numbers below this were given to somebody
  std::map<Rank, Rank> rank_of_;         // of the communicator, by station of the members
  std::vector<Rank> station_of_rank_{};  // for errors; empty: their peers are ranks
  std::map<Key, Group> groups_;
};

}  // namespace scant::gradient
