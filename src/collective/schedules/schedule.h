// A schedule is what one rank does in one collective: a list of steps with dependencies, computed
// by a pure function of (algorithm, group rank, group size, byte counts). It holds no addresses and
// does no I/O; the engine runs it. docs/collectives.md has the table of steps and bytes, and tests
// hold schedules to it.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "collective/call.h"

namespace scant::collective {

enum class Space : uint8_t { input, output, scratch };

struct Ref {
  Space space = Space::output;
  uint32_t part = 0;
  uint64_t offset = 0;
};

inline constexpr uint32_t kNoStep = UINT32_MAX;

struct Step {
  enum class Kind : uint8_t {
    send,            // a -> peer
    receive,         // peer -> destination
    receive_reduce,  // destination = combine(received, a), in the order that received_first says
    copy,            // destination = a
    reduce,          // destination = combine(a, b), a is the left operand
  };
  Kind kind = Kind::copy;
  bool received_first = false;  // receive_reduce: the received value is the left operand
  bool finish = false;          // last reduction of these elements: apply 1/P for ReduceOp::average
  Rank peer = kNoRank;          // group rank
  uint32_t slot = 0;            // k-th send from x to y pairs with y's k-th receive from x
  Ref a;
  Ref b;
  Ref destination;
  uint64_t bytes = 0;  // at most the segment size for steps that communicate
  std::array<uint32_t, 3> after = {
      kNoStep, kNoStep, kNoStep};  // steps that must be complete before this one starts;
                                   // a send is complete when its bytes are no longer read
};

struct Schedule {
  std::vector<Step> steps;  // topologically ordered: after[] refers backwards
  uint64_t scratch_bytes = 0;
};

struct ScheduleInput {
  OpKind kind = OpKind::all_reduce;
  Algorithm algorithm = Algorithm::ring;
  Rank rank = 0;  // group rank
  int size = 1;
  Rank root = 0;
  uint32_t element_bytes = 1;
  bool in_place = false;              // input and output are the same memory
  std::vector<uint64_t> input_bytes;  // per part of this rank's call
  std::vector<uint64_t> output_bytes;
  uint64_t segment_bytes = 256 * 1024;  // multiple of element_bytes is the generator's duty
};

// Which algorithms can serve this kind (first is the safest default).
[[nodiscard]] std::vector<Algorithm> algorithms_for(OpKind kind);
[[nodiscard]] Schedule make_schedule(const ScheduleInput& input);

// The formula of docs/collectives.md: messages and payload bytes this rank sends.
struct Traffic {
  uint64_t messages = 0;
  uint64_t bytes = 0;
};
[[nodiscard]] Traffic traffic(const Schedule& schedule);

}  // namespace scant::collective
