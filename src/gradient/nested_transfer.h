// What an operation of a nested exchange does in each of its stages, for one host: which operation
// it asks of the inner or the outer exchange, and what it does with what came. Plain values without
// I/O; the memory of a stage stays untouched while it is under way.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "gradient/exchange.h"

namespace scant::gradient {

// Where a station stands: its site, and its numbers in the inner and in the outer exchange.
struct HostPlace {
  Rank site = 0;
  Rank inner = 0;
  Rank outer = kNoRank;  // kNoRank: it cannot lead
};

// The members of a round as a host of one site sees them. Sites are counted in the order in which
// members first stand in them; the first member of a site leads it.
struct Sites {
  Members inner;                          // of the own site
  Members outer;                          // the leaders; `self` is kNoRank on others
  std::vector<std::vector<Rank>> places;  // by site
  std::vector<Rank> site_of;              // by place
  std::vector<Rank> place_inside;         // by place
  Rank own = 0;                           // site
  Rank self = 0;                          // place
  [[nodiscard]] bool leads() const { return outer.self != kNoRank; }
  [[nodiscard]] int count() const { return static_cast<int>(places.size()); }
  [[nodiscard]] const std::vector<Rank>& own_places() const {
    return places[static_cast<size_t>(own)];
  }
};
[[nodiscard]] Sites sites_of(const Members& among, const std::vector<HostPlace>& hosts);

enum class TransferStage : uint8_t {
  up,       // inside: to the leader
  between,  // leaders
  down,     // inside: from the leader
};
inline constexpr int kTransferStageCount = 3;

class Transfer {
 public:
  // `sites` outlives the transfer.
  Transfer(const Sites& sites, Operation operation);

  // What this host's call alone gets wrong.
  [[nodiscard]] Result<void> check() const;
  // None: this host has nothing to do in the stage. All hosts of a site, and all leaders, agree.
  [[nodiscard]] std::optional<Operation> begin(TransferStage stage);
  // ErrorCode::corrupt, mismatch: what came is not what was expected.
  [[nodiscard]] Result<void> end(TransferStage stage);
  [[nodiscard]] const Operation& operation() const { return operation_; }

 private:
  // Memory that is not cleared first: capacities are far above what comes.
  struct Room {
    std::unique_ptr<std::byte[]> memory;
    size_t size = 0;
    void reserve(size_t bytes);
    [[nodiscard]] MutableBytes view() const { return {memory.get(), size}; }
  };
  // A part of a bundle for a place: what `from` sent to `to`.
  struct Part {
    Rank from = 0;
    Rank to = 0;
  };
  [[nodiscard]] size_t part_bytes() const;  // of a message, at most
  [[nodiscard]] Operation ask(Operation::Kind kind) const;
  [[nodiscard]] Operation swap_among(size_t members);
  [[nodiscard]] std::optional<Operation> begin_up();
  [[nodiscard]] std::optional<Operation> begin_between();
  [[nodiscard]] std::optional<Operation> begin_down();
  [[nodiscard]] Operation swap_up();
  [[nodiscard]] Operation swap_between();
  [[nodiscard]] Operation swap_down();
  [[nodiscard]] Result<void> end_swap_up();
  [[nodiscard]] Result<void> end_swap_between();
  [[nodiscard]] Result<void> end_swap_down();
  [[nodiscard]] Operation gather_between();
  [[nodiscard]] Result<void> end_gather_between();
  void place_all();
  void deliver(Rank from, Bytes message);
  void bundle(std::vector<std::byte>& out, const std::vector<Part>& parts) const;
  [[nodiscard]] Result<void> unbundle(Bytes bundle, const std::vector<Part>& parts);
  [[nodiscard]] std::vector<Part> parts_up(Rank from) const;
  [[nodiscard]] std::vector<Part> parts_between(Rank from_site, Rank to_site) const;
  [[nodiscard]] std::vector<Part> parts_down(Rank to) const;
  [[nodiscard]] Bytes& held(Part part) {
    return held_[static_cast<size_t>(part.from) * static_cast<size_t>(size_) +
                 static_cast<size_t>(part.to)];
  }
  [[nodiscard]] const Bytes& held(Part part) const {
    return held_[static_cast<size_t>(part.from) * static_cast<size_t>(size_) +
                 static_cast<size_t>(part.to)];
  }

  const Sites& sites_;
  Operation operation_;
  const int size_;
  // swap, on a leader: messages on their way, by sender and receiver; they lie in the rooms below.
  std::vector<Bytes> held_;
  std::vector<std::vector<std::byte>> bundles_;
  std::vector<Room> up_;
  std::vector<Room> between_;
  std::vector<Room> down_;
  std::vector<uint64_t> received_;
  std::vector<std::byte> all_;  // gathers: of all members, by place
};

}  // namespace scant::gradient
