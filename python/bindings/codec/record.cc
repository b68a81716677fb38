#include "bindings/codec/record.h"

#include <memory>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "bindings/base/errors.h"
#include "bindings/base/gil.h"

namespace scant::python {
namespace {

using codec::BlockHeader;
using codec::EncodeReport;
using codec::PositionKind;
using codec::RecordView;

// What Python sees of a block.
struct Block {
  codec::BlockHeader header;
  uint32_t elements = 0;
  uint64_t bytes = 0;
};

// Buffers of records that are gone, the last on top; small ones are the allocator's matter.
constexpr size_t kKeptBuffersMax = 8;
constexpr size_t kKeptBytesMin = size_t{1} << 18;
constexpr size_t kKeptBytesMax = size_t{1} << 26;
std::vector<codec::RecordBuffer>& kept_buffers() {
  static auto* const kept = new std::vector<codec::RecordBuffer>;  // outlives the last record
  return *kept;
}

std::string positions_name(uint8_t positions) {
  switch (static_cast<PositionKind>(positions)) {
    case PositionKind::dense:
      return "dense";
    case PositionKind::bitmap:
      return "bitmap";
    case PositionKind::delta8:
      return "delta8";
    case PositionKind::position16:
      return "position16";
    case PositionKind::packed:
      break;
  }
  return "packed" + std::to_string(positions - static_cast<unsigned>(PositionKind::packed));
}

Bytes view_of(const nb::bytes& data) {
  return {reinterpret_cast<const std::byte*>(data.c_str()), data.size()};
}

// Bytes that nobody changes: the object itself where it is of that kind, else a copy.
nb::bytes immutable(nb::handle data) {
  if (nb::isinstance<nb::bytes>(data)) return nb::borrow<nb::bytes>(data);
  if (PyObject_CheckBuffer(data.ptr()) == 0) {
    raise({.code = ErrorCode::invalid_argument,
           .message = std::string("data must be bytes or offer the buffer protocol, got ") +
                      nb::inst_name(data).c_str()},
          kNoRank);
  }
  PyObject* const copied = PyBytes_FromObject(data.ptr());
  if (copied == nullptr) throw nb::python_error();
  return nb::steal<nb::bytes>(copied);
}

PythonRecord* parse_one(nb::handle object) {
  const nb::bytes data = immutable(object);
  const Bytes bytes = view_of(data);
  auto parsed = without_gil([&] { return RecordView::parse(bytes); });
  if (!parsed) raise(parsed.error(), kNoRank);
  if (parsed.value().bytes() != bytes.size()) {
    raise({.code = ErrorCode::corrupt,
           .message = std::to_string(bytes.size() - parsed.value().bytes()) +
                      " bytes follow the record; parse_all() reads several"},
          kNoRank);
  }
  return new PythonRecord(data, std::move(parsed).value());
}

nb::list parse_all(nb::handle object) {
  const nb::bytes data = immutable(object);
  const Bytes bytes = view_of(data);
  auto parsed = without_gil([&] { return codec::parse_all(bytes); });
  if (!parsed) raise(parsed.error(), kNoRank);
  nb::list records;
  for (RecordView& view : parsed.value()) {
    records.append(
        nb::cast(new PythonRecord(data, std::move(view)), nb::rv_policy::take_ownership));
  }
  return records;
}

const RecordView& read(const PythonRecord& record) {
  return *without_gil([&] { return &record.view(); });
}

nb::list blocks(const PythonRecord& record) {
  nb::list result;
  const RecordView& view = read(record);
  for (size_t i = 0; i < view.block_count(); ++i) {
    const codec::BlockView block = view.block(i);
    result.append(Block{block.header, block.elements,
                        codec::kBlockHeaderBytes + block.positions.size() + block.scales.size() +
                            block.values.size()});
  }
  return result;
}

std::string describe(const PythonRecord& record) {
  const RecordView& view = read(record);
  const codec::RecordHeader& header = view.header();
  return "<scant.codec.Record of tensor " + std::to_string(header.tensor) + ", " +
         codec::text(header.shape) + ": " + std::to_string(view.entries()) + " of " +
         std::to_string(header.elements) + " elements from " + std::to_string(header.first) + ", " +
         std::to_string(view.bytes()) + " bytes>";
}

nb::bytes copy(const PythonRecord& record) {
  return nb::bytes(record.bytes().data(), record.bytes().size());
}

// The buffer protocol: read-only, no copy.
int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  if (!nb::inst_ready(self)) {
    PyErr_SetString(PyExc_BufferError, "the record was never initialised");
    return -1;
  }
  const Bytes bytes = nb::inst_ptr<PythonRecord>(self)->bytes();
  return PyBuffer_FillInfo(view, self, const_cast<std::byte*>(bytes.data()),
                           static_cast<Py_ssize_t>(bytes.size()), 1, flags);
}

PyType_Slot record_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(&get_buffer)},
                              {0, nullptr}};

