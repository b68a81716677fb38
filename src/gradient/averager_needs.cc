// Averages of single tensors, for the user who does not wait for the whole step.
#include <algorithm>
#include <string>
#include <utility>

#include "base/fault.h"
#include "gradient/averager.h"

namespace scant::gradient {
namespace {

using base::invalid;

double seconds_between(Time from, Time to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

// Without asking the thread, which may be in the middle of a job.
bool Averager::has_arrived(uint32_t tensor) const {
  const TensorLayout& known = layout_.tensors()[tensor];
  for (uint32_t part = known.first_part; part < known.first_part + known.parts; ++part) {
    if (!thread_->has_arrived(buffer_of_part_[part], steps_over_ + 1)) return false;
  }
  return true;
}

std::vector<uint32_t> Averager::buffers_of(std::span<const uint32_t> tensors) const {
  std::vector<uint32_t> buffers;
  for (const uint32_t tensor : tensors) {
    const TensorLayout& known = layout_.tensors()[tensor];
    for (uint32_t part = known.first_part; part < known.first_part + known.parts; ++part) {
      buffers.push_back(buffer_of_part_[part]);
    }
  }
  return buffers;
}

std::vector<uint32_t> Averager::arrived() const {
  std::vector<uint32_t> all;
  for (uint32_t tensor = 0; finish_told_ && tensor < told_.size(); ++tensor) {
    if (told_[tensor] && has_arrived(tensor)) all.push_back(tensor);
  }
  return all;
}

void Averager::begin_stall() {
  if (!stalls_) stalls_ = exchange_.now();
}

void Averager::end_stall() {
  stalled_s_ += seconds_between(*stalls_, exchange_.now());
  stalls_.reset();
}

void Averager::note_needed(uint32_t tensor) {
  if (needed_[tensor] != kNotAsked) return;
  needed_[tensor] = std::max(seconds_between(finish_told_at_, *stalls_) - stalled_s_, 0.0);
}

std::optional<Result<bool>> Averager::wait_for(std::span<const uint32_t> tensors, Duration limit) {
  if (!finish_told_) return Result<bool>(invalid("finish() the step first"));
  for (const uint32_t tensor : tensors) {
    if (tensor >= told_.size() || !told_[tensor]) {
      return Result<bool>(invalid("tensor " + std::to_string(tensor) + " was not ready()"));
    }
  }
  begin_stall();
  for (const uint32_t tensor : tensors) note_needed(tensor);
  const auto here_already = [this](uint32_t tensor) { return has_arrived(tensor); };
  if (wanted_.empty() && !std::ranges::all_of(tensors, here_already)) {
    wanted_.assign(tensors.begin(), tensors.end());
    thread_->ask_for(buffers_of(tensors));
  }
  bool here = true;
  if (!wanted_.empty()) {
    if (!std::ranges::equal(wanted_, tensors)) {
      return Result<bool>(invalid("other tensors are waited for"));
    }
    const std::optional<bool> answer = thread_->answer(limit);
    if (!answer) return std::nullopt;
    here = *answer;
    wanted_.clear();
  }
  end_stall();
  return std::optional<Result<bool>>(std::in_place, here);
}

// What was not asked for one by one is needed by now.
void Averager::tell_needs(StepReport& report) {
  for (uint32_t tensor = 0; tensor < needed_.size(); ++tensor) {
    note_needed(tensor);
    const TensorLayout& known = layout_.tensors()[tensor];
    for (uint32_t part = known.first_part; part < known.first_part + known.parts; ++part) {
      report.parts[part].needed = needed_[tensor];
    }
  }
}

}  // namespace scant::gradient
