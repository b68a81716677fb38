// The inside of the engine, shared by engine.cc (submission, timers), receive.cc, transmit.cc,
// point_to_point.cc, failure.cc and epoch.cc. Ranks: `station` is the transport's numbering,
// `world` this epoch's, `group` a group's own. Owner: one thread. Limits: docs/engine.md.
#pragma once

#include <atomic>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <unordered_map>
#include <vector>

#include "base/counters.h"
#include "collective/engine/compiled_schedule.h"
#include "collective/engine/control.h"
#include "collective/engine/credit.h"
#include "collective/engine/engine.h"
#include "collective/engine/frame_pool.h"
#include "collective/engine/matching.h"
#include "collective/engine/membership.h"
#include "collective/engine/operation.h"

namespace scant::collective {

// How a collective ended, kept for the latest of each group to judge frames that come late.
struct HistoryRecord {
  uint32_t sequence = UINT32_MAX;
  net::CallDescriptor call;
  uint32_t parts_hash = 0;
  std::optional<Error> error;  // how it failed; error.peer is a station
};
inline constexpr size_t kHistoryRecords = 256;

// Receives of one (group, tag): sequences by source, and those that stand in line for a source.
struct Mailbox {
  std::map<Rank, uint32_t> next_receive;  // by station
  std::map<Rank, uint32_t> next_send;     // by station
  std::deque<Operation*> line;
};

// An operation the engine itself put into a group's sequence: those from `from` on need its
// outcome.
struct Prelude {
  uint32_t sequence = 0;
  uint32_t from = 0;
  bool ended = false;
  std::optional<CostParameters> adopt;
  std::optional<Error> error;  // its peer is a station, like that of every error that fails
};

struct Group {
  GroupId id = kWorldGroup;
  std::vector<Rank> stations;  // by group rank
  std::vector<Rank> rank_of;   // by station; kNoRank: no member
  Rank rank = kNoRank;         // this rank's
  CostModel model;
  uint32_t next_sequence = 0;       // of the next collective submitted
  uint32_t next_start = 0;          // of the next collective that begins
  std::deque<Operation*> deferred;  // null: ended while it waited
  std::deque<Prelude> preludes;     // whose outcome some collective has yet to take
  std::optional<Error> prelude_error;
  std::optional<Error> lost;       // the first member lost, not merely closed
  std::optional<Error> told_lost;  // a loss that another member told of
  bool some_closed = false;
  std::optional<Error> late_mismatch;
  std::vector<HistoryRecord> history;     // by sequence modulo kHistoryRecords
  std::map<uint32_t, Mailbox> mailboxes;  // by tag

  [[nodiscard]] int size() const { return static_cast<int>(stations.size()); }
};

struct OutControl {
  net::FrameHeader header;
  std::vector<std::byte> payload;
};

// A payload on its way in: into an operation's memory, or into a pooled buffer.
struct Incoming {
  const std::byte* target = nullptr;  // where its payload is received: tells frames apart
  Operation* op = nullptr;
  uint32_t step = 0;
  base::Buffer buffer;
};

struct Peer {
  explicit Peer(uint32_t window_bytes) : credit(window_bytes) {}
  Credit credit;
  std::optional<Error> down;
  std::vector<OutControl> control;  // from `control_head`
  size_t control_head = 0;
  std::vector<Channel*> runnable;  // what sends first comes last: see sends_after
  std::vector<Channel*> blocked;   // stopped by the window; in the same order
  std::vector<Incoming> incoming;
  size_t pending_index = SIZE_MAX;  // in Impl::pending
};

// A frame that the transport has not given back.
struct Sent {
  Operation* op = nullptr;  // data
  uint32_t step = 0;
  std::vector<std::byte> payload;  // control
};

struct EngineCounters {
  EngineCounters();
  base::Counter& stale;
  base::Counter& late;
  base::Counter& mismatches;
  base::Counter& eager;
  base::Counter& request;
  base::Counter& ready;
  base::Counter& credit;
  base::Counter& cancel;
  base::Counter& probes;
  base::Counter& unexpected_max;
};

enum class Notify : uint8_t { nobody, neighbours, group };
enum class Age : uint8_t { early, waiting, running, late };  // of the operation that a frame names

struct Engine::Impl {
  Impl(const EngineOptions& given, CostModel model);

  // Every public entry opens a scope; outcomes are reported when the outermost closes, so that a
  // callback may submit.
  class Scope {
   public:
    explicit Scope(Impl& impl) : impl_(impl) { ++impl_.depth; }
    // Who reports may find no memory, as any entry may. Where one has failed for it, that is told.
    ~Scope() noexcept(false) {  // NOLINT(performance-noexcept-destructor)
      try {
        if (impl_.depth == 1) impl_.report_outcomes();
      } catch (const std::bad_alloc&) {
        --impl_.depth;
        if (std::uncaught_exceptions() > exceptions_) return;
        throw;
      }
      --impl_.depth;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Impl& impl_;
    const int exceptions_ = std::uncaught_exceptions();  // when the entry was called
  };

