// A record in Python's hands: what an encoder made, or a checked part of a bytes object. Its bytes
// never change. Owner: any thread that holds the GIL; view() also without it.
#pragma once

#include <mutex>
#include <nanobind/nanobind.h>
#include <optional>

#include "codec/encoder.h"
#include "codec/record/record.h"

namespace scant::python {

namespace nb = nanobind;

class PythonRecord {
 public:
  // A view of bytes that `source` keeps.
  PythonRecord(nb::bytes source, codec::RecordView view)
      : source_(std::move(source)), bytes_(view.view()), view_(std::move(view)) {}
  // Fresh from an encoder; read when first asked for.
  PythonRecord(codec::RecordBuffer buffer, const codec::EncodeReport& report)
      : buffer_(std::move(buffer)), bytes_(std::as_const(buffer_).view()), report_(report) {}

  PythonRecord(const PythonRecord&) = delete;
  PythonRecord& operator=(const PythonRecord&) = delete;
  ~PythonRecord();  // with the GIL; keeps the memory for the next record

  [[nodiscard]] Bytes bytes() const { return bytes_; }
  [[nodiscard]] const codec::RecordView& view() const;
  [[nodiscard]] const std::optional<codec::EncodeReport>& report() const { return report_; }

 private:
  nb::object source_;
  codec::RecordBuffer buffer_;
  Bytes bytes_;
  std::optional<codec::EncodeReport> report_;
  mutable std::once_flag read_;
  mutable std::optional<codec::RecordView> view_;
};

// Memory of a record that is gone, when there is some: fresh pages cost more than writing a record.
// With the GIL.
[[nodiscard]] codec::RecordBuffer take_record_buffer();

void bind_codec_records(nb::module_& module);

}  // namespace scant::python
