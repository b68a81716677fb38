// Chooses the vector kernels at run time. The choice is our own: Highway's would need libhwy,
// which Debian ships as a shared library only, and a wheel must be self-contained.
#include "codec/kernels_simd.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace scant::codec {
namespace {

#if defined(__x86_64__)
// The sets that Highway lets the compiler use in each target, and that the operating system keeps.
bool has_avx2() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & (1u << 29)) != 0;
  __builtin_cpu_init();
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("aes");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}
#endif

struct Targets {
  Kernels list[3];
  size_t count = 0;
  void add(const Kernels& kernels) { list[count++] = kernels; }
};

// NOLINTNEXTLINE: namespaces cannot be template arguments
#define SCANT_CODEC_KERNELS(NAME, TARGET)                                                     \
  Kernels {                                                                                   \
    .name = (NAME), .accumulate = TARGET::accumulate,                                         \
    .accumulate_groups = TARGET::accumulate_groups,                                           \
    .accumulate_groups_i8 = TARGET::accumulate_groups_i8, .select = TARGET::select,           \
    .quantise = TARGET::quantise, .quantise_rest = TARGET::quantise_rest,                     \
    .add_quads = TARGET::add_quads, .decode = TARGET::decode, .narrow = TARGET::narrow,       \
    .add_values = TARGET::add_values, .store_bf16 = TARGET::store_bf16,                       \
    .load_bf16 = TARGET::load_bf16, .store_i8 = TARGET::store_i8, .load_i8 = TARGET::load_i8, \
    .finish = TARGET::finish, .flush = TARGET::flush,                                         \
  }

Targets find_targets() {
  Targets found;
#if defined(__x86_64__)
  if (has_avx512()) found.add(SCANT_CODEC_KERNELS("avx512", N_AVX3));
  if (has_avx2()) found.add(SCANT_CODEC_KERNELS("avx2", N_AVX2));
#elif defined(__aarch64__)
  found.add(SCANT_CODEC_KERNELS("neon", N_NEON));
#endif
  found.add(kScalarKernels);
  return found;
}

#undef SCANT_CODEC_KERNELS

}  // namespace

std::span<const Kernels> kernel_targets() {
  static const Targets found = find_targets();
  return {found.list, found.count};
}

}  // namespace scant::codec
