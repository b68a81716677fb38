#include "serve/kernels/operand.h"

namespace scant::serve {
namespace {

[[nodiscard]] constexpr size_t element_bytes(Form form) {
  switch (form) {
    case Form::plain:
      return 0;
    case Form::codes32:
    case Form::codes64:
      return 1;
    case Form::rounded:
      return sizeof(float);
    default:
      return sizeof(uint16_t);
  }
}
[[nodiscard]] constexpr size_t align_line(size_t bytes) { return base::align_up(bytes, 64); }

}  // namespace

Operand& OperandMemory::shape(Form form, const float* values, size_t tokens, size_t columns) {
  Operand& made = operand_;
  made = {.form = form, .values = values, .tokens = tokens, .columns = columns};
  made.groups = (columns + group_columns(form) - 1) / group_columns(form);
  made.panel_tokens = form == Form::rounded ? 1 : std::min(tokens, kPanelTokens);
  made.panels = tokens == 0 ? 0 : (tokens + made.panel_tokens - 1) / made.panel_tokens;
  if (form == Form::plain) return made;
  const size_t places = made.index(made.panels, 0);
  const size_t elements = align_line(places * group_columns(form) * element_bytes(form));
  const bool coded = form == Form::codes32 || form == Form::codes64;
  const size_t of_groups = coded ? align_line(places * sizeof(float)) : 0;
  // Vectors may read, but not use, a register's width behind the last element.
  const size_t bytes = elements + 3 * of_groups + 64;
  if (memory_.size() < bytes) memory_.resize(bytes);
  made.elements = memory_.data();
  if (coded) {
    std::byte* const after = memory_.data() + elements;
    made.scales = reinterpret_cast<float*>(after);
    made.shifts = reinterpret_cast<float*>(after + of_groups);
    made.starts = reinterpret_cast<int32_t*>(after + 2 * of_groups);
  }
  return made;
}

}  // namespace scant::serve
