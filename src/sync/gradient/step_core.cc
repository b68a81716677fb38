#include "sync/gradient/step_core.h"

#include "base/check.h"

namespace scant::sync {

void StepCore::begin(const FusionPlan& plan) {
  plan_ = &plan;
  buffers_.assign(plan.buffers.size(), Buffer{});
  buffer_of_.clear();
  for (uint32_t i = 0; i < plan.buffers.size(); ++i) {
    buffers_[i].parts_left = plan.buffers[i].parts;
    buffer_of_.insert(buffer_of_.end(), plan.buffers[i].parts, i);
  }
  ready_.assign(buffer_of_.size(), false);
  next_first_ = 0;
  next_second_ = 0;
  buffers_left_ = static_cast<uint32_t>(buffers_.size());
}

void StepCore::part_ready(uint32_t part) {
  SCANT_CHECK(part < ready_.size() && !ready_[part]);
  ready_[part] = true;
  buffers_[buffer_of_[part]].to_encode.push_back(part);
}

std::optional<StepCore::Job> StepCore::submission() {
  if (next_first_ < buffers_.size() && buffers_[next_first_].state == State::waiting) {
    buffers_[next_first_].state = State::first_leg;
    return Job{Kind::begin_first, next_first_++, 0};
  }
  while (next_second_ < buffers_.size() && plan_->buffers[next_second_].path != Path::split) {
    ++next_second_;
  }
  if (next_second_ < buffers_.size() && buffers_[next_second_].state == State::returning) {
    buffers_[next_second_].state = State::second_leg;
    return Job{Kind::begin_second, next_second_++, 0};
  }
  return std::nullopt;
}

std::optional<StepCore::Job> StepCore::next() {
  if (auto job = submission()) return job;
  for (uint32_t i = 0; i < buffers_.size(); ++i) {
    if (buffers_[i].state == State::to_add) {
      buffers_[i].state = State::adding;
      return Job{Kind::add, i, 0};
    }
  }
  for (uint32_t i = 0; i < buffers_.size(); ++i) {
    if (!buffers_[i].to_encode.empty()) {
      const uint32_t part = buffers_[i].to_encode.back();
      buffers_[i].to_encode.pop_back();
      return Job{Kind::encode, i, part};
    }
  }
  for (uint32_t i = 0; i < buffers_.size(); ++i) {
    if (buffers_[i].state == State::to_decode) {
      buffers_[i].state = State::decoding;
      return Job{Kind::decode, i, 0};
    }
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
      if (path == Path::all_reduce) return finish_buffer(buffer);
      buffer.state = State::to_add;
      return;
    case Kind::add:
      SCANT_CHECK(buffer.state == State::adding);
      if (path == Path::gather) return finish_buffer(buffer);
      buffer.state = State::returning;
      return;
    case Kind::begin_second:
      SCANT_CHECK(buffer.state == State::second_leg);
      buffer.state = State::to_decode;
      return;
    case Kind::decode:
      SCANT_CHECK(buffer.state == State::decoding);
      return finish_buffer(buffer);
  }
}

void StepCore::finish_buffer(Buffer& buffer) {
  buffer.state = State::done;
  --buffers_left_;
}

}  // namespace scant::sync
