// The extension module scant._scant: base and codec, and the planes that SCANT_PLANES chose. Its
// functions take raw addresses and codes; the checks that users see are in the Python package
// around it.

#include <nanobind/nanobind.h>

#include "bindings/base/base.h"
#include "bindings/codec/codec.h"
#if SCANT_WITH_SYNC
#include "bindings/sync/sync.h"
#endif
#if SCANT_WITH_JOURNAL
#include "bindings/journal/journal.h"
#endif
#if SCANT_WITH_SERVE
#include "bindings/serve/decoder.h"
#include "bindings/serve/engine.h"
#include "bindings/serve/files.h"
#endif

NB_MODULE(_scant, module) {
  using namespace scant::python;
  namespace nb = nanobind;
  // Works and communicators may legitimately outlive the interpreter in the hands of forgotten
  // modules.
  nb::set_leak_warnings(false);
  nb::list planes;
  bind_base(module);
  bind_codec(module);
#if SCANT_WITH_SYNC
  bind_sync(module);
  planes.append("sync");
#endif
#if SCANT_WITH_JOURNAL
  bind_journal(module);
  planes.append("journal");
#endif
#if SCANT_WITH_SERVE
  bind_serve_files(module);
  bind_serve_decoder(module);
  bind_serve_engine(module);
  planes.append("serve");
#endif
  module.attr("planes") = nb::tuple(planes);
}
