// Selections that others publish, written plainly: what tests and comparisons hold the codec's own
// selection against. Each gives the ascending positions of what it would send. Magnitudes order by
// their bits, so that an infinity comes before every number and a NaN before an infinity. Slow, no
// state, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace scant::codec {

// The `count` largest magnitudes, all where there are fewer; of equal ones, the lowest positions.
[[nodiscard]] std::vector<size_t> select_top_k(std::span<const float> values, size_t count);

// ADTopk: of each row its max(1, floor(density * columns)) largest. Whole rows; density in (0, 1].
// The floor of one is part of the method, and so are the zeros that it sends of a row of zeros.
[[nodiscard]] std::vector<size_t> select_row_top_k(std::span<const float> values, size_t columns,
                                                   double density);

// `count` of `elements` positions, each set equally likely; another draw for another step.
[[nodiscard]] std::vector<size_t> select_random_k(size_t elements, size_t count, uint64_t seed,
                                                  uint64_t step);

// All whose magnitude is not below the threshold, NaN included, however many.
[[nodiscard]] std::vector<size_t> select_threshold(std::span<const float> values, float threshold);

}  // namespace scant::codec
