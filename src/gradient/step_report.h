// What a round tells when it is over: times, bytes, energies, what the members said. Plain values,
// any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "codec/rate/probe.h"
#include "gradient/fusion_plan.h"
#include "gradient/verdict.h"
#include "scant/base/types.h"

namespace scant::gradient {

// When things happened, in seconds since the step's first ready().
struct BufferTimes {
  double ready = 0;  // last part there
  double encoded = 0;
  double first_begin = 0;
  double first_end = 0;
  double second_begin = 0;  // split
  double second_end = 0;    // split
  double done = 0;
  uint64_t first_bytes = 0;  // sent by this rank
  uint64_t second_bytes = 0;
  // Of buffers with matrix parts: both legs of the left factors.
  double basis_begin = 0;
  double basis_end = 0;
  uint64_t basis_bytes = 0;
};

struct PartReport {
  double ready = 0;   // seconds, as above
  double needed = 0;  // after finish(), less what was waited for by then; 0 without wait_for()
  double encode_s = 0;
  uint64_t bytes = 0;      // of this rank's records
  double energy = 0;       // of gradient + residual; 0 on path all_reduce
  double energy_left = 0;  // of the residual afterwards
};

struct StepReport {
  uint64_t step = 0;
  uint64_t plan_hash = 0;
  uint64_t members_hash = 0;
  std::vector<bool> present;  // by tensor: on any rank
  uint64_t nonfinite = 0;     // values, on all ranks
  uint64_t sent_bytes = 0;    // by this rank, headers of frames not counted
  // Buffers that got other owners within the round; of several changes each counts.
  uint32_t changed_buffers = 0;
  // Their averages are not finite either: whether that is an error is for the caller to say.
  std::vector<NotFinite> not_finite;
  // By rank: when one is lost, this is what it took along.
  std::vector<RankAccount> accounts;
  double backward_s = 0;  // first ready() to finish()
  double end_s = 0;       // first ready() to the end of the last buffer, and of the verdict
  double exposed_s = 0;   // finish() to the end; with wait_for(): what was waited in all
  double encode_s = 0;    // of work, by kind of job
  double add_s = 0;
  double decode_s = 0;
  std::vector<BufferTimes> buffers;
  std::vector<PartReport> parts;
  // Of each part, at codec::default_points(), where curves were wanted. Of a part that is cut, one
  // slice stands for all.
  std::vector<codec::Curve> curves;
};

// What the averages of a buffer were decoded from.
struct AveragedBuffer {
  Path path = Path::all_reduce;
  // split: one for each owner, whose records are averages. gather: one for each rank, whose records
  // are to be added in this order and divided by the number of ranks. all_reduce: none. In a buffer
  // with matrix parts these are coefficients and rests.
  std::vector<Bytes> messages{};
  // Likewise the left factors of matrix parts; empty if the buffer has no such part.
  std::vector<Bytes> basis_messages{};
  struct Matrix {
    uint32_t part = 0;
    uint32_t rank = 0;
  };
  std::vector<Matrix> matrices{};  // by part, ascending
  uint32_t first_part = 0;         // of the layout
  uint32_t parts = 0;
};

}  // namespace scant::gradient
