// A model that answers requests, as scant.serve.ModelEngine wraps it.
#pragma once

#include <nanobind/nanobind.h>

namespace scant::python {

void bind_serve_engine(nanobind::module_& module);

}  // namespace scant::python
