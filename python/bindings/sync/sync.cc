#include "bindings/sync/sync.h"

#include "bindings/sync/communicator.h"
#include "bindings/sync/executor.h"
#include "bindings/sync/gradients.h"
#include "bindings/sync/store.h"
#include "bindings/sync/work.h"

namespace scant::python {

void bind_sync(nanobind::module_& module) {
  module.attr("any_source") = kAnySource;
  bind_store(module);
  bind_work(module);
  bind_communicator(module);
  bind_gradients(module);
  bind_executor(module);
}

}  // namespace scant::python
