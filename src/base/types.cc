// Sizes and names of element types and reductions.
#include "scant/base/types.h"

#include <iterator>

namespace scant {
namespace {

// Numbered from kMovedDTypeFirst in this order, which the wire carries (docs/wire.md): append only.
struct MovedDType {
  const char* name;
  size_t size_bytes;
};
constexpr MovedDType kMovedDTypes[] = {
    {"other", 1},          {"int16", 2},
    {"uint16", 2},         {"uint32", 4},
    {"uint64", 8},         {"complex32", 4},
    {"complex64", 8},      {"complex128", 16},
    {"float8_e4m3fn", 1},  {"float8_e4m3fnuz", 1},
    {"float8_e5m2", 1},    {"float8_e5m2fnuz", 1},
    {"float8_e8m0fnu", 1}, {"float4_e2m1fn_x2", 1},
};

const MovedDType* find_moved(DType dtype) {
  const int index = static_cast<int>(dtype) - kMovedDTypeFirst;
  return index >= 0 && index < moved_dtype_count() ? &kMovedDTypes[index] : nullptr;
}

}  // namespace

int moved_dtype_count() { return static_cast<int>(std::size(kMovedDTypes)); }

DType moved_dtype(std::string_view name) {
  int code = kMovedDTypeFirst;
  for (const MovedDType& type : kMovedDTypes) {
    if (name == type.name) return static_cast<DType>(code);
    ++code;
  }
  return static_cast<DType>(kMovedDTypeFirst);
}

bool is_dtype(int code) {
  return (code >= 0 && code < kDTypeCount) ||
         (code >= kMovedDTypeFirst && code < kMovedDTypeFirst + moved_dtype_count());
}

size_t size_bytes(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::i8:
    case DType::u8:
    case DType::boolean:
      return 1;
  }
  const MovedDType* moved = find_moved(dtype);
  return moved != nullptr ? moved->size_bytes : 0;
}

const char* name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::f64:
      return "f64";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::i8:
      return "i8";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
    case DType::u8:
      return "u8";
    case DType::boolean:
      return "boolean";
  }
  const MovedDType* moved = find_moved(dtype);
  return moved != nullptr ? moved->name : "unknown";
}

const char* name(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return "sum";
    case ReduceOp::average:
      return "average";
    case ReduceOp::product:
      return "product";
    case ReduceOp::min:
      return "min";
    case ReduceOp::max:
      return "max";
    case ReduceOp::bit_and:
      return "bit_and";
    case ReduceOp::bit_or:
      return "bit_or";
    case ReduceOp::bit_xor:
      return "bit_xor";
  }
  return "unknown";
}

}  // namespace scant
