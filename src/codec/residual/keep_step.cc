// A step that sends nothing: gradient + residual is the residual.
#include <algorithm>

#include "codec/step.h"

namespace scant::codec {

Result<EncodeReport> KeepStep::run(RecordBuffer& record) {
  if (Result<void> prepared = workspace_.prepare(); !prepared) return prepared.error();
  if (const Result<MutableBytes> none = record.resize(0); !none) return none.error();
  const uint64_t elements = encoder_.range_.elements;
  const uint64_t blocks = (elements + kDenseBlockElements - 1) / kDenseBlockElements;
  std::vector<EncodeReport> reports(blocks);
  workspace_.pool().for_each(blocks, [&](size_t block, size_t worker) {
    reports[block] = keep_block(block, workspace_.scratch(worker).work());
  });
  EncodeReport report;
  for (const EncodeReport& one : reports) {
    report.nonfinite += one.nonfinite;
    report.energy += one.energy;
    report.energy_left += one.energy_left;
  }
  return report;
}

Accumulated KeepStep::take(uint64_t at, size_t n, float* work) {
  const ResidualStore& residual = encoder_.residual_;
  const float* gradient = gradient_ + at;
  if (rest_ != nullptr) {
    rest_->add(residual.first() + at, n, gradient, work);
    return kernels().accumulate(nullptr, work, n, 1.0f);
  }
  if (!encoder_.velocity_.empty()) {
    float* const velocity = encoder_.velocity_.data() + at;
    kernels().accumulate(gradient, velocity, n, encoder_.options_.momentum);
    gradient = velocity;
  }
  residual.load(residual.first() + at, n, work);
  return kernels().accumulate(gradient, work, n, encoder_.options_.decay);
}

EncodeReport KeepStep::keep_block(uint64_t block, float* work) {
  const uint64_t at = block * kDenseBlockElements;
  const size_t n = std::min<uint64_t>(kDenseBlockElements, encoder_.range_.elements - at);
  ResidualStore& residual = encoder_.residual_;
  const Accumulated sum = take(at, n, work);
  EncodeReport report{.energy = static_cast<double>(sum.energy)};
  report.energy_left = report.energy;
  if (sum.magnitude_max >= kInfinityBits) {
    report.nonfinite = count_nonfinite(work, n);
    report.energy_left = static_cast<double>(zero_nonfinite({work, n}));
    if (!encoder_.velocity_.empty()) zero_nonfinite({encoder_.velocity_.data() + at, n});
  }
  residual.store(residual.first() + at, n, work, encoder_.draw_key(block, 1));
  return report;
}

float KeepStep::zero_nonfinite(std::span<float> values) {
  std::ranges::replace_if(
      values, [](float value) { return !is_finite(value); }, 0.0f);
  return kernels().accumulate(nullptr, values.data(), values.size(), 1.0f).energy;
}

}  // namespace scant::codec
