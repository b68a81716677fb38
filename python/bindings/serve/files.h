// Files of models, as the Python package sees them: packed files and GGUF, read and written.
#pragma once

#include <nanobind/nanobind.h>

namespace scant::python {

void bind_serve_files(nanobind::module_& module);

}  // namespace scant::python
