// What a step is worth in plain steps when its records keep a share of the energy. Pure; any
// thread.
#pragma once

namespace scant::plan {

// The share of energy that a plan keeps, by elements.
struct Kept {
  double elements = 1;    // of parts without factors
  double factors = 1;     // of parts with factors
  double of_factors = 0;  // the share of elements that is in parts with factors
  [[nodiscard]] double all() const { return (1 - of_factors) * elements + of_factors * factors; }
};

// Of parts without factors, and with. kept in 0 to 1; 1 from 0.999 on, never rising when kept
// falls.
[[nodiscard]] double progress_of_elements(double kept);
[[nodiscard]] double progress_of_factors(double kept);
[[nodiscard]] double progress(const Kept& kept);

}  // namespace scant::plan
