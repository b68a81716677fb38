#include "bindings/base/buffers.h"

#include <initializer_list>
#include <nanobind/ndarray.h>
#include <string>

#include "bindings/base/errors.h"
#include "scant/base/types.h"

namespace scant::python {
namespace {

DType of_bits(nb::dlpack::dtype type, std::initializer_list<DType> reducible, const char* prefix) {
  for (const DType dtype : reducible) {
    if (size_bytes(dtype) * 8 == type.bits) return dtype;
  }
  return moved_dtype(prefix + std::to_string(type.bits));
}

DType dtype_of(nb::dlpack::dtype type) {
  if (type.lanes != 1) return moved_dtype("other");
  using Code = nb::dlpack::dtype_code;
  switch (static_cast<Code>(type.code)) {
    case Code::Float:
      return of_bits(type, {DType::f16, DType::f32, DType::f64}, "float");
    case Code::Bfloat:
      return of_bits(type, {DType::bf16}, "bfloat");
    case Code::Int:
      return of_bits(type, {DType::i8, DType::i32, DType::i64}, "int");
    case Code::UInt:
      return of_bits(type, {DType::u8}, "uint");
    case Code::Bool:
      return of_bits(type, {DType::boolean}, "bool");
    case Code::Complex:
      return of_bits(type, {}, "complex");
    case Code::Float8_E4M3FN:
      return moved_dtype("float8_e4m3fn");
    case Code::Float8_E4M3FNUZ:
      return moved_dtype("float8_e4m3fnuz");
    case Code::Float8_E5M2:
      return moved_dtype("float8_e5m2");
    case Code::Float8_E5M2FNUZ:
      return moved_dtype("float8_e5m2fnuz");
    case Code::Float8_E8M0FNU:
      return moved_dtype("float8_e8m0fnu");
    default:
      return moved_dtype("other");
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

// (address, bytes, dtype code, contiguous)
template <typename Array>
nb::tuple describe(const Array& array) {
  return nb::make_tuple(reinterpret_cast<uintptr_t>(array.data()), array.nbytes(),
                        static_cast<int>(dtype_of(array.dtype())), contiguous(array));
}

}  // namespace

void bind_buffers(nb::module_& module) {
  module.def("read_view",
             [](const nb::ndarray<nb::ro, nb::device::cpu>& array) { return describe(array); });
  module.def("write_view",
             [](const nb::ndarray<nb::device::cpu>& array) { return describe(array); });
}

}  // namespace scant::python
