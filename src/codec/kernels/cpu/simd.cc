// Chooses the vector kernels at run time.
#include "codec/kernels/cpu/simd.h"

#include "base/cpu.h"

namespace scant::codec {
namespace {

struct Targets {
  Kernels list[3];
  size_t count = 0;
  void add(const Kernels& kernels) { list[count++] = kernels; }
};

// NOLINTNEXTLINE: namespaces cannot be template arguments
#define SCANT_CODEC_KERNELS(NAME, TARGET)                                                         \
  Kernels {                                                                                       \
    .name = (NAME), .accumulate = TARGET::accumulate,                                             \
    .accumulate_groups = TARGET::accumulate_groups,                                               \
    .accumulate_groups_i8 = TARGET::accumulate_groups_i8, .select = TARGET::select,               \
    .quantise = TARGET::quantise, .quantise_rest = TARGET::quantise_rest,                         \
    .add_quads = TARGET::add_quads, .mean_quads = TARGET::mean_quads, .decode = TARGET::decode,   \
    .narrow = TARGET::narrow, .add_values = TARGET::add_values, .store_bf16 = TARGET::store_bf16, \
    .load_bf16 = TARGET::load_bf16, .store_i8 = TARGET::store_i8, .load_i8 = TARGET::load_i8,     \
    .finish = TARGET::finish, .flush = TARGET::flush, .times_right = TARGET::times_right,         \
    .add_times_right = TARGET::add_times_right, .times_left = TARGET::times_left,                 \
    .add_product = TARGET::add_product, .column_products = TARGET::column_products,               \
    .take_columns = TARGET::take_columns,                                                         \
  }

Targets find_targets() {
  Targets found;
#if defined(__x86_64__)
  if (base::cpu_has_avx512()) found.add(SCANT_CODEC_KERNELS("avx512", N_AVX3));
  if (base::cpu_has_avx2()) found.add(SCANT_CODEC_KERNELS("avx2", N_AVX2));
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
