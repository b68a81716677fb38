// Exchange over a Communicator: a group for each lane and for each value of members. Owner: the
// thread that owns the rounds calls everything but now(), which any may; `done` comes on the
// communicator's I/O thread. The communicator outlives this object. Always exact: a bounded
// delivery arrives as a whole, or fails.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "gradient/exchange.h"
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
  // Nothing is under way any more, or ends with ErrorCode::closed.
  ~CommunicatorExchange() override;
  CommunicatorExchange(const CommunicatorExchange&) = delete;
  CommunicatorExchange& operator=(const CommunicatorExchange&) = delete;

  [[nodiscard]] Time now() const override;
  // All stations, epoch 1.
  [[nodiscard]] Members members() const override;
  void submit(const Members& among, Operation operation, Done done) override;
  void cancel(const Members& among, Lane lane) override;

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
  CommunicatorExchange(Communicator& communicator, std::string key, std::vector<Rank> ranks,
                       Rank self);
  [[nodiscard]] Result<GroupId> group_of(const Members& among, Lane lane);
  [[nodiscard]] std::string name_of(const Members& among, Lane lane) const;
  [[nodiscard]] Work call(Operation& operation, GroupId group);

  Communicator& communicator_;
  const std::string key_;
  const std::vector<Rank> ranks_;
  const Rank self_;  // this station
  std::map<Key, Group> groups_;
};

}  // namespace scant::gradient