  // engine.cc
  Operation& new_operation(Call call, Done done);
  void submit(Call call, Done done);
  void submit_collective(Group& group, Operation& op);
  [[nodiscard]] bool agrees_before(uint32_t sequence) const;
  [[nodiscard]] uint32_t preludes_before(uint32_t sequence) const;
  [[nodiscard]] std::string ordinal_text(const OpKey& key, bool unbound = false);
  void submit_preludes(Group& group);
  void submit_prelude(Group& group, Operation& op, uint32_t lead);
  void submit_agreement(Group& group);
  void begin(Operation& op);
  void replay(Operation& op, Early early);
  void send_readies(Operation& op);
  void start_deferred(Group& group);
  void take_preludes(Group& group, uint32_t sequence);
  void finish_prelude(const Operation& op, Group& group);
  void make_ready(Operation& op, uint32_t step);
  void combine(Operation& op, const Step& step, const std::byte* left, const std::byte* right);
  void complete(Operation& op, uint32_t step);
  void end_well(Operation& op);
  void end(Operation& op);
  void report_outcomes();
  void arm(Operation& op, Time at, bool probe);
  void on_timer();
  void ask_awaited(Operation& op);
  void choose_algorithm(Operation& op, const Group& group);
  void run_work();
  void record(Group& group, const Operation& op, std::optional<Error> error);
  [[nodiscard]] Group* find_group(GroupId id);
  [[nodiscard]] Operation* find_active(const OpKey& key);

  // point_to_point.cc
  void submit_point_to_point(Group& group, Operation& op);
  void bind(Group& group, Operation& op, Rank station);
  void match_line(Group& group, uint32_t tag);
  void heard_of(const OpKey& key);
  [[nodiscard]] Age age_of_message(const OpKey& key);

  // receive.cc
  MutableBytes on_header(Rank station, const net::FrameHeader& header);
  bool take(Rank station, const net::FrameHeader& header, Bytes payload);
  void on_frame(Rank station, const net::FrameHeader& header, Bytes payload);
  MutableBytes receive_into_pool(Rank station, const net::FrameHeader& header);
  [[nodiscard]] Error no_memory(const Error& why) const;
  void refuse_for_memory(Rank station, const net::FrameHeader& header, const Error& why);
  MutableBytes admit_data(Rank station, const net::FrameHeader& header, bool& accepted);
  [[nodiscard]] bool charge(Rank station, const net::FrameHeader& header);
  void deliver(Rank station, const net::FrameHeader& header, base::Buffer buffer);
  void deliver_to(Operation& op, HeldFrame frame);
  void deliver_data(Operation& op, HeldFrame frame);
  void deliver_ready(Operation& op, Rank station, const net::FrameHeader& header);
  void deliver_request(Operation& op, Rank station, const net::FrameHeader& header);
  void deliver_cancel(Rank station, const net::FrameHeader& header, Bytes payload);
  void apply_cancel(Rank station, const OpKey& key, Error error);
  void remember_loss(GroupId group, const Error& error);
  void deliver_late(Rank station, const net::FrameHeader& header);
  void refuse_released(Rank station, const net::FrameHeader& header);
  void consume(Operation& op, uint32_t step, const std::byte* payload, uint64_t bytes);
  void arrived(Operation& op, uint32_t step, const net::FrameHeader& header);
  void release(HeldFrame& frame);
  void discharge(Rank station, uint32_t charged);
  [[nodiscard]] Age age_of(const OpKey& key, Operation*& op);
  // The step that a data frame is for; kNoStep after the operation failed by mismatch.
  uint32_t check_data(Operation& op, Rank station, const net::FrameHeader& header);

  // exchange.cc
  [[nodiscard]] bool settle_part(Operation& op, Channel& channel, const net::FrameHeader& header);

  // transmit.cc
  std::optional<OutFrame> poll_transmit(Rank station);
  std::optional<OutFrame> next_data(Rank station);
  OutFrame data_frame(Channel& channel, bool eager);
  void on_sent(uint64_t token);
  uint64_t hold_sent(Sent sent);
  void list(Channel& channel, Channel::Listing where);
  void unlist(Channel& channel);
  void unblock(Rank station);
  void mark_pending(Rank station);
  void unmark_pending(Rank station);
  void queue_control(Rank station, net::FrameHeader header, std::vector<std::byte> payload = {});
  void send_ready(Operation& op, Channel& channel);
  [[nodiscard]] net::FrameHeader header_for(const Operation& op, net::FrameType type,
                                            Rank group_rank, bool about_my_send) const;

