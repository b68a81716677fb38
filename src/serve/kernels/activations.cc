// Forms are made when a product first asks for one, panels side by side by the pool.
#include "serve/kernels/multiply.h"
#include "serve/kernels/targets.h"

namespace scant::serve {

void Activations::set(const float* values, size_t rows, size_t columns) {
  values_ = values;
  rows_ = rows;
  columns_ = columns;
  for (OperandMemory& form : forms_) form.ready = false;
}

uint64_t Activations::memory_bytes() const {
  uint64_t bytes = scratch_.capacity();
  for (const OperandMemory& form : forms_) bytes += form.memory_bytes();
  return bytes;
}

const Operand& Activations::operand(const KernelTarget& target, Form form, base::WorkerPool& pool) {
  OperandMemory& memory = forms_[static_cast<size_t>(form)];
  if (memory.ready) return memory.operand();
  const Operand& made = memory.shape(form, values_, rows_, columns_);
  // One panel, as decoding has it, takes less time than waking a worker.
  if (form != Form::plain && rows_ > kPanelTokens) {
    const auto fill = [&target, &made](size_t panel, size_t) { target.fill(made, panel); };
    pool.for_each(made.panels, fill);
  } else if (form != Form::plain) {
    for (size_t panel = 0; panel < made.panels; ++panel) target.fill(made, panel);
  }
  memory.ready = true;
  return made;
}

std::byte* Activations::scratch(size_t bytes) {
  if (scratch_.size() < bytes) scratch_.resize(bytes);
  return scratch_.data();
}

}  // namespace scant::serve
