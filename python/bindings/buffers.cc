#include "buffers.h"

#include <nanobind/ndarray.h>
#include <optional>

#include "errors.h"
#include "scant/types.h"

namespace scant::python {
namespace {

std::optional<DType> dtype_of(nb::dlpack::dtype type) {
  if (type.lanes != 1) return std::nullopt;
  using Code = nb::dlpack::dtype_code;
  switch (static_cast<Code>(type.code)) {
    case Code::Float:
      if (type.bits == 16) return DType::f16;
      if (type.bits == 32) return DType::f32;
      if (type.bits == 64) return DType::f64;
      return std::nullopt;
    case Code::Bfloat:
      if (type.bits == 16) return DType::bf16;
      return std::nullopt;
    case Code::Int:
      if (type.bits == 8) return DType::i8;
      if (type.bits == 32) return DType::i32;
      if (type.bits == 64) return DType::i64;
      return std::nullopt;
    case Code::UInt:
      if (type.bits == 8) return DType::u8;
      return std::nullopt;
    case Code::Bool:
      if (type.bits == 8) return DType::boolean;
      return std::nullopt;
    default:
      return std::nullopt;
  }
}

// Row-major without gaps; the stride of a dimension of one element does not matter.
template <typename Array>
bool contiguous(const Array& array) {
  if (array.size() == 0) return true;
  auto expected = int64_t{1};
  for (size_t i = array.ndim(); i-- > 0;) {
    if (array.shape(i) != 1 && array.stride(i) != expected) return false;
    expected *= static_cast<int64_t>(array.shape(i));
  }
  return true;
}

// (address, bytes, dtype code or -1, contiguous)
template <typename Array>
nb::tuple describe(const Array& array) {
  const auto dtype = dtype_of(array.dtype());
  return nb::make_tuple(reinterpret_cast<uintptr_t>(array.data()), array.nbytes(),
                        dtype ? static_cast<int>(*dtype) : -1, contiguous(array));
}

}  // namespace

void bind_buffers(nb::module_& module) {
  module.def("read_view",
             [](const nb::ndarray<nb::ro, nb::device::cpu>& array) { return describe(array); });
  module.def("write_view",
             [](const nb::ndarray<nb::device::cpu>& array) { return describe(array); });
}

}  // namespace scant::python