void bind_block(nb::module_& module) {
  nb::class_<Block> block(module, "Block", "One block of a record.");
  block.attr("__module__") = "scant.codec";
  block.def_prop_ro("values", [](const Block& self) { return codec::name(self.header.values); });
  block.def_prop_ro("positions",
                    [](const Block& self) { return positions_name(self.header.positions); });
  block.def_prop_ro("entries", [](const Block& self) { return self.header.entries; });
  block.def_ro("elements", &Block::elements);
  block.def_ro("bytes", &Block::bytes);
  block.def("__repr__", [](const Block& self) {
    return "<scant.codec.Block of " + std::to_string(self.header.entries) + " of " +
           std::to_string(self.elements) + " elements as " + codec::name(self.header.values) +
           ", " + positions_name(self.header.positions) + ", " + std::to_string(self.bytes) +
           " bytes>";
  });
}

void bind_report(nb::module_& module) {
  nb::class_<EncodeReport> report(module, "Report", "What one step of an encoder did.");
  report.attr("__module__") = "scant.codec";
  report.def_ro("bytes", &EncodeReport::bytes);
  report.def_ro("entries", &EncodeReport::entries);
  report.def_ro("nonfinite", &EncodeReport::nonfinite);
  report.def_ro("forced", &EncodeReport::forced);
  report.def_ro("energy", &EncodeReport::energy);
  report.def_ro("energy_left", &EncodeReport::energy_left);
  report.def_prop_ro("energy_kept", [](const EncodeReport& self) {
    return self.energy == 0 ? 1.0 : 1.0 - self.energy_left / self.energy;
  });
  report.def("__repr__", [](const EncodeReport& self) {
    return "<scant.codec.Report: " + std::to_string(self.entries) + " entries, " +
           std::to_string(self.bytes) + " bytes, energy " + std::to_string(self.energy) +
           ", left " + std::to_string(self.energy_left) + ">";
  });
}

}  // namespace

PythonRecord::~PythonRecord() {
  const size_t capacity = buffer_.capacity();
  if (capacity < kKeptBytesMin || capacity > kKeptBytesMax) return;
  if (kept_buffers().size() < kKeptBuffersMax) kept_buffers().push_back(std::move(buffer_));
}

codec::RecordBuffer take_record_buffer() {
  if (kept_buffers().empty()) return {};
  codec::RecordBuffer buffer = std::move(kept_buffers().back());
  kept_buffers().pop_back();
  return buffer;
}

const codec::RecordView& PythonRecord::view() const {
  std::call_once(read_, [this] {
    if (view_) return;
    auto parsed = RecordView::parse(bytes_);
    SCANT_CHECK(parsed.ok(), "an encoder wrote a record that cannot be read");
    view_ = std::move(parsed).value();
  });
  return *view_;
}

void bind_codec_records(nb::module_& module) {
  bind_block(module);
  bind_report(module);
  nb::class_<PythonRecord> record(module, "Record", nb::type_slots(record_slots),
                                  "One range of one tensor in few bytes (docs/record.md).");
  record.attr("__module__") = "scant.codec";
  record.def(nb::new_(&parse_one), nb::arg("data").none());
  const auto header = [&record](const char* field, auto member) {
    record.def_prop_ro(field,
                       [member](const PythonRecord& self) { return read(self).header().*member; });
  };
  header("tensor", &codec::RecordHeader::tensor);
  header("first", &codec::RecordHeader::first);
  header("elements", &codec::RecordHeader::elements);
  header("nonfinite", &codec::RecordHeader::nonfinite);
  record.def_prop_ro("shape", [](const PythonRecord& self) {
    const codec::Shape shape = read(self).header().shape;
    return nb::make_tuple(shape.rows, shape.columns);
  });
  record.def_prop_ro("entries", [](const PythonRecord& self) { return read(self).entries(); });
  record.def_prop_ro("nbytes", [](const PythonRecord& self) { return self.bytes().size(); });
  record.def_prop_ro("blocks", &blocks);
  record.def_prop_ro("report", &PythonRecord::report);
  record.def("__len__", [](const PythonRecord& self) { return self.bytes().size(); });
  record.def("__bytes__", &copy);
  record.def("__repr__", &describe);
  record.def("__reduce__", [](const nb::handle self) {
    return nb::make_tuple(nb::type<PythonRecord>(),
                          nb::make_tuple(copy(nb::cast<const PythonRecord&>(self))));
  });
  module.def("parse_all", &parse_all, nb::arg("data").none());
}

}  // namespace scant::python
