#include "bindings/base/base.h"

#include <nanobind/stl/string.h>
#include <string>

#include "base/check.h"
#include "base/counters.h"
#include "base/crc.h"
#include "base/ledger.h"
#include "base/limits.h"
#include "bindings/base/buffers.h"
#include "bindings/base/fork.h"
#include "bindings/base/gil.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace nb = nanobind;

namespace scant::python {
namespace {

nb::list counter_rows() {
  nb::list rows;
  for (const base::CounterRow& row : base::counters_snapshot()) {
    rows.append(nb::make_tuple(row.name, row.labels, row.help, row.value));
  }
  return rows;
}

template <typename Enum>
nb::list names(int count) {
  nb::list result;
  for (int i = 0; i < count; ++i) result.append(name(static_cast<Enum>(i)));
  return result;
}

nb::dict moved_dtypes() {
  nb::dict result;
  for (int code = kMovedDTypeFirst; code < kMovedDTypeFirst + moved_dtype_count(); ++code)
    result[name(static_cast<DType>(code))] = code;
  return result;
}

nb::dict used() {
  const base::Used now = base::used();
  nb::dict result;
  result["cpu_s"] = now.cpu_s;
  result["resident_bytes"] = now.resident_bytes;
  result["resident_peak_bytes"] = now.resident_peak_bytes;
  return result;
}

nb::dict limits() {
  const base::Limits now = base::limits();
  nb::dict result;
  result["cpus"] = now.cpus;
  result["memory_free"] = now.memory_free;
  result["memory_most"] = now.memory_most;
  result["memory_by"] = now.memory_by;
  return result;
}

}  // namespace

void bind_base(nb::module_& module) {
  module.attr("commit") = std::string(base::commit());
  module.attr("dtype_names") = names<DType>(kDTypeCount);
  module.attr("moved_dtypes") = moved_dtypes();
  module.attr("reduce_op_names") = names<ReduceOp>(kReduceOpCount);
  module.attr("no_rank") = kNoRank;
  module.def("counters", &counter_rows);
  module.def("counters_prometheus", &base::counters_prometheus);
  module.def("crc32c", [](uintptr_t address, size_t size, uint32_t crc) {
    return without_gil([&] {
      return base::crc32c({reinterpret_cast<const std::byte*>(address), size}, crc);
    });
  });
  module.def("limits", &limits);
  module.def("used", &used);
  nb::class_<base::EnergyMeter>(module, "EnergyMeter")
      .def(nb::init<>())
      .def_prop_ro("counts", &base::EnergyMeter::counts)
      .def_prop_ro("why", &base::EnergyMeter::why)
      .def("joules", &base::EnergyMeter::joules);
  watch_forks();
  bind_buffers(module);
}

}  // namespace scant::python
