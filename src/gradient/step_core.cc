#include "gradient/step_core.h"

#include "base/check.h"

namespace scant::gradient {

void StepCore::begin(const FusionPlan& plan) {
  plan_ = &plan;
  buffers_.assign(plan.buffers.size(), Buffer{});
  buffer_of_.clear();
  for (uint32_t i = 0; i < plan.buffers.size(); ++i) {
    buffers_[i].parts_left = plan.buffers[i].parts;
    buffer_of_.insert(buffer_of_.end(), plan.buffers[i].parts, i);
  }
  turns_.resize(plan.buffers.size());
  for (uint32_t turn = 0; turn < turns_.size(); ++turn) turns_[turn] = buffer_at(plan, turn);
  ready_.assign(buffer_of_.size(), false);
  next_first_ = 0;
  next_second_ = 0;
  reversed_under_way_ = 0;
  held_ = false;
  buffers_left_ = static_cast<uint32_t>(buffers_.size());
}

void StepCore::part_ready(uint32_t part) {
  SCANT_CHECK(part < ready_.size() && !ready_[part]);
  ready_[part] = true;
  buffers_[buffer_of_[part]].to_encode.push_back(part);
}

bool StepCore::may_begin() const {
  if (held_ || next_first_ == turns_.size()) return false;
  const uint32_t buffer = turns_[next_first_];
  if (buffers_[buffer].state != State::waiting) return false;
  return !is_reversed(buffer) || reversed_under_way_ < kCredit;
}

std::optional<StepCore::Job> StepCore::next_leg() {
  const size_t all = turns_.size();
  if (may_begin()) {
    const uint32_t buffer = turns_[next_first_++];
    buffers_[buffer].state = State::first_leg;
    if (is_reversed(buffer)) ++reversed_under_way_;
    return Job{Kind::begin_first, buffer, 0};
  }
  while (next_second_ < all && plan_->buffers[turns_[next_second_]].path != Path::split) {
    ++next_second_;
  }
  if (next_second_ < all && buffers_[turns_[next_second_]].state == State::returning) {
    const uint32_t buffer = turns_[next_second_++];
    buffers_[buffer].state = State::second_leg;
    return Job{Kind::begin_second, buffer, 0};
  }
  return std::nullopt;
}

std::optional<uint32_t> StepCore::earliest(State state) const {
  for (const uint32_t buffer : turns_) {
    if (buffers_[buffer].state == state) return buffer;
  }
  return std::nullopt;
}

std::optional<StepCore::Job> StepCore::next() {
  if (auto job = next_leg()) return job;
  return next_work();
}

std::optional<StepCore::Job> StepCore::next_work() {
  if (const auto buffer = earliest(State::to_add)) {
    buffers_[*buffer].state = State::adding;
    return Job{Kind::add, *buffer, 0};
  }
  for (const uint32_t buffer : turns_) {
    if (!buffers_[buffer].to_encode.empty()) {
      const uint32_t part = buffers_[buffer].to_encode.back();
      buffers_[buffer].to_encode.pop_back();
      return Job{Kind::encode, buffer, part};
    }
  }
  if (const auto buffer = earliest(State::to_decode)) {
    buffers_[*buffer].state = State::decoding;
    return Job{Kind::decode, *buffer, 0};
  }
  return std::nullopt;
}

void StepCore::finished(const Job& job) {
  Buffer& buffer = buffers_[job.buffer];
  const Path path = plan_->buffers[job.buffer].path;
  switch (job.kind) {
    case Kind::encode:
      SCANT_CHECK(buffer.state == State::gathering && buffer.parts_left > 0);
      if (--buffer.parts_left == 0) buffer.state = State::waiting;
      return;
    case Kind::begin_first:
      SCANT_CHECK(buffer.state == State::first_leg);
      if (path == Path::all_reduce) return finish_buffer(job.buffer);
      buffer.state = State::to_add;
      return;
    case Kind::add:
      SCANT_CHECK(buffer.state == State::adding);
      if (path == Path::gather) return finish_buffer(job.buffer);
      buffer.state = State::returning;
      return;
    case Kind::begin_second:
      SCANT_CHECK(buffer.state == State::second_leg);
      buffer.state = State::to_decode;
      return;
    case Kind::decode:
      SCANT_CHECK(buffer.state == State::decoding);
      return finish_buffer(job.buffer);
  }
}

void StepCore::finish_buffer(uint32_t buffer) {
  buffers_[buffer].state = State::done;
  if (is_reversed(buffer)) --reversed_under_way_;
  --buffers_left_;
}

}  // namespace scant::gradient
