// How long a step by a plan would take: the machine of a step on virtual time. Pure functions of a
// profile; any thread. docs/planner.md, "Prediction".
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "codec/point.h"
#include "gradient/fusion_plan.h"
#include "gradient/layout.h"

namespace scant::plan {

// Seconds of the codec's work, one thread.
struct WorkRates {
  struct Kind {
    double dense_s = 0;  // an element at density 1
    double entry_s = 0;  // an entry below
  };
  std::array<Kind, codec::kValueKindCount> encode{};
  std::array<Kind, codec::kValueKindCount> decode{};
  double scan_s = 0;    // an element that is looked at, below density 1
  double clear_s = 0;   // an element of a sum that is cleared and written, below density 1
  double record_s = 0;  // a record, whatever its size
  // Of factors: a product of a matrix with one direction, an element; and what makes a basis, of
  // each pair of directions a row.
  double product_s = 0;
  double basis_s = 0;
};

struct LinkRate {
  double alpha_s = 50e-6;            // one message
  double bytes_per_s = 1e9;          // sent by a rank in an exchange
  double reduced_bytes_per_s = 1e9;  // in an all_reduce
  // What it takes of this rank's cores: an exchange of next to nothing, and a byte more.
  double cpu_s = 0;
  double cpu_s_per_byte = 0;
};

struct Profile {
  std::vector<double> ready_s;  // by part, since the first
  // By part: computing between the end of backward and the moment that the part's average is
  // waited for. Empty: all are waited for at once.
  std::vector<double> needed_s;
  double backward_s = 0;
  double rest_s = 0;
  double contention = 0;          // seconds of backward for one of work or sending before its end
  double sending_s_per_byte = 0;  // seconds of computing for a byte sent
  WorkRates work;
  LinkRate link;
  double in_steps = 1;  // exchanges take so much longer in steps than between them
};

struct Prediction {
  double step_s = 0;
  double exposed_s = 0;
  double backward_s = 0;  // with what contention adds
  double end_s = 0;       // of the last buffer, since the first part was ready
  double work_s = 0;      // of the worker
  double sending_s = 0;   // of the cores, for messages
  double link_s = 0;      // of the link
  double sent_bytes = 0;  // by a rank
  // Buffers of whose first legs the link carries something before the end of backward.
  uint32_t begun_in_backward = 0;
};

// The share of work and sending that goes on beside computing, taken to be evenly spread up to the
// end of the last buffer.
[[nodiscard]] double beside_computing(double end_s, double exposed_s);

// profile.ready_s has one value a part of the layout; the plan is valid for it.
[[nodiscard]] Prediction predict(const gradient::FusionPlan& plan, const gradient::Layout& layout,
                                 const Profile& profile);

// Messages that follow one another in a leg of so many bytes.
[[nodiscard]] double messages_in_a_row(gradient::Path path, int ranks, double bytes_sent);

// Seconds of one thread to encode a range, and to add `records` of them up or decode one.
[[nodiscard]] double encode_s(const WorkRates& work, uint64_t elements, codec::Point point);
[[nodiscard]] double add_s(const WorkRates& work, uint64_t elements, codec::Point point,
                           int records);

}  // namespace scant::plan
