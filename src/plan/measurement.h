// What one rank measured over a period, and its bytes on the way to rank 0: docs/planner.md,
// "Agreements". Owner threads: the one that counts the steps; reading and writing, any.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "codec/rate/probe.h"
#include "gradient/step_report.h"
#include "plan/predict.h"
#include "plan/sounding.h"
#include "scant/base/result.h"

namespace scant::plan {

struct Measurement {
  double steps = 0;  // that were measured
  double step_s = 0;
  double backward_s = 0;
  double exposed_s = 0;
  double end_s = 0;
  double encode_s = 0;
  double add_s = 0;
  double decode_s = 0;
  double overlapped_work_s = 0;  // beside computing
  double sent_bytes = 0;         // a step's mean: small sparse slices send in some steps only
  double nonfinite = 0;          // of all steps together
  double kept = 1;               // of the worker's leg, by elements; 1 by plans of all_reduce alone
  double residual = 0;           // norm of the residual / norm of the gradient
  SoundingTimes sounding;        // after its last step
  std::vector<double> ready_s;   // by part
  std::vector<double> needed_s;
  std::vector<codec::Curve> curves = {};  // by part, at codec::default_points(); or none
};

// Collects the steps of one period.
class Profiler {
 public:
  explicit Profiler(const gradient::Layout& layout) : layout_(layout) {}
  // The first `skipped` steps of the period do not count.
  void begin(uint32_t skipped);
  // step_s: from the end of the step before to the end of this one; not known of the very first.
  void add(const gradient::StepReport& report, std::optional<double> step_s);
  [[nodiscard]] Measurement finish() const;

 private:
  const gradient::Layout& layout_;
  uint32_t skipped_ = 0;
  std::vector<gradient::StepReport> reports_;
  std::vector<double> step_s_;
};

inline constexpr uint32_t kMeasurementMagic = 0x4D504353;  // "SCPM" in memory
inline constexpr uint16_t kMeasurementVersion = 4;

// All ranks' are equally long for one layout, with curves and without.
[[nodiscard]] size_t measurement_bytes(size_t parts, bool curves);
void write_measurement(const Measurement& measurement, MutableBytes to);
// Checks everything. ErrorCode::corrupt, unsupported (version), mismatch (other counts).
[[nodiscard]] Result<Measurement> read_measurement(Bytes from, const gradient::Layout& layout,
                                                   bool curves);

}  // namespace scant::plan
