// One operation of this rank while the engine runs it. Objects are recycled, so that a steady load
// allocates nothing for a step. States and transitions: docs/engine.md. Owner: the engine's thread.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "base/buffer.h"
#include "collective/engine/compiled_schedule.h"
#include "collective/engine/engine.h"
#include "collective/engine/matching.h"

namespace scant::collective {

struct Group;
struct Operation;

inline constexpr uint32_t kNoSlot = UINT32_MAX;

// What one operation has to do with one peer; parallel to Plan::peers.
struct Channel {
  enum class Listing : uint8_t { none, runnable, blocked };

  Operation* op = nullptr;
  uint32_t peer_index = 0;
  Rank station = kNoRank;
  uint32_t sends_left = 0;     // not yet off the transport's hands
  uint32_t receives_left = 0;  // not yet arrived whole
  uint64_t eager_sent = 0;
  uint64_t received_bytes = 0;   // exchange: in whole frames
  uint32_t last_slot = kNoSlot;  // exchange: where the part that comes ends
  bool granted = false;          // `ready` came
  bool requested = false;        // `request` went
  bool ready_sent = false;
  Listing listing = Listing::none;
  std::vector<uint32_t> queue;  // sends that may go, ascending from `queue_head`
  size_t queue_head = 0;

  void reset(Operation* operation, uint32_t index, Rank peer_station, const PeerPlan& plan);
  [[nodiscard]] bool empty() const { return queue_head == queue.size(); }
  [[nodiscard]] uint32_t front() const { return queue[queue_head]; }
  void push(uint32_t step);
  void pop();
};

enum class OpState : uint8_t { deferred, unbound, running, draining, ended };
enum class StepState : uint8_t { waiting, ready, busy, held, complete };

struct HeldPayload {
  uint32_t step = 0;
  Rank station = kNoRank;
  uint32_t charge = 0;
  base::Buffer buffer;
};

struct Operation {
  OpKey key;
  uint64_t age = 0;  // order of submission; never repeats, so it also tells a recycled object apart
  OpState state = OpState::ended;
  Call call;
  Engine::Done done;
  Group* group = nullptr;  // null once it drains: the group may end first
  net::CallDescriptor descriptor;
  uint32_t parts_hash = 0;
  Algorithm algorithm = Algorithm::direct;
  Plan* plan = nullptr;
  Time begun{};
  Time deadline = kNever;
  std::vector<uint8_t> waiting;  // by step: dependencies not complete
  std::vector<StepState> steps;
  uint32_t steps_left = 0;
  std::vector<Channel> channels;  // the first plan->peers.size() are in use
  std::vector<HeldPayload> held;  // came before their step was ready
  base::Buffer scratch;
  uint32_t sends_busy = 0;     // frames whose payload the transport reads
  uint32_t receives_busy = 0;  // payloads the transport writes into this operation's memory
  std::optional<Error> error;  // error.peer is a station
  Rank source = kNoRank;       // group rank
  size_t in_flight_index = 0;
  bool internal = false;  // a prelude: the user knows nothing of it
  std::array<double, 3> agreement{};

  [[nodiscard]] bool point_to_point() const {
    return call.kind == OpKind::send || call.kind == OpKind::recv;
  }
  [[nodiscard]] bool is_exchange() const { return call.kind == OpKind::exchange; }
  [[nodiscard]] std::byte* address(const Ref& ref) const;
  void prepare(Plan& with);  // counts and states of a plan that starts

  // exchange.cc: the schedule is that of the capacity, a part fills some of it.
  // What a send or copy moves.
  [[nodiscard]] uint64_t bytes_of(const Step& step) const;
  [[nodiscard]] bool beyond_part(const Step& send) const;
  [[nodiscard]] bool ends_part(const Step& send) const;
  // What is wrong with the size or the place of a data frame; null: nothing.
  [[nodiscard]] const char* objection(const Channel& channel, const net::FrameHeader& header) const;
  void tell_received() const;
};

// The descriptor that goes to, or is expected from, this group rank.
[[nodiscard]] net::CallDescriptor descriptor_for(const Operation& op, Rank peer, bool sending);
// Fills op.descriptor (but the algorithm) and op.parts_hash from op.call.
void fill_descriptor(Operation& op, Rank group_rank, int group_size);
// What the algorithm is chosen by: the bytes that the whole collective is about, equal on all
// ranks.
[[nodiscard]] uint64_t collective_bytes(const Call& call);
[[nodiscard]] ScheduleInput schedule_input(const Operation& op, Rank group_rank, int group_size,
                                           uint64_t segment_bytes);
// Whether two descriptors of the two sides of one transfer belong together.
[[nodiscard]] bool agree(const net::CallDescriptor& x, const net::CallDescriptor& y);
[[nodiscard]] bool parts_may_differ(OpKind kind);

}  // namespace scant::collective
