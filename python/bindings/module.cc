// The extension module scant._scant. Its functions take raw addresses and codes; the checks that
// users see are in the Python package around it.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "base/check.h"
#include "base/counters.h"
#include "buffers.h"
#include "codec.h"
#include "communicator.h"
#include "executor.h"
#include "fork.h"
#include "gradients.h"
#include "journal.h"
#include "scant/types.h"
#include "store.h"
#include "work.h"

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

}  // namespace
}  // namespace scant::python

NB_MODULE(_scant, module) {
  using namespace scant;
  using namespace scant::python;
  // Works and communicators may legitimately outlive the interpreter in the hands of forgotten
  // modules.
  nb::set_leak_warnings(false);
  module.attr("commit") = std::string(base::commit());
  module.attr("dtype_names") = names<DType>(kDTypeCount);
  module.attr("moved_dtypes") = moved_dtypes();
  module.attr("reduce_op_names") = names<ReduceOp>(kReduceOpCount);
  module.attr("any_source") = kAnySource;
  module.attr("no_rank") = kNoRank;
  module.def("counters", &counter_rows);
  module.def("counters_prometheus", &base::counters_prometheus);
  watch_forks();
  bind_buffers(module);
  bind_codec(module);
  bind_store(module);
  bind_work(module);
  bind_communicator(module);
  bind_gradients(module);
  bind_journal(module);
  bind_executor(module);
}
