#include "gradient/step_core.h"

#include <algorithm>
#include <functional>

#include "base/check.h"

namespace scant::gradient {

namespace {

constexpr size_t index(Stage stage) { return static_cast<size_t>(stage); }

}  // namespace

void StepCore::begin_buffer(const BufferPlan& plan, Buffer& buffer) {
  buffer.parts_left = plan.parts;
  buffer.to_encode.reserve(plan.parts);
  for (auto i = static_cast<uint32_t>(plan.points.size()); i-- > 0;) {
    if (plan.points[i].first.rank > 0) buffer.matrices.push_back(plan.first_part + i);
  }
  if (!buffer.matrices.empty()) buffer.stage = Stage::basis;
}

void StepCore::begin(const FusionPlan& plan) {
  plan_ = &plan;
  buffers_.assign(plan.buffers.size(), Buffer{});
  buffer_of_.clear();
  for (uint32_t i = 0; i < plan.buffers.size(); ++i) {
    begin_buffer(plan.buffers[i], buffers_[i]);
    buffer_of_.insert(buffer_of_.end(), plan.buffers[i].parts, i);
  }
  turns_.resize(plan.buffers.size());
  for (uint32_t turn = 0; turn < turns_.size(); ++turn) turns_[turn] = buffer_at(plan, turn);
  ready_.assign(buffer_of_.size(), false);
  for (Turns& turns : next_) turns = {};
  reversed_under_way_ = 0;
  begun_ = 0;
  held_ = false;
  buffers_left_ = static_cast<uint32_t>(buffers_.size());
}

void StepCore::part_ready(uint32_t part) {
  SCANT_CHECK(part < ready_.size() && !ready_[part]);
  ready_[part] = true;
  buffers_[buffer_of_[part]].to_encode.push_back(part);
}

bool StepCore::may_begin(Stage stage) {
  uint32_t& next = next_[index(stage)].first;
  while (next < turns_.size() && !takes_part(turns_[next], stage)) ++next;
  if (held_ || next == turns_.size()) return false;
  const uint32_t buffer = turns_[next];
  if (!is_at(buffer, stage, State::waiting)) return false;
  return stage == Stage::basis || !is_reversed(buffer) || reversed_under_way_ < kCredit;
}

std::optional<StepCore::Job> StepCore::next_leg(Stage stage) {
  Turns& next = next_[index(stage)];
  if (may_begin(stage)) {
    const uint32_t buffer = turns_[next.first++];
    begun_ = std::max(begun_, next.first);
    buffers_[buffer].state = State::first_leg;
    if (stage == Stage::values && is_reversed(buffer)) ++reversed_under_way_;
    return Job{Kind::begin_first, buffer, 0, stage};
  }
  const auto passes = [&](uint32_t buffer) {
    return plan_->buffers[buffer].path != Path::split || !takes_part(buffer, stage);
  };
  while (next.second < turns_.size() && passes(turns_[next.second])) ++next.second;
  if (next.second < turns_.size() && is_at(turns_[next.second], stage, State::returning)) {
    const uint32_t buffer = turns_[next.second++];
    buffers_[buffer].state = State::second_leg;
    return Job{Kind::begin_second, buffer, 0, stage};
  }
  return std::nullopt;
}

// The rest of a buffer waits for its basis.
std::optional<StepCore::Job> StepCore::next_leg() {
  if (auto job = next_leg(Stage::basis)) return job;
  return next_leg(Stage::values);
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
    return Job{Kind::add, *buffer, 0, buffers_[*buffer].stage};
  }
  for (const uint32_t number : turns_) {
    Buffer& buffer = buffers_[number];
    if (buffer.stage == Stage::basis && buffer.state == State::to_decode) {
      buffer.state = State::decoding;
      return Job{Kind::decode, number, 0, Stage::basis};
    }
    if (buffer.to_encode.empty()) continue;
    const uint32_t part = buffer.to_encode.back();
    buffer.to_encode.pop_back();
    const bool left = buffer.stage == Stage::basis && is_matrix(buffer, part);
    return Job{Kind::encode, number, part, left ? Stage::basis : Stage::values};
  }
  if (const auto buffer = earliest(State::to_decode)) {
    buffers_[*buffer].state = State::decoding;
    return Job{Kind::decode, *buffer, 0, Stage::values};
  }
  return std::nullopt;
}

bool StepCore::is_matrix(const Buffer& buffer, uint32_t part) {
  return std::ranges::binary_search(buffer.matrices, part, std::greater<>{});
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
      if (path == Path::all_reduce) return finish_stage(job.buffer);
      buffer.state = State::to_add;
      return;
    case Kind::add:
      SCANT_CHECK(buffer.state == State::adding);
      if (path == Path::gather) return finish_stage(job.buffer);
      buffer.state = State::returning;
      return;
    case Kind::begin_second:
      SCANT_CHECK(buffer.state == State::second_leg);
      buffer.state = State::to_decode;
      return;
    case Kind::decode:
      SCANT_CHECK(buffer.state == State::decoding);
      return finish_stage(job.buffer);
  }
}

// Room for the parts was made when the step began.
void StepCore::finish_stage(uint32_t number) {
  Buffer& buffer = buffers_[number];
  if (buffer.stage == Stage::basis) {
    buffer.stage = Stage::values;
    buffer.state = State::gathering;
    buffer.parts_left = static_cast<uint32_t>(buffer.matrices.size());
    buffer.to_encode.assign(buffer.matrices.begin(), buffer.matrices.end());
    return;
  }
  buffer.state = State::done;
  if (is_reversed(number)) --reversed_under_way_;
  --buffers_left_;
}

}  // namespace scant::gradient
