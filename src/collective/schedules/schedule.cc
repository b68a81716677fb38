// Building schedules: dispatch to the algorithm families and what they share.
#include "collective/schedules/schedule.h"

#include <algorithm>

#include "base/check.h"
#include "collective/schedules/schedule_builder.h"

namespace scant::collective {

ScheduleBuilder::ScheduleBuilder(const ScheduleInput& input)
    : input_(input),
      segment_bytes_(std::max<uint64_t>(input.segment_bytes / input.element_bytes, 1) *
                     input.element_bytes) {}

Region ScheduleBuilder::chunk(uint64_t bytes, int index, int count) const {
  const uint64_t elements = bytes / input_.element_bytes;
  const auto parts = static_cast<uint64_t>(count);
  const auto cut = [&](uint64_t i) {  // elements * i / parts without overflow
    return (elements / parts * i + elements % parts * i / parts) * input_.element_bytes;
  };
  const auto i = static_cast<uint64_t>(index);
  return {cut(i), cut(i + 1)};
}

std::vector<Region> ScheduleBuilder::segments(Region region) const {
  std::vector<Region> pieces;
  for (uint64_t begin = region.begin; begin < region.end;) {
    const uint64_t end = std::min(region.end, (begin / segment_bytes_ + 1) * segment_bytes_);
    pieces.push_back({begin, end});
    begin = end;
  }
  return pieces;
}

uint32_t ScheduleBuilder::add(Step step, const StepIds& after) {
  StepIds waits;
  for (const uint32_t id : after) {
    if (id != kNoStep && std::find(waits.begin(), waits.end(), id) == waits.end())
      waits.push_back(id);
  }
  // A step names at most three others: empty copies join the rest.
  while (waits.size() > step.after.size()) {
    Step join;
    join.kind = Step::Kind::copy;
    std::copy_n(waits.begin(), join.after.size(), join.after.begin());
    waits.erase(waits.begin(), waits.begin() + static_cast<std::ptrdiff_t>(join.after.size()));
    waits.push_back(static_cast<uint32_t>(schedule_.steps.size()));
    schedule_.steps.push_back(join);
  }
  std::copy(waits.begin(), waits.end(), step.after.begin());
  schedule_.steps.push_back(step);
  return static_cast<uint32_t>(schedule_.steps.size() - 1);
}

uint32_t ScheduleBuilder::send(Rank peer, Ref from, uint64_t bytes, const StepIds& after) {
  Step step;
  step.kind = Step::Kind::send;
  step.peer = peer;
  step.a = from;
  step.bytes = bytes;
  return add(step, after);
}

uint32_t ScheduleBuilder::receive(Rank peer, Ref to, uint64_t bytes, const StepIds& after) {
  Step step;
  step.kind = Step::Kind::receive;
  step.peer = peer;
  step.destination = to;
  step.bytes = bytes;
  return add(step, after);
}

uint32_t ScheduleBuilder::receive_reduce(Rank peer, Ref own, Ref to, uint64_t bytes,
                                         bool received_first, bool finish, const StepIds& after) {
  Step step;
  step.kind = Step::Kind::receive_reduce;
  step.peer = peer;
  step.a = own;
  step.destination = to;
  step.bytes = bytes;
  step.received_first = received_first;
  step.finish = finish;
  return add(step, after);
}

uint32_t ScheduleBuilder::copy(Ref from, Ref to, uint64_t bytes, const StepIds& after) {
  Step step;
  step.kind = Step::Kind::copy;
  step.a = from;
  step.destination = to;
  step.bytes = bytes;
  return add(step, after);
}

uint32_t ScheduleBuilder::reduce(Ref left, Ref right, Ref to, uint64_t bytes, bool finish,
                                 const StepIds& after) {
  Step step;
  step.kind = Step::Kind::reduce;
  step.a = left;
  step.b = right;
  step.destination = to;
  step.bytes = bytes;
  step.finish = finish;
  return add(step, after);
}

void ScheduleBuilder::copy_part(Ref from, Ref to, uint64_t bytes) {
  if (bytes > 0 && !input_.in_place) copy(from, to, bytes);
}

uint64_t ScheduleBuilder::reserve_scratch(uint64_t bytes) {
  constexpr uint64_t kAlignment = 64;  // a cache line: regions of different ranks never share one
  const uint64_t begin = schedule_.scratch_bytes;
  schedule_.scratch_bytes += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return begin;
}

void ScheduleBuilder::reduce_in_order(const std::vector<Operand>& operands, uint64_t offset,
                                      uint64_t bytes, const StepIds& overwrites) {
  // In place, this rank's own value lies in the output until it is used, so partial results wait in
  // scratch.
  const bool through_scratch = input_.in_place && operands.size() > 2;
  const Ref result = at(Space::output, offset);
  const Ref partial = through_scratch ? at(Space::scratch, reserve_scratch(bytes)) : result;
  Ref left = operands[0].where;
  uint32_t left_step = operands[0].arrived;
  for (size_t q = 1; q < operands.size(); ++q) {
    const bool last = q + 1 == operands.size();
    StepIds after = {left_step, operands[q].arrived};
    if (last) after.insert(after.end(), overwrites.begin(), overwrites.end());
    left_step = reduce(left, operands[q].where, last ? result : partial, bytes, last, after);
    left = partial;
  }
}

Schedule ScheduleBuilder::finish() {
  std::vector<uint32_t> sent(static_cast<size_t>(size()), 0);
  std::vector<uint32_t> received(static_cast<size_t>(size()), 0);
  for (Step& step : schedule_.steps) {
    const auto peer = static_cast<size_t>(step.peer);
    if (step.kind == Step::Kind::send) step.slot = sent[peer]++;
    if (step.kind == Step::Kind::receive || step.kind == Step::Kind::receive_reduce)
      step.slot = received[peer]++;
  }
  return std::move(schedule_);
}

Fold::Fold(int size) {
  while (core * 2 <= size) core *= 2;
  remainder = size - core;
}

int Fold::core_rank(Rank rank) const {
  if (rank >= 2 * remainder) return rank - remainder;
  return rank % 2 == 0 ? rank / 2 : -1;
}

Rank Fold::group_rank(int core_rank) const {
  return core_rank < remainder ? core_rank * 2 : core_rank + remainder;
}

std::vector<Algorithm> algorithms_for(OpKind kind) {
  switch (kind) {
    case OpKind::all_reduce:
      return {Algorithm::ring, Algorithm::halving_doubling, Algorithm::recursive_doubling,
              Algorithm::direct};
    case OpKind::reduce:
    case OpKind::broadcast:
      return {Algorithm::tree, Algorithm::ring, Algorithm::direct};
    case OpKind::reduce_scatter:
      return {Algorithm::ring, Algorithm::direct};
    case OpKind::all_gather:
      return {Algorithm::ring, Algorithm::direct, Algorithm::recursive_doubling};
    case OpKind::gather:
    case OpKind::scatter:
    case OpKind::all_to_all:
    case OpKind::exchange:
    case OpKind::send:
    case OpKind::recv:
      return {Algorithm::direct};
    case OpKind::barrier:
      return {Algorithm::recursive_doubling};
  }
  return {};
}

namespace {

// A group of one: the own part moves, nothing else happens.
void alone(ScheduleBuilder& builder) {
  const ScheduleInput& input = builder.input();
  if (input.kind == OpKind::broadcast || input.kind == OpKind::barrier || input.input_bytes.empty())
    return;
  builder.copy_part(at(Space::input, 0), at(Space::output, 0), input.input_bytes[0]);
}

}  // namespace

Schedule make_schedule(const ScheduleInput& input) {
  SCANT_CHECK(input.size >= 1 && input.rank >= 0 && input.rank < input.size);
  SCANT_CHECK(input.element_bytes >= 1);
  ScheduleBuilder builder(input);
  if (input.size == 1) {
    alone(builder);
    return builder.finish();
  }
  switch (input.algorithm) {
    case Algorithm::direct:
      direct_schedule(builder);
      break;
    case Algorithm::ring:
      ring_schedule(builder);
      break;
    case Algorithm::tree:
      tree_schedule(builder);
      break;
    case Algorithm::recursive_doubling:
      recursive_doubling_schedule(builder);
      break;
    case Algorithm::halving_doubling:
      halving_doubling_schedule(builder);
      break;
  }
  return builder.finish();
}

Traffic traffic(const Schedule& schedule) {
  Traffic total;
  for (const Step& step : schedule.steps) {
    if (step.kind != Step::Kind::send) continue;
    ++total.messages;
    total.bytes += step.bytes;
  }
  return total;
}

}  // namespace scant::collective
