#include "bindings/serve/files.h"

#include <cstring>
#include <memory>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/base/errors.h"
#include "bindings/base/gil.h"
#include "bindings/serve/description.h"
#include "serve/file/gguf.h"
#include "serve/file/packed_file.h"
#include "serve/file/packed_writer.h"
#include "serve/file/point_errors.h"
#include "serve/file/rows.h"

namespace scant::python {
namespace {

using serve::Description;
using serve::GgufFile;
using serve::GgufWriter;
using serve::PackedFile;
using serve::PackedWriter;
using serve::PartKind;
using serve::Tensor;
using serve::TensorKind;

Bytes memory(uintptr_t address, size_t size) {
  return {reinterpret_cast<const std::byte*>(address), size};
}
Bytes view_of(const nb::bytes& data) {
  return memory(reinterpret_cast<uintptr_t>(data.c_str()), data.size());
}
nb::bytes bytes_of(Bytes bytes) { return nb::bytes(bytes.data(), bytes.size()); }

std::vector<float> floats_of(const nb::bytes& data) {
  if (data.size() % sizeof(float) != 0) refuse("not a whole number of floats");
  std::vector<float> values(data.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), data.c_str(), data.size());
  return values;
}

TensorKind kind_of(const std::string& name) {
  const auto kind = serve::tensor_kind(std::string_view(name));
  if (!kind) refuse("there is no kind of tensor '" + name + "'");
  return *kind;
}

template <typename File>
const Tensor& tensor_of(const File& file, size_t index) {
  if (index >= file.tensors().size()) refuse("there is no tensor " + std::to_string(index));
  return file.tensors()[index];
}

// (name, kind, dims, bytes, place, entries)
template <typename File>
nb::list tensors_of(const File& file) {
  nb::list rows;
  for (const Tensor& one : file.tensors()) {
    rows.append(nb::make_tuple(one.name, serve::name(one.kind), nb::tuple(nb::cast(one.dims)),
                               one.bytes.size(), one.place, one.entries));
  }
  return rows;
}

template <typename File>
void read_of(const File& file, size_t index, uint64_t first, uint64_t rows, const std::string& as,
             uintptr_t address, size_t size) {
  const Tensor& tensor = tensor_of(file, index);
  const TensorKind kind = kind_of(as);
  unwrap(without_gil([&] {
    return serve::read_rows(tensor, first, rows, kind,
                            {reinterpret_cast<std::byte*>(address), size});
  }));
}

// What opens, reads and gives back tensors, the same of both kinds of files.
template <typename File>
nb::class_<File> bind_file(nb::module_& module, const char* name) {
  return nb::class_<File>(module, name)
      .def("__init__",
           [](File* self, const std::string& path) {
             auto file = without_gil([&] { return File::open(path); });
             new (self) File(unwrap(std::move(file)));
           })
      .def("tensors", &tensors_of<File>)
      .def("read", &read_of<File>)
      .def("release", [](const File& file, size_t index) {
        file.file().release(tensor_of(file, index).bytes);
      });
}

// ---- packed files ------------------------------------------------------------------------------

PartKind part_kind(const std::string& name) {
  for (auto code = static_cast<uint8_t>(PartKind::description);
       code <= static_cast<uint8_t>(PartKind::file); ++code) {
    if (name == serve::name(static_cast<PartKind>(code))) return static_cast<PartKind>(code);
  }
  refuse("there is no kind of part '" + name + "'");
}

void bind_packed_file(nb::module_& module) {
  bind_file<PackedFile>(module, "PackedFile")
      .def("runs",
           [](const PackedFile& file) {
             nb::list counts;
             for (const serve::Run& run : file.runs()) counts.append(run.tensors);
             return counts;
           })
      .def("description", [](const PackedFile& file) { return dict_of(file.description()); })
      .def("parts",
           [](const PackedFile& file) {
             nb::list rows;
             for (const serve::FilePart& part : file.parts())
               rows.append(nb::make_tuple(serve::name(part.kind), part.name, part.bytes));
             return rows;
           })
      .def("part",
           [](const PackedFile& file, size_t index) {
             if (index >= file.parts().size()) refuse("there is no part " + std::to_string(index));
             return bytes_of(file.part(index));
           })
      .def("check", [](const PackedFile& file, size_t index) {
        const Tensor& tensor = tensor_of(file, index);
        unwrap(without_gil([&] { return file.check(tensor); }));
      });
}

// A file that is being written, until it is finished or closed.
template <typename File>
class Writer {
 public:
  explicit Writer(std::unique_ptr<File> file) : file_(std::move(file)) {}
  [[nodiscard]] File& get() const {
    if (!file_) refuse("the file was finished or closed");
    return *file_;
  }
  void close() { file_.reset(); }

