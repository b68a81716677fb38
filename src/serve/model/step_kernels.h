// What a step does besides products: norms, activations, rope, attention over pages. One list of
// functions for each instruction set, all with the same bits: lanes, orders and roundings are those
// of docs/serve.md, "Models". Plain functions, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace scant::serve {

inline constexpr size_t kLanes = 16;        // of every sum: element i goes to lane i % 16
inline constexpr size_t kBlockTokens = 64;  // keys between two corrections of a softmax

// What a row of attention has of the keys before.
struct SoftmaxRow {
  float largest;
  float correction;  // what the sums of before are multiplied by; 1 if the largest has not changed
  float sums[kLanes];
};

// The keys of a block that a row sees: from `first` on, before `end`.
struct Seen {
  uint32_t first = 0;
  uint32_t end = 0;
};

struct StepKernels {
  const char* name;
  // x / sqrt(mean of squares + epsilon) * weight
  void (*rms_norm)(const float* x, const float* weight, float epsilon, size_t n, float* out);
  // (x - mean) / sqrt(variance + epsilon) * weight + bias
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float epsilon,
                     size_t n, float* out);
  // Of each value; then multiplied by `up`, if that is not null.
  void (*silu)(const float* x, const float* up, size_t n, float* out);
  void (*gelu_tanh)(const float* x, const float* up, size_t n, float* out);
  void (*gelu)(const float* x, const float* up, size_t n, float* out);
  void (*add)(const float* x, size_t n, float* to);  // to += x
  // Pairs (i, i + half), or (2i, 2i + 1), of `half` pairs, are rotated.
  void (*rotate_halves)(const float* cosines, const float* sines, size_t half, float* x);
  void (*rotate_neighbours)(const float* cosines, const float* sines, size_t half, float* x);
  // Of keys and values in a page.
  void (*widen_bf16)(const uint16_t* from, size_t n, float* out);
  void (*widen_keys_i8)(const int8_t* from, const float* scales, size_t head_size, float* out);
  void (*widen_i8)(const int8_t* from, float scale, size_t n, float* out);
  // scores[row * 64 + 16 * page + key] = sum over d of queries[row * head_size + d] *
  // keys[page][16 * d + key], d after d
  void (*scores)(const float* queries, size_t rows, const float* const* keys, size_t pages,
                 size_t head_size, float* scores);
  // Scores become exp(score - largest), and `row` takes them in.
  void (*softmax)(float* scores, Seen seen, SoftmaxRow& row);
  // out[row * columns + c] = out * correction, plus for each seen key, in order, weights[row * 64 +
  // key] * values[key / 16][key % 16 * columns + c]. Columns are a multiple of 16.
  void (*values)(const float* weights, const Seen* seen, const SoftmaxRow* softmax, size_t rows,
                 const float* const* values, size_t columns, float* out);
  void (*divide)(float* x, float by, size_t n);
};

// The fastest first. All that this machine can run.
[[nodiscard]] std::span<const StepKernels> step_kernel_targets();
extern const StepKernels kPlainStepKernels;

}  // namespace scant::serve
