#include "bindings/journal/averaged.h"

#include <memory>

#if SCANT_WITH_SYNC
#include "bindings/sync/gradients.h"
#else
#include "bindings/base/errors.h"
#endif

namespace scant::python {

#if SCANT_WITH_SYNC

using journal::Part;
using journal::PartKind;

std::vector<Part> parts_of(const nanobind::object& object, const std::vector<Bytes>& found) {
  std::vector<Part> parts;
  const std::shared_ptr<gradient::Averager> averager = native_averager(object);
  const gradient::Layout& layout = averager->layout();
  uint32_t number = 0;
  for (const gradient::AveragedBuffer& buffer : averager->averaged()) {
    const PartKind kind =
        buffer.path == gradient::Path::split ? PartKind::averages : PartKind::gathered;
    for (const Bytes message : buffer.messages) {
      parts.push_back({.kind = kind, .where = number, .bytes = message});
    }
    ++number;
    if (buffer.path != gradient::Path::all_reduce) continue;
    for (const auto& part : layout.parts().subspan(buffer.first_part, buffer.parts)) {
      const Bytes of = found[part.tensor];
      const uint64_t first = part.range.first * sizeof(float);
      const uint64_t bytes = part.range.elements * sizeof(float);
      if (of.size() < first + bytes) continue;  // no gradient
      parts.push_back({.kind = PartKind::raw,
                       .where = part.tensor,
                       .first = first,
                       .bytes = of.subspan(first, bytes)});
    }
  }
  return parts;
}

journal::BaseSource residuals_of(const nanobind::object& averager, const std::string& name) {
  std::shared_ptr<gradient::Averager> native = native_averager(averager);
  native->ask_to_save();
  return {.name = name,
          .head = {},
          .copied = {},
          .made = [native] { return native->saved(); },
          .tensor = "residuals"};
}

#else

namespace {

[[noreturn]] void refuse() {
  raise({.code = ErrorCode::invalid_argument,
         .message = "journal: an averager comes of the plane 'sync', which this build lacks"},
        kNoRank);
}

}  // namespace

std::vector<journal::Part> parts_of(const nanobind::object&, const std::vector<Bytes>&) {
  refuse();
}

journal::BaseSource residuals_of(const nanobind::object&, const std::string&) { refuse(); }

#endif

}  // namespace scant::python