  // failure.cc
  void fail(Operation& op, Error error, Notify notify, Rank except = kNoRank);
  void notify_failure(const Operation& op, const Error& error, Notify notify, Rank except);
  void drop_early(const OpKey& key);
  void release(Early& heard);
  void drop_work(Operation& op);
  void mismatch(Operation& op, Rank station, const net::FrameHeader& theirs, const char* detail);
  void refuse_late(Rank station, const net::FrameHeader& theirs, const HistoryRecord& mine);
  void tell_all(const Error& error);
  void tell_members(const Group& group, const Error& error);
  void cancel_late(Rank station, const HistoryRecord& mine, GroupId group, const Error& error);
  void on_late_mismatch(Group& group, const Error& error);
  void expire(Operation& op);
  void on_peer_down(Rank station, const Error& error);
  [[nodiscard]] static const Error& cause_of(const Group& group, const Error& error);
  void fail_by_loss(Operation& op, Rank station, const Error& error);
  void fail_if_unreachable(Operation& op);
  void on_transport_closed(const Error& error);
  void drop_incoming(Peer& peer);
  [[nodiscard]] std::vector<Operation*> by_age() const;
  [[nodiscard]] std::string rank_name(Rank station) const;

  // epoch.cc
  Result<void> release_group(GroupId id);
  [[nodiscard]] Error released_by_this_rank() const;
  Result<void> add_group(GroupId id, const std::vector<Rank>& stations);
  void begin_shrink(Time deadline, ShrinkDone done);
  void on_proposal(Rank station, Bytes payload);
  void on_peer_shrinks(Rank station, const Proposal& proposal);
  void send_proposal();
  void check_membership();
  void enter_epoch();
  void clear_early();
  void end_shrink(Result<std::vector<Rank>> outcome);

  [[nodiscard]] uint32_t epoch_now() const { return membership.epoch(); }
  // Made when first needed: of a large world, a rank talks to few.
  [[nodiscard]] Peer& peer(Rank station) {
    std::unique_ptr<Peer>& known = peers[static_cast<size_t>(station)];
    if (!known) known = std::make_unique<Peer>(options.eager_window_bytes);
    return *known;
  }
  [[nodiscard]] const Error* down(Rank station) const {
    const std::unique_ptr<Peer>& known = peers[static_cast<size_t>(station)];
    return known && known->down ? &*known->down : nullptr;
  }
  [[nodiscard]] bool is_member(Rank station) const {
    return rank_of[static_cast<size_t>(station)] != kNoRank;
  }

  EngineOptions options;
  CostModel initial_model;
  Time now{};
  Rank self;                                 // station
  std::vector<Rank> station_of;              // by world rank of this epoch
  std::vector<Rank> rank_of;                 // by station
  std::vector<std::unique_ptr<Peer>> peers;  // by station
  std::vector<Rank> pending;
  std::map<GroupId, std::unique_ptr<Group>> groups;
  // Of this epoch, with the first sequence that this rank never began: what comes for them is late.
  std::unordered_map<GroupId, uint32_t> released;
  std::vector<std::unique_ptr<Operation>> operations;  // all that were ever made
  std::vector<Operation*> free_operations;
  std::vector<Operation*> in_flight;
  std::unordered_map<OpKey, Operation*, OpKeyHash> active;  // running
  EarlyTable early;
  std::vector<HeldFrame> future;  // frames of newer epochs
  FramePool pool;
  PlanCache plans{64};
  std::vector<Sent> sent;
  std::vector<uint32_t> free_sent;
  uint64_t ages = 0;
  std::vector<Operation*> ended;  // outcomes not yet reported
  int depth = 0;
  std::vector<std::pair<Operation*, uint32_t>> work;  // steps that just completed
  bool working = false;
  uint64_t unexpected_bytes = 0;
  uint64_t unexpected_bytes_max = 0;

  struct Timer {
    Time at;
    uint64_t age = 0;
    Operation* op = nullptr;
    bool probe = false;
    bool operator>(const Timer& other) const {
      return at != other.at ? at > other.at : age > other.age;
    }
  };
  std::vector<Timer> timers;  // a heap; entries of ended operations are skipped and swept
  [[nodiscard]] static bool live(const Timer& timer) {
    return timer.op->age == timer.age && (timer.op->state == OpState::running ||
                                          (!timer.probe && (timer.op->state == OpState::deferred ||
                                                            timer.op->state == OpState::unbound)));
  }

  Membership membership;
  Time shrink_deadline = kNever;
  ShrinkDone shrink_done;
  std::vector<std::pair<ShrinkDone, Result<std::vector<Rank>>>> shrink_outcomes;
  std::vector<Rank> forgotten;
  EngineCounters counters;
};

}  // namespace scant::collective
