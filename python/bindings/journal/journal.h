// The journal's writer, reader and bases for scant.journal.
#pragma once

#include <nanobind/nanobind.h>

namespace scant::python {

void bind_journal(nanobind::module_& module);

}  // namespace scant::python
