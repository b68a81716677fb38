// The mass of a round of all members, element by element: what they held and fed in is what was
// applied and what they hold afterwards, within the roundings of the stated arithmetic. Plain
// values; docs/exchange.md, "What the simulator holds trainings to", derives the bound.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gradient/gradient_step.h"

namespace scant::sim {

// A rank's residuals, by element of the arena.
struct Held {
  std::vector<double> worker;
  std::vector<double> owner;
};
[[nodiscard]] Held held_by(const gradient::GradientStep& step);

// One rounding of f32, and one of the residual's kind beyond that, relative to the value; i8 rounds
// relative to the largest value that shares a scale.
struct Roundings {
  double f32 = 0x1p-24;
  double residual = 0;
  double residual_of_largest = 0;
  bool bounded = false;  // of a leg: records may come back in a round that ends well
  uint32_t rank = 0;     // that matrix parts may have
};
[[nodiscard]] Roundings roundings_of(codec::ResidualKind kind, bool bounded, uint32_t rank);

class RoundLedger {
 public:
  RoundLedger(const gradient::Layout& layout, const gradient::Seat& seat, Roundings roundings);

  // By a member when it begins: `fed` is its gradient, 0 where it has none.
  void begin(const Held& held, std::span<const float> fed);
  // By a member when its round has ended well; empty when its average has the bits of the others'.
  [[nodiscard]] std::string end(const Held& held, std::span<const float> average);
  // By a member that was lost after all others had its part.
  void keep(const Held& held);
  // Once all members have begun and ended: what does not add up, or nothing.
  [[nodiscard]] std::string check() const;

  // Of all that a member may encode in this round: the most of a sum of squares.
  [[nodiscard]] double energy_met(const Held& held, std::span<const float> fed) const;
  // Of one member: what changes when members or duties do. Nothing may be lost on the way.
  [[nodiscard]] std::string check_adopted(const Held& before, const Held& after) const;
  // Of a member whose round has ended well: what plain buffers sent is kept nowhere, nor what the
  // owner of a gathered slice had. Where the member had a gradient.
  [[nodiscard]] std::string check_sent(const Held& after, std::span<const float> fed,
                                       const gradient::FusionPlan& plan) const;
  // Of a member that took its records back: of each slice, what it held at the beginning, or with
  // the gradient. Buffers that went plain are left out.
  [[nodiscard]] std::string check_returned(const Held& before, const Held& after,
                                           std::span<const float> fed,
                                           const gradient::FusionPlan& plan) const;

 private:
  [[nodiscard]] double bound(uint64_t element) const;
  [[nodiscard]] double bound_returned(uint32_t slice) const;
  [[nodiscard]] double bound_of_factors(uint32_t slice) const;
  [[nodiscard]] std::string check_returned(uint32_t slice, const Held& before, const Held& after,
                                           std::span<const float> fed) const;
  [[nodiscard]] codec::Range place_of(uint32_t slice) const;  // in the arena
  // The most that a member may encode of an element.
  [[nodiscard]] double met(const Held& held, std::span<const float> fed, uint64_t element) const;
  [[nodiscard]] double largest_met(const Held& held, std::span<const float> fed,
                                   uint32_t slice) const;
  [[nodiscard]] double times(uint64_t element) const { return times_[element]; }
  void add(const Held& held, std::vector<double>& sum);

  const gradient::Layout& layout_;
  const int members_;
  const Roundings roundings_;
  std::vector<float> times_;  // by element: 1 / weight
  std::vector<double> before_;
  std::vector<double> after_;
  std::vector<double> magnitude_;
  std::vector<double> largest_;  // by slice: of each member's largest magnitude, the sum
  std::vector<float> average_;   // of the first that ended
  int ended_ = 0;
};

}  // namespace scant::sim
