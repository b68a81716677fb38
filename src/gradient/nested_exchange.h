// One exchange within another: an inner one among the hosts of a site, an outer one among a leader
// of each site. What crosses sites crosses once for each site: docs/exchange.md, "One within
// another". Owner: one thread; both exchanges call `done` on it, and outlive this one. Limits:
// every message is carried exactly, bounded ones too; a lane ends with the first error in it.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "gradient/exchange.h"
#include "gradient/nested_transfer.h"

namespace scant::gradient {

// A lane here is several of what it stands on.
inline constexpr uint32_t kLanesOfNestedSlot = 4;
inline constexpr uint32_t kNestedSlotsMax = kSlotsMax / kLanesOfNestedSlot;

class NestedExchange final : public Exchange {
 public:
  // `hosts` by station. The first member of a site leads it and needs `outer`; others have none, or
  // do not use it. `members` is who is there until change().
  NestedExchange(Exchange& inner, Exchange* outer, std::vector<HostPlace> hosts, Members members);
  // What is under way ends with `closed`; the two exchanges touch none of its memory any more.
  ~NestedExchange() override;

  [[nodiscard]] Time now() const override { return inner_.now(); }
  [[nodiscard]] Members members() const override { return members_; }
  void change(Members members) { members_ = std::move(members); }
  // The peer of an error is a station.
  void submit(const Members& among, Operation operation, Done done) override;
  void cancel(const Members& among, Lane lane) override;

  [[nodiscard]] size_t operations_in_flight() const;

 private:
  struct Moving {
    Transfer transfer;
    Done done;
    int stage = 0;           // that comes next, or is under way
    bool under_way = false;  // a part of it: its memory is in use
  };
  // What a failed lane tells: the leaders each other, then each leader its site.
  struct Farewell {
    std::vector<std::byte> own;
    std::vector<std::byte> all;
    bool under_way = false;
  };
  struct Channel {
    Members among;
    Lane lane;
    Sites sites;
    Duration timeout = Duration::zero();
    std::deque<std::unique_ptr<Moving>> moving;         // in the order of submission
    uint64_t first = 0;                                 // number of moving.front()
    std::array<uint64_t, kTransferStageCount> begun{};  // number of the next to begin this stage
    std::optional<Error> cause;                         // the lane has failed
    bool cause_known = false;                           // nobody has to be asked for it
    Farewell farewell;
    bool working = false;
  };
  using Key = std::pair<uint64_t, uint64_t>;  // hash of the members; slot and leg

  [[nodiscard]] static Key key_of(const Members& among, Lane lane) {
    return {among.hash(), uint64_t{lane.slot} << 8 | static_cast<uint64_t>(lane.leg)};
  }
  [[nodiscard]] Channel& channel_of(const Members& among, Lane lane);
  void work(Channel& channel);
  void begin_stage(Channel& channel, Moving& moving);
  void stage_ended(Channel& channel, Moving& moving, TransferStage stage, const Outcome& outcome);
  void fail(Channel& channel, Error cause);
  void say_farewell(Channel& channel);
  void farewell_across(Channel& channel);
  void farewell_inside(Channel& channel);
  [[nodiscard]] static Operation farewell_operation(const Channel& channel, Operation::Kind kind);
  void hear(Channel& channel, const Outcome& outcome, Bytes told, bool of_outer);
  void cancel_across(const Sites& sites, Lane lane);
  void end_moving(Channel& channel);
  [[nodiscard]] Error by_station(Error error, bool of_outer, const Channel& channel) const;

  Exchange& inner_;
  Exchange* const outer_;
  const std::vector<HostPlace> hosts_;
  Members members_;
  std::map<Key, std::unique_ptr<Channel>> channels_;
  uint64_t newest_epoch_ = 0;
};

}  // namespace scant::gradient
