#include "plan/progress.h"

#include <algorithm>
#include <array>

namespace scant::plan {
namespace {

struct Known {
  double kept;
  double progress;
};

// What trainings of two models gave, by `./dev bench convergence` and `train`, and hardly more. The
// transformer: q4 keeps 0.98 over both legs and loses nothing, a plan that keeps 0.96 neither, q3
// 0.93 and about nothing, q2 0.74 at 0.85 of the progress, 1 % with four bits less than 0.25 at
// 0.25. The ResNet, means of three seeds: q8 keeps 0.9999 and loses nothing, q4 0.97 at 0.9 of the
// progress, q3 makes 0.82 of it; one seed: q2 keeps 0.56 and makes 0.65. Between q4 and q8 nobody
// measured: a line, which is the ResNet's.
constexpr std::array<Known, 8> kOfElements = {{{0.0, 0.02},
                                               {0.25, 0.2},
                                               {0.5, 0.45},
                                               {0.8, 0.73},
                                               {0.9, 0.82},
                                               {0.95, 0.88},
                                               {0.97, 0.91},
                                               {0.999, 1.0}}};

// The same of parts with factors, means of three seeds. The transformer: 8 directions and a rest of
// q1 keep 0.86 and make 0.95, 32 of q4 keep 0.80 and make 0.95, 16 of q4 keep 0.71 and make 0.87.
// The ResNet: these keep 0.76, 0.82 and 0.78 and make 0.82, 0.87 and 0.78; with a rest of q2 they
// keep 0.9 and make 0.88. docs/decisions/progress.md says why it is more.
constexpr std::array<Known, 8> kOfFactors = {{{0.0, 0.02},
                                              {0.25, 0.3},
                                              {0.5, 0.57},
                                              {0.7, 0.75},
                                              {0.8, 0.81},
                                              {0.9, 0.88},
                                              {0.95, 0.93},
                                              {0.999, 1.0}}};

template <size_t N>
double on_line(const std::array<Known, N>& known, double kept) {
  if (kept >= known.back().kept) return 1;
  const double x = std::max(kept, 0.0);
  const auto above = std::ranges::upper_bound(known, x, {}, &Known::kept);
  const auto below = above - 1;
  const double share = (x - below->kept) / (above->kept - below->kept);
  return below->progress + share * (above->progress - below->progress);
}

}  // namespace

double progress_of_elements(double kept) { return on_line(kOfElements, kept); }

double progress_of_factors(double kept) { return on_line(kOfFactors, kept); }

double progress(const Kept& kept) {
  return (1 - kept.of_factors) * progress_of_elements(kept.elements) +
         kept.of_factors * progress_of_factors(kept.factors);
}

}  // namespace scant::plan
