#include "bindings/codec/codec.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/base/errors.h"
#include "bindings/base/gil.h"
#include "bindings/base/options.h"
#include "bindings/codec/encoder.h"
#include "bindings/codec/factors.h"
#include "bindings/codec/plane.h"
#include "bindings/codec/record.h"
#include "bindings/codec/workspaces.h"
#include "codec/accumulate.h"
#include "codec/encoder.h"
#include "codec/kernels/kernels.h"

namespace scant::python {
namespace {

using codec::Encoder;
using codec::Point;
using codec::RecordView;
using codec::Shape;

struct EncoderFields {
  uint32_t tensor;
  Shape shape;
  codec::EncoderOptions options;
  std::optional<codec::Range> range;
};

EncoderFields fields_from(const nb::dict& given) {
  EncoderFields fields{};
  std::string residual;
  std::optional<std::tuple<uint64_t, uint64_t>> range;
  Options options("Encoder", given);
  options.need("tensor", fields.tensor);
  options.need("rows", fields.shape.rows);
  options.need("columns", fields.shape.columns);
  options.need("residual", residual);
  options.need("decay", fields.options.decay);
  options.need("momentum", fields.options.momentum);
  options.need("mask_momentum", fields.options.mask_momentum);
  options.need("stochastic", fields.options.stochastic);
  options.need("evenness", fields.options.evenness);
  options.need("seed", fields.options.seed);
  options.need("range", range);
  options.done();
  fields.options.residual = residual_from(residual);
  if (range) fields.range = {std::get<0>(*range), std::get<1>(*range)};
  return fields;
}

PythonEncoder* make_encoder(const nb::dict& given) {
  const EncoderFields fields = fields_from(given);
  return new PythonEncoder(
      unwrap(Encoder::create(fields.tensor, fields.shape, fields.options, fields.range)));
}

PythonRecord* encode(PythonEncoder& self, uintptr_t address, size_t elements, double density,
                     const std::string& values, size_t threads) {
  const Point point = point_from(density, values);
  const WorkspaceLease lease(threads);
  codec::RecordBuffer buffer = take_record_buffer();
  const auto report = self.locked([&](Encoder& encoder) {
    return encoder.encode(input(address, elements), point, lease.get(), buffer);
  });
  if (!report) raise(report.error(), kNoRank);
  return new PythonRecord(std::move(buffer), report.value());
}

// At the default points where none are given.
nb::tuple probe(PythonEncoder& self, uintptr_t address, size_t elements,
                const std::optional<nb::list>& given, size_t threads) {
  std::vector<Point> own;
  std::span<const Point> points = codec::default_points();
  if (given) {
    for (nb::handle item : *given) {
      const auto pair = nb::cast<nb::tuple>(item);
      own.push_back(point_from(nb::cast<double>(pair[0]), nb::cast<std::string>(pair[1])));
    }
    points = own;
  }
  const WorkspaceLease lease(threads);
  return to_python(unwrap(self.locked([&](Encoder& encoder) {
    return codec::probe(encoder, input(address, elements), points, lease.get());
  })));
}

uint64_t range_elements(PythonEncoder& self) {
  return self.locked([](Encoder& encoder) { return encoder.range().elements; });
}

void check_elements(PythonEncoder& self, size_t elements, const char* name) {
  const uint64_t expected = range_elements(self);
  if (elements != expected) {
    refuse(std::string(name) + " has " + std::to_string(elements) + " elements, the range has " +
           std::to_string(expected));
  }
}

nb::bytes save(PythonEncoder& self) {
  const auto saved = self.locked([](Encoder& encoder) { return encoder.save(); });
  return nb::bytes(saved.data(), saved.size());
}

PythonEncoder* restore(const nb::bytes& saved) {
  const Bytes bytes{reinterpret_cast<const std::byte*>(saved.c_str()), saved.size()};
  return new PythonEncoder(unwrap(without_gil([&] { return Encoder::restore(bytes); })));
}

void take_over(PythonEncoder& self, PythonEncoder& other) {
  if (&self == &other) refuse("other is this encoder itself");
  unwrap(PythonEncoder::both_locked(
      self, other, [](Encoder& mine, Encoder& theirs) { return mine.take_over(theirs); }));
}

nb::dict describe(PythonEncoder& self) {
  struct Facts {
    EncoderFields fields;
    uint64_t step;
    size_t memory_bytes;
  };
  const Facts facts = self.locked([](Encoder& encoder) {
    return Facts{{encoder.tensor(), encoder.shape(), encoder.options(), encoder.range()},
                 encoder.step(),
                 encoder.memory_bytes()};
  });
  nb::dict result;
  result["tensor"] = facts.fields.tensor;
  result["rows"] = facts.fields.shape.rows;
  result["columns"] = facts.fields.shape.columns;
  result["residual"] = codec::name(facts.fields.options.residual);
  result["range"] = nb::make_tuple(facts.fields.range->first, facts.fields.range->elements);
  result["step"] = facts.step;
  result["memory_bytes"] = facts.memory_bytes;
  return result;
}

// Into the elements [first, first + elements) of the tensor that the first record is of.
void accumulate(const std::vector<const PythonRecord*>& records, uint64_t first, uintptr_t address,
                size_t elements, double weight, size_t threads) {
  if (records.empty()) refuse("records is empty");
  const WorkspaceLease lease(threads);
  unwrap(without_gil([&] {
    std::vector<RecordView> views;
    views.reserve(records.size());
    for (const PythonRecord* record : records) views.push_back(record->view());
    const codec::RecordHeader& header = views[0].header();
    return codec::accumulate(views, header.tensor, header.shape, first, output(address, elements),
                             static_cast<float>(weight), lease.get());
  }));
}

template <typename Enum>
nb::list names(int count) {
  nb::list result;
  for (int i = 0; i < count; ++i) result.append(codec::name(static_cast<Enum>(i)));
  return result;
}

void bind_encoder(nb::module_& module) {
  nb::class_<PythonEncoder> cls(module, "Encoder");
  cls.def(nb::new_(&make_encoder), nb::arg("fields"));
  cls.def("encode", &encode, nb::rv_policy::take_ownership);
  cls.def("probe", &probe);
  cls.def("read_residual", [](PythonEncoder& self, uintptr_t address, size_t elements) {
    check_elements(self, elements, "out");
    self.locked([&](Encoder& encoder) { encoder.read_residual(output(address, elements)); });
  });
  cls.def("add_residual", [](PythonEncoder& self, uintptr_t address, size_t elements) {
    check_elements(self, elements, "addend");
    unwrap(self.locked(
        [&](Encoder& encoder) { return encoder.add_residual(input(address, elements)); }));
  });
  cls.def("clear_residual", [](PythonEncoder& self) {
    self.locked([](Encoder& encoder) { encoder.clear_residual(); });
  });
  cls.def("save", &save);
  cls.def_static("restore", &restore, nb::rv_policy::take_ownership, nb::arg("saved"));
  cls.def("take_over", &take_over, nb::arg("other"));
  cls.def("describe", &describe);
}

}  // namespace

void check_process(uint32_t generation, const char* what) {
  if (generation == fork_generation()) return;
  raise({.code = ErrorCode::closed,
         .message = "the " + std::string(what) +
                    " belongs to the process that forked this one: save() there, restore() here"},
        kNoRank);
}

void bind_codec(nb::module_& module) {
  module.attr("by_row") = std::string(codec::kByRow);
  module.attr("value_kind_names") = names<codec::ValueKind>(codec::kValueKindCount);
  module.attr("residual_kind_names") = names<codec::ResidualKind>(codec::kResidualKindCount);
  module.attr("codec_kernels") = codec::kernels().name;
  bind_codec_records(module);
  bind_codec_plane(module);
  bind_encoder(module);
  bind_codec_factors(module);
  module.def("accumulate", &accumulate);
}

}  // namespace scant::python
