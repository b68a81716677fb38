// What a step's averages were made from, and how an entry says it: the messages that all ranks
// decoded where there are some, the averaged bytes where not. Plain values, any thread.
#pragma once

#include <span>
#include <vector>

#include "codec/range.h"
#include "journal/step.h"
#include "scant/base/types.h"

namespace scant::journal {

// Averages that travelled together.
struct AveragedTogether {
  enum class From : uint8_t {
    owners,  // a message from each owner, whose records are averages
    ranks,   // a message from each rank, whose records are to be added in this order
    memory,  // no messages: the ranges below were averaged where they lie
  };
  struct Place {
    uint32_t tensor = 0;
    codec::Range range;  // of its elements, f32
  };
  From from = From::memory;
  std::vector<Bytes> messages{};
  // Parts whose records are factors, ascending; only with records of owners or ranks.
  std::vector<Matrix> matrices{};
  std::vector<Place> places{};  // memory alone
};

// The parts of an entry, in the order of `averages`, whose places are their numbers there.
// `gradients` by tensor; one that is too short for a range has no gradient in this step.
[[nodiscard]] std::vector<Part> parts_of(std::span<const AveragedTogether> averages,
                                         std::span<const Bytes> gradients);

}  // namespace scant::journal
