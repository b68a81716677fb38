#include "bindings/journal/averaged.h"

#include <memory>

#if SCANT_WITH_SYNC
#include "bindings/sync/gradients.h"
#else
#include "bindings/base/errors.h"
#endif

namespace scant::python {

#if SCANT_WITH_SYNC

using From = journal::AveragedTogether::From;

namespace {

From from_of(gradient::Path path) {
  switch (path) {
    case gradient::Path::split:
      return From::owners;
    case gradient::Path::gather:
      return From::ranks;
    case gradient::Path::all_reduce:
      break;
  }
  return From::memory;
}

}  // namespace

std::vector<journal::AveragedTogether> averages_of(const nanobind::object& object) {
  const std::shared_ptr<gradient::Averager> averager = native_averager(object);
  const gradient::Layout& layout = averager->layout();
  std::vector<journal::AveragedTogether> all;
  for (const gradient::AveragedBuffer& buffer : averager->averaged()) {
    journal::AveragedTogether together{.from = from_of(buffer.path)};
    for (const Bytes message : buffer.basis_messages) {
      if (!message.empty()) together.messages.push_back(message);
    }
    together.messages.insert(together.messages.end(), buffer.messages.begin(),
                             buffer.messages.end());
    for (const gradient::AveragedBuffer::Matrix& matrix : buffer.matrices) {
      const gradient::PartLayout& part = layout.parts()[matrix.part];
      together.matrices.push_back({.part = matrix.part,
                                   .tensor = part.tensor,
                                   .rank = matrix.rank,
                                   .columns = layout.tensors()[part.tensor].shape.columns,
                                   .range = part.range});
    }
    for (const auto& part : layout.parts().subspan(buffer.first_part, buffer.parts))
      together.places.push_back({.tensor = part.tensor, .range = part.range});
    all.push_back(std::move(together));
  }
  return all;
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

[[noreturn]] void no_averager() {
  refuse("journal: an averager comes of the plane 'sync', which this build lacks");
}

}  // namespace

std::vector<journal::AveragedTogether> averages_of(const nanobind::object&) { no_averager(); }

journal::BaseSource residuals_of(const nanobind::object&, const std::string&) { no_averager(); }

#endif

}  // namespace scant::python
