// The port under the gradients: what a round, an agreement on plans and a sounding need of whatever
// carries their bytes. Implementations: over a communicator, over engines in virtual time, and one
// exchange within another (hosts of a site within sites). docs/exchange.md is the contract; one
// conformance suite holds all of them to it. Owner threads: submit() and cancel() from the owner of
// the rounds; `done` is called on the exchange's own thread, or from within submit().
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "codec/record/record.h"
#include "gradient/members.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::gradient {

enum class Leg : uint8_t { first, second, verdict, agreement, owners, basis_first, basis_second };
inline constexpr int kLegCount = 7;
// What owners send to all; the first legs' counterpart.
[[nodiscard]] constexpr bool is_second(Leg leg) {
  return leg == Leg::second || leg == Leg::basis_second;
}

// An exchange carries lanes of slots 0 to kSlotsMax - 1: so many rounds can be under way together.
inline constexpr uint32_t kSlotsMax = 16;

// What keeps operations of one kind in one order on all members. Rounds that are under way together
// have different slots, so that none waits for the turn of another.
struct Lane {
  uint32_t slot = 0;
  Leg leg = Leg::first;
  friend bool operator==(const Lane&, const Lane&) = default;
};

// Exact: all of it arrives, or the operation fails. Bounded: it may end with less, and says what.
struct Delivery {
  bool exact = true;
  double share = 1;                      // bounded: of each message at least so much arrives
  Duration deadline = Duration::zero();  // bounded: what cannot be there then may be given up
  int priority = 0;                      // of sending, among this member's operations
};

// What did not arrive, of one record. Sender and receiver are told the same before they commit.
// Of a second leg every member is told what any receiver lacks, for nobody may apply that.
struct Missing {
  uint64_t round = 0;
  Leg leg = Leg::first;
  Rank sender = kNoRank;  // places
  Rank receiver = kNoRank;
  uint32_t slice = 0;
  std::vector<codec::Range> elements{};  // of the tensor; ascending, apart
};

// One operation of all members of a round. Its memory stays valid and untouched until `done`.
struct Operation {
  enum class Kind : uint8_t {
    all_reduce,  // span, on all members; dtype and op
    swap,        // sent[i] goes to place i, room[i] takes what comes from it, received[i] its size
    all_gather,  // sent[0] of all members, of one size, into room[place]
    gather,      // the same at `root` alone
    broadcast,   // span, from `root`
  };
  Kind kind = Kind::swap;
  Lane lane{};
  uint64_t round = 0;
  DType dtype = DType::u8;
  ReduceOp op = ReduceOp::sum;
  Rank root = 0;  // a place
  MutableBytes span{};
  std::vector<Bytes> sent{};
  std::vector<MutableBytes> room{};  // swap: of one capacity on all members
  std::span<uint64_t> received{};
  // swap: where the records of a message lie, so that what is missing can be told by slice; empty
  // for what is exact. By place, of what this member sends. A piece arrives whole or not at all;
  // those that arrived stand in the room in order, without gaps, and `received` is their size.
  struct Piece {
    uint32_t slice = 0;
    codec::Range range;  // of the tensor
    uint64_t begin = 0;  // of its record, in the message
    uint64_t bytes = 0;
  };
  std::vector<std::vector<Piece>> pieces{};
  Delivery delivery{};
  Duration timeout = Duration::zero();  // zero: the exchange's own
};

struct Outcome {
  Result<void> result{};
  std::vector<Missing> missing{};  // exact operations: always empty
};
using Done = std::function<void(const Outcome&)>;

class Exchange {
 public:
  virtual ~Exchange() = default;
  [[nodiscard]] virtual Time now() const = 0;
  // Who is there now. A round that has begun keeps the value of its beginning.
  [[nodiscard]] virtual Members members() const = 0;
  // Every member of `among` submits the same operations of a lane in the same order; lanes do not
  // wait for one another. Errors, those of the call itself included, come through `done`, once.
  virtual void submit(const Members& among, Operation operation, Done done) = 0;
  // What is under way in the lane ends with ErrorCode::closed, here and on the other members; the
  // lane can be used again under a later epoch only. What is not under way is no error.
  virtual void cancel(const Members& among, Lane lane) = 0;
};

}  // namespace scant::gradient
