// Bindings of the gradients' averager: layout, plan and steps.
#pragma once

#include <memory>
#include <nanobind/nanobind.h>

#include "gradient/averager.h"

namespace scant::python {

void bind_gradients(nanobind::module_& module);

// Of the Python object; raises when it was closed.
[[nodiscard]] std::shared_ptr<gradient::Averager> native_averager(const nanobind::object& object);

}  // namespace scant::python
