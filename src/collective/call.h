// What a user asked for, as the engine sees it. Plain data; buffers belong to the user until the
// call is done.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "scant/collective/communicator.h"

namespace scant::collective {

enum class OpKind : uint8_t {
  all_reduce = 1,
  reduce,
  reduce_scatter,
  all_gather,
  broadcast,
  gather,
  scatter,
  all_to_all,
  send,
  recv,
  barrier,
  exchange,
};
inline constexpr OpKind kLastOpKind = OpKind::exchange;
[[nodiscard]] const char* name(OpKind kind);

enum class Algorithm : uint8_t {
  direct = 1,          // every pair once: 1 step, most messages
  halving_doubling,    // all_reduce: recursive halving then doubling; any group size by folding the
                       // remainder in
  recursive_doubling,  // all_reduce, barrier, all_gather of small parts: log2(P) full exchanges
  tree,                // broadcast, reduce, gather, scatter: binomial
  ring,                // bandwidth-optimal, 2(P-1) or P-1 steps, pipelined in segments
};
[[nodiscard]] const char* name(Algorithm algorithm);

struct Call {
  OpKind kind = OpKind::barrier;
  DType dtype = DType::u8;
  ReduceOp reduce = ReduceOp::sum;
  Rank root = 0;  // group rank; for send/recv the peer's group rank or kAnySource
  uint32_t tag = 0;
  GroupId group = kWorldGroup;
  Duration timeout{};
  int priority = 0;                     // of sending, among this rank's operations
  std::vector<Bytes> inputs{};          // one, or one part per group rank
  std::vector<MutableBytes> outputs{};  // one, or one part per group rank
  std::span<uint64_t> received{};       // exchange: bytes by group rank, set when it ends well
};

// The bytes that a part of an exchange may have: the size of the output parts, but that this rank's
// own part counts in a group of one alone.
[[nodiscard]] uint64_t exchange_capacity(const Call& call, Rank group_rank);

// Checks what this rank alone can know: part counts, sizes divisible by the element, equal in and
// out, root in range, reduce defined for the dtype. The message names the argument.
[[nodiscard]] Result<void> validate(const Call& call, Rank group_rank, int group_size);

}  // namespace scant::collective
