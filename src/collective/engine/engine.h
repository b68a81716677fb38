// The engine: runs schedules as a protocol core without I/O, clock or thread. It matches frames to
// operations by (group, sequence, slot), holds early frames within a credit window, reports
// mismatches, enforces deadlines and carries operations through the loss of a peer. State tables:
// docs/engine.md. Owner: one thread (the I/O thread, or the simulator).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "collective/call.h"
#include "collective/schedules/cost_model.h"
#include "collective/schedules/schedule.h"
#include "net/transport.h"

namespace scant::collective {

struct EngineOptions {
  Rank rank = 0;  // world rank, equal to the transport's; later epochs renumber
  int size = 1;
  uint32_t epoch = 1;
  Duration operation_timeout = std::chrono::minutes(30);
  uint64_t segment_bytes = 256 * 1024;
  uint64_t eager_bytes = 256 * 1024;      // of one operation and pair that may go before `ready`
  uint32_t eager_window_bytes = 4 << 20;  // unexpected bytes a peer may have outstanding here
  Duration probe_after =
      std::chrono::milliseconds(100);  // then ask the peers that are still awaited
  uint32_t measure_first = 3;  // barriers before a group's first collective: a message's own time
  // The cost parameters of a group are agreed on before its collective of this sequence, before
  // those of twice, four times … it, and of every multiple of agree_every. 0: never.
  uint32_t agree_first = 8;
  uint32_t agree_every = 128;
};

struct OutFrame {
  net::FrameHeader header;
  Bytes payload;
  uint64_t token = 0;  // given back through on_sent; 0: none wanted
};

class Engine final : public net::TransportSink {
 public:
  // Called when an operation ends; `source` is set for recv from any source.
  using Done = std::function<void(const Result<void>& outcome, Rank source)>;

  Engine(const EngineOptions& options, CostModel model);
  ~Engine() override;

  Result<void> add_group(GroupId group,
                         const std::vector<Rank>& members);  // world ranks of this epoch
  // Fails what is pending in it; what still arrives for it is dropped. Not the world's group.
  Result<void> release_group(GroupId group);
  // Validates, starts at once; `done` may be called from inside.
  void submit(Time now, Call call, Done done);

  // TransportSink
  MutableBytes on_header(Rank peer, const net::FrameHeader& header) override;
  bool take(Rank peer, const net::FrameHeader& header, Bytes payload) override;
  void on_frame(Rank peer, const net::FrameHeader& header, MutableBytes payload) override;
  void on_sent(uint64_t token) override;
  void on_peer_down(Rank peer, const Error& error) override;

  void set_now(Time now);   // before any event of one poll round
  void on_timer(Time now);  // deadlines
  [[nodiscard]] Time next_deadline() const;
  // Peers that have something to send, then their next frame (order: docs/engine.md, Credit).
  [[nodiscard]] const std::vector<Rank>& pending_peers() const;
  std::optional<OutFrame> poll_transmit(Rank peer);

  // Membership. begin_shrink proposes; the outcome arrives through `done` with the survivors (old
  // world ranks).
  using ShrinkDone = std::function<void(Result<std::vector<Rank>> survivors)>;
  void begin_shrink(Time now, Time deadline, ShrinkDone done);

  // Stations that the last shrink left behind, for Transport::forget; empty afterwards.
  [[nodiscard]] std::vector<Rank> take_forgotten();

  // Ends every pending operation with this error.
  void fail_all(const Error& error);
  // This rank leaves, for a reason that its peers learn before they hear of its goodbye: whatever
  // needs it there then ends with this error.
  void tell_all(const Error& error);
  // The transport is closed and touches no memory any more: what still drains ends now.
  void on_transport_closed(const Error& error);
  [[nodiscard]] size_t operations_in_flight() const;
  [[nodiscard]] uint32_t epoch() const;
  [[nodiscard]] Rank rank() const;  // in this epoch
  [[nodiscard]] int size() const;
  [[nodiscard]] Rank rank_of(Rank station) const;  // in this epoch; kNoRank: left behind
  [[nodiscard]] size_t buffers_out() const;        // pooled buffers that someone holds
  [[nodiscard]] size_t early_operations() const;   // heard of, not begun here

  struct Impl;  // engine_impl.h

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace scant::collective
