#include "serve/model/kernel_choice.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/fault.h"
#include "serve/kernels/targets.h"
#include "serve/model/step_kernels.h"

namespace scant::serve {
namespace {

KernelChoice choice_of(const KernelTarget& products) {
  const auto all = step_kernel_targets();
  const auto step = std::ranges::find(all, std::string_view(products.step), &StepKernels::name);
  SCANT_CHECK(step != all.end(), products.step);
  // What has no vectors has another name in the codec.
  const auto of_rows = codec::kernel_targets();
  const auto rows = std::ranges::find(of_rows, std::string_view(step->name), &codec::Kernels::name);
  return {.products = &products,
          .step = &*step,
          .rows = rows != of_rows.end() ? &*rows : &codec::kScalarKernels};
}

}  // namespace

KernelChoice best_kernels() { return choice_of(kernel_targets().front()); }

Result<KernelChoice> kernels_named(std::string_view name) {
  if (name.empty()) return best_kernels();
  for (const KernelTarget& target : kernel_targets()) {
    if (target.name == name) return choice_of(target);
  }
  std::string known;
  for (const std::string_view one : kernel_names())
    known.append(known.empty() ? "" : ", ").append(one);
  return base::invalid("kernels " + std::string(name) + ": this CPU has " + known);
}

std::vector<std::string_view> kernel_names() {
  std::vector<std::string_view> names;
  for (const KernelTarget& target : kernel_targets()) names.emplace_back(target.name);
  return names;
}

}  // namespace scant::serve
