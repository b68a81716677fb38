// An exchange in virtual time: an engine of its own on one endpoint of a simulated network. Bounded
// messages lose what a seed decides, and both ends are told before they commit. Owner: the one
// thread that runs the network; `done` is called from submit(), cancel(), shrink() or pump().
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "collective/engine/pump.h"
#include "gradient/exchange.h"
#include "net/simulated/simulated_network.h"

namespace scant::gradient {

// What a network that repairs nothing does to bounded messages. All stations have the same values.
struct LossModel {
  uint64_t seed = 0;
  double chance = 0;  // of a piece, at each receiver
  // Of a link, for deadlines. A link that becomes slower later is not what this says.
  Duration latency = Duration::zero();
  uint64_t rate_bytes_per_second = 0;  // 0: no limit
};

// Pieces of the message to place `receiver` that it will not get, by their number: lost by chance,
// or those that a link of the model, with nothing else on it, could not bring by the deadline. A
// pure function of the model, round, leg, delivery, both places and pieces. At least
// `delivery.share` of the bytes arrives.
[[nodiscard]] std::vector<size_t> lost_pieces(const LossModel& model, const Operation& operation,
                                              Rank sender, Rank receiver);

struct SimulatedExchangeOptions {
  collective::EngineOptions engine{};  // its rank and size are those of the network
  LossModel loss{};
};

class SimulatedExchange final : public Exchange {
 public:
  SimulatedExchange(net::SimulatedNetwork& network, Rank station,
                    const SimulatedExchangeOptions& options);
  ~SimulatedExchange() override;

  [[nodiscard]] Time now() const override { return network_.now(); }
  [[nodiscard]] Members members() const override;
  // The peer of an error is a station.
  void submit(const Members& among, Operation operation, Done done) override;
  void cancel(const Members& among, Lane lane) override;

  // When the network says that this station is due.
  void pump();
  // Agrees with the survivors on the next epoch; what is under way ends with an error.
  using Shrunk = std::function<void(Result<Members>)>;
  void shrink(Duration limit, Shrunk done);
  // Ends what is under way with `closed`.
  void close(Duration limit);
  // The same for a station that was killed: nobody is told.
  void abandon();
  // Operations and buffers that something still holds.
  [[nodiscard]] size_t operations_in_flight() const { return engine_.operations_in_flight(); }
  [[nodiscard]] size_t buffers_out() const { return engine_.buffers_out(); }

 private:
  // A lane of certain members is a group of the engine.
  struct Group {
    GroupId id = kWorldGroup;
    bool cancelled = false;
  };
  // A bounded swap is two calls: the messages, and what is missing of them.
  struct Pending {
    Done done;
    Outcome outcome;
    int calls = 1;
    uint64_t round = 0;
    Leg leg = Leg::first;
    Rank self = kNoRank;
    std::vector<std::vector<std::byte>> sent;     // messages without what is lost of them
    std::vector<std::byte> own;                   // what any receiver lacks of this member's
    std::vector<std::vector<std::byte>> reports;  // the same by receiver
    std::vector<std::vector<std::byte>> rooms;
    std::vector<uint64_t> received;
  };
  using GroupKey = std::pair<uint64_t, uint64_t>;  // hash of the members; slot and leg

  [[nodiscard]] static GroupKey key_of(const Members& among, Lane lane) {
    return {among.hash(), uint64_t{lane.slot} << 8 | static_cast<uint64_t>(lane.leg)};
  }
  [[nodiscard]] Result<Group*> group_of(const Members& among, Lane lane);
  [[nodiscard]] collective::Call call_of(Operation& operation, GroupId group) const;
  void lose(Operation& operation, Pending& pending) const;
  void submit_report(collective::Call call, uint64_t number);
  void call_ended(uint64_t number, const Result<void>& result);
  static void read_reports(Pending& of);
  [[nodiscard]] Error by_station(Error error) const;

  net::SimulatedNetwork& network_;
  const Rank station_;
  const LossModel loss_;
  collective::Engine engine_;
  collective::Pump pump_;
  uint32_t epoch_ = 0;  // of groups_
  std::map<GroupKey, Group> groups_;
  std::map<uint64_t, std::unique_ptr<Pending>> pending_;
  uint64_t next_pending_ = 0;
};

}  // namespace scant::gradient
