// Chooses among the implementations by what the CPU has.
#include "serve/kernels/targets.h"

#include "base/cpu.h"
#if defined(__x86_64__)
#include "serve/kernels/lanes/plan.h"
#include "serve/kernels/x86/amx.h"
#elif defined(__aarch64__)
#include "serve/kernels/lanes/plan.h"
#endif

namespace scant::serve {
namespace {

struct Targets {
  KernelTarget list[6];
  size_t count = 0;
  void add(const KernelTarget& target) { list[count++] = target; }
};

Targets find_targets() {
  Targets found;
#if defined(__x86_64__)
  if (base::cpu_has_amx()) {
    found.add({.name = "amx",
               .step = "avx512",
               .form = amx::form,
               .fill = amx::fill,
               .scratch_bytes = amx::scratch_bytes,
               .multiply = amx::multiply,
               .begin = begin_nothing,
               .end = amx::end});
  }
  KernelTarget target{.name = "avx512vnni",
                      .step = "avx512",
                      .form = lanes_form,
                      .fill = avx512vnni::fill,
                      .scratch_bytes = lanes_scratch_bytes,
                      .multiply = avx512vnni::multiply,
                      .begin = begin_nothing,
                      .end = end_nothing};
  if (base::cpu_has_avx512bf16()) {
    KernelTarget dots = target;
    dots.name = "avx512bf16";
    dots.form = avx512bf16::form;
    dots.scratch_bytes = avx512bf16::scratch_bytes;
    dots.multiply = avx512bf16::multiply;
    dots.reference = &kDotReferenceTarget;
    found.add(dots);
  }
  if (base::cpu_has_avx512vnni()) found.add(target);
  target.name = "avx512";
  target.fill = avx512::fill;
  target.multiply = avx512::multiply;
  if (base::cpu_has_avx512()) found.add(target);
  target.name = target.step = "avx2";
  target.fill = avx2::fill;
  target.multiply = avx2::multiply;
  if (base::cpu_has_avx2()) found.add(target);
#elif defined(__aarch64__)
  KernelTarget target{.name = "neondot",
                      .step = "neon",
                      .form = lanes_form,
                      .fill = neondot::fill,
                      .scratch_bytes = lanes_scratch_bytes,
                      .multiply = neondot::multiply,
                      .begin = begin_nothing,
                      .end = end_nothing};
  if (base::cpu_has_dot_products()) found.add(target);
  target.name = "neon";
  target.fill = neon::fill;
  target.multiply = neon::multiply;
  found.add(target);
#endif
  found.add(kReferenceTarget);
  return found;
}

}  // namespace

std::span<const KernelTarget> kernel_targets() {
  static const Targets found = find_targets();
  return {found.list, found.count};
}

}  // namespace scant::serve