 private:
  std::unique_ptr<File> file_;
};
using PackedOut = Writer<PackedWriter>;
using GgufOut = Writer<GgufWriter>;

void bind_packed_writer(nb::module_& module) {
  nb::class_<PackedOut>(module, "PackedWriter")
      .def("__init__",
           [](PackedOut* self, const std::string& path) {
             new (self) PackedOut(unwrap(without_gil([&] { return PackedWriter::create(path); })));
           })
      .def("begin_run", [](PackedOut& self) { unwrap(self.get().begin_run()); })
      .def(
          "begin_tensor",
          [](PackedOut& self, std::string name, const std::string& kind, std::vector<uint64_t> dims,
             uint32_t place, double density, const nb::bytes& column_weights) {
            unwrap(self.get().begin_tensor({.name = std::move(name),
                                            .kind = kind_of(kind),
                                            .dims = std::move(dims),
                                            .place = place,
                                            .density = density,
                                            .column_weights = floats_of(column_weights)}));
          })
      .def("add_rows",
           [](PackedOut& self, const std::string& kind, uintptr_t address, size_t size) {
             PackedWriter& writer = self.get();
             const TensorKind of = kind_of(kind);
             unwrap(without_gil([&] { return writer.add_rows(of, memory(address, size)); }));
           })
      .def("end_tensor", [](PackedOut& self) { return unwrap(self.get().end_tensor()); })
      .def("add_part",
           [](PackedOut& self, const std::string& kind, std::string name, const nb::bytes& data) {
             const Bytes bytes = view_of(data);
             unwrap(self.get().add_part(part_kind(kind), std::move(name),
                                        {bytes.begin(), bytes.end()}));
           })
      .def("finish",
           [](PackedOut& self, const nb::dict& description) {
             PackedWriter& writer = self.get();
             const Description wanted = description_of(description);
             const uint64_t bytes = unwrap(without_gil([&] { return writer.finish(wanted); }));
             self.close();
             return bytes;
           })
      .def("close", &PackedOut::close);
}

// ---- what points would cost
// ----------------------------------------------------------------------

serve::PointErrors point_errors(const std::vector<uint64_t>& dims,
                                const std::vector<std::pair<std::string, double>>& given,
                                const nb::bytes& column_weights) {
  const auto shape = serve::matrix_shape(dims);
  if (!shape) refuse("these are no dimensions of a tensor");
  std::vector<serve::PackPoint> points;
  for (const auto& [name, density] : given) {
    const serve::PackPoint point{kind_of(name), density};
    if (serve::row_by_row(point.kind)) refuse(name + " is not a kind in strips");
    if (!(density >= 0 && density <= 1)) refuse("a density outside of 0 to 1");
    points.push_back(point);
  }
  std::vector<float> weights = floats_of(column_weights);
  if (!weights.empty() && weights.size() != shape->columns)
    refuse("another number of columns than of their weights");
  return {*shape, points, std::move(weights)};
}

void bind_point_errors(nb::module_& module) {
  nb::class_<serve::PointErrors>(module, "PointErrors")
      .def("__init__",
           [](serve::PointErrors* self, const std::vector<uint64_t>& dims,
              const std::vector<std::pair<std::string, double>>& points,
              const nb::bytes& column_weights) {
             new (self) serve::PointErrors(point_errors(dims, points, column_weights));
           })
      .def("add_rows",
           [](serve::PointErrors& self, const std::string& kind, uintptr_t address, size_t size) {
             const TensorKind of = kind_of(kind);
             unwrap(without_gil([&] { return self.add_rows(of, memory(address, size)); }));
           })
      .def("energy", &serve::PointErrors::energy)
      .def("errors", [](const serve::PointErrors& self) {
        nb::list rows;
        const auto all = unwrap(self.errors());
        for (const serve::PointError& one : all) rows.append(nb::make_tuple(one.bytes, one.error));
        return rows;
      });
}

// ---- GGUF --------------------------------------------------------------------------------------

// (key, number of the type, the value as it stands there)
nb::list rows_of(const std::vector<serve::GgufPair>& pairs) {
  nb::list rows;
  for (const serve::GgufPair& pair : pairs)
    rows.append(nb::make_tuple(nb::bytes(pair.key.data(), pair.key.size()),
                               static_cast<uint32_t>(pair.type), bytes_of(pair.value)));
  return rows;
}

void bind_gguf(nb::module_& module) {
  bind_file<GgufFile>(module, "GgufFile")
      .def_prop_ro("version", &GgufFile::version)
      .def("pairs", [](const GgufFile& file) { return rows_of(file.pairs()); })
      .def("pair_bytes", [](const GgufFile& file) { return bytes_of(file.pair_bytes()); });
  module.def("gguf_pairs", [](const nb::bytes& data, uint64_t count) {
    uint64_t used = 0;
    const Bytes bytes = view_of(data);
    const auto pairs = unwrap(serve::read_gguf_pairs(bytes, count, used));
    if (used != bytes.size()) refuse("GGUF: bytes that no pair takes");
    return rows_of(pairs);
  });
  using Announced = std::tuple<std::string, std::string, std::vector<uint64_t>>;
  nb::class_<GgufOut>(module, "GgufWriter")
      .def("__init__",
           [](GgufOut* self, const std::string& path, uint64_t count, const nb::bytes& pairs,
              const std::vector<Announced>& tensors) {
             std::vector<serve::GgufTensor> announced;
             for (const auto& [name, kind, dims] : tensors)
               announced.push_back({.name = name, .kind = kind_of(kind), .dims = dims});
             auto writer =
                 unwrap(GgufWriter::create(path, count, view_of(pairs), std::move(announced)));
             new (self) GgufOut(std::make_unique<GgufWriter>(std::move(writer)));
           })
      .def("append",
           [](GgufOut& self, uintptr_t address, size_t size) {
             GgufWriter& writer = self.get();
             unwrap(without_gil([&] { return writer.append(memory(address, size)); }));
           })
      .def("finish",
           [](GgufOut& self) {
             GgufWriter& writer = self.get();
             const uint64_t bytes = unwrap(without_gil([&] { return writer.finish(); }));
             self.close();
             return bytes;
           })
      .def("close", &GgufOut::close);
}

}  // namespace

void bind_serve_files(nb::module_& module) {
  nb::list kinds;
  for (const TensorKind kind : serve::tensor_kinds()) kinds.append(serve::name(kind));
  module.attr("tensor_kinds") = nb::tuple(kinds);
  module.def("row_bytes", [](const std::string& name, uint64_t columns) {
    const TensorKind kind = kind_of(name);
    const auto bytes = serve::row_by_row(kind) ? serve::row_bytes(kind, columns) : std::nullopt;
    if (!bytes) refuse(name + " has no rows of " + std::to_string(columns) + " columns");
    return *bytes;
  });
  module.def("check_description", [](const nb::dict& given) {
    if (const auto fault = serve::description_fault(description_of(given)))
      raise({.code = ErrorCode::corrupt, .message = "the description has " + *fault}, kNoRank);
  });
  bind_packed_file(module);
  bind_packed_writer(module);
  bind_point_errors(module);
  bind_gguf(module);
}

}  // namespace scant::python
