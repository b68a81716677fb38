// The kernels of a step without vectors: for machines that have none of those of step_simd.cc, and
// as what these are compared with.
#include <algorithm>
#include <bit>
#include <cmath>

#include "codec/quantise/rounding.h"
#include "serve/model/step_kernels.h"

namespace scant::serve {
namespace {

constexpr size_t kRowsTogether = 2;
constexpr size_t kLanesTogether = 2;

struct Lanes {
  float v[kLanes];
};

template <typename Of>
Lanes each(const Of& of) {
  Lanes out;
  for (size_t i = 0; i < kLanes; ++i) out.v[i] = of(i);
  return out;
}

Lanes load(const float* from) {
  return each([&](size_t i) { return from[i]; });
}
void store(const Lanes& x, float* to) { std::copy_n(x.v, kLanes, to); }
Lanes load_bf16(const uint16_t* from) {
  return each([&](size_t i) { return codec::bf16_widen(from[i]); });
}
Lanes load_i8(const int8_t* from) {
  return each([&](size_t i) { return static_cast<float>(from[i]); });
}
Lanes set(float value) {
  return each([&](size_t) { return value; });
}
Lanes add(const Lanes& a, const Lanes& b) {
  return each([&](size_t i) { return a.v[i] + b.v[i]; });
}
Lanes sub(const Lanes& a, const Lanes& b) {
  return each([&](size_t i) { return a.v[i] - b.v[i]; });
}
Lanes mul(const Lanes& a, const Lanes& b) {
  return each([&](size_t i) { return a.v[i] * b.v[i]; });
}
Lanes div(const Lanes& a, const Lanes& b) {
  return each([&](size_t i) { return a.v[i] / b.v[i]; });
}
Lanes max(const Lanes& a, const Lanes& b) {
  return each([&](size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
Lanes min(const Lanes& a, const Lanes& b) {
  return each([&](size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
Lanes abs(const Lanes& a) {
  return each([&](size_t i) { return std::abs(a.v[i]); });
}
Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
  return each([&](size_t i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
Lanes round(const Lanes& a) {
  return each([&](size_t i) { return std::nearbyint(a.v[i]); });
}
Lanes power_of_two(const Lanes& n) {
  return each([&](size_t i) {
    return std::bit_cast<float>(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23);
  });
}
float largest_of(const Lanes& a) { return *std::max_element(a.v, a.v + kLanes); }
Lanes where_less(const Lanes& x, const Lanes& limit, const Lanes& then, const Lanes& otherwise) {
  return each([&](size_t i) { return x.v[i] < limit.v[i] ? then.v[i] : otherwise.v[i]; });
}
Lanes where_nan(const Lanes& x, const Lanes& otherwise) {
  return each([&](size_t i) { return std::isnan(x.v[i]) ? x.v[i] : otherwise.v[i]; });
}

#include "serve/model/step-inl.h"

}  // namespace

constinit const StepKernels kPlainStepKernels = step_kernels("plain");

}  // namespace scant::serve
