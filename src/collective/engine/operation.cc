#include "collective/engine/operation.h"

#include <algorithm>

#include "base/check.h"
#include "base/crc.h"
#include "base/little_endian.h"

namespace scant::collective {
namespace {

uint64_t total(const std::vector<Bytes>& parts) {
  uint64_t sum = 0;
  for (const Bytes& part : parts) sum += part.size();
  return sum;
}

uint64_t total(const std::vector<MutableBytes>& parts) {
  uint64_t sum = 0;
  for (const MutableBytes& part : parts) sum += part.size();
  return sum;
}

// 0 when all parts are equal, so that ordinary calls pay nothing.
template <typename Parts>
uint32_t hash_parts(const Parts& parts) {
  bool equal = true;
  for (const auto& part : parts) equal = equal && part.size() == parts[0].size();
  if (equal) return 0;
  uint32_t hash = 1;
  for (const auto& part : parts) {
    std::array<std::byte, 8> bytes{};
    base::store_little(bytes.data(), uint64_t{part.size()});
    hash = base::crc32c(bytes, hash);
  }
  return hash;
}

template <typename Part>
uint64_t part_bytes(const std::vector<Part>& parts, Rank peer) {
  if (parts.empty()) return 0;
  if (parts.size() == 1) return parts[0].size();
  // A call that failed validation may have too few parts; its cancel frames carry what there is.
  return static_cast<size_t>(peer) < parts.size() ? parts[static_cast<size_t>(peer)].size() : 0;
}

bool same_memory(const Bytes& in, const MutableBytes& out) {
  return !in.empty() && in.data() == out.data();
}

bool in_place(const Call& call, Rank rank) {
  if (call.inputs.empty() || call.outputs.empty()) return false;
  const auto index = static_cast<size_t>(rank);
  const size_t in = call.inputs.size() == 1 ? 0 : index;
  const size_t out = call.outputs.size() == 1 ? 0 : index;
  return same_memory(call.inputs[in], call.outputs[out]);
}

}  // namespace

void Channel::reset(Operation* operation, uint32_t index, Rank peer_station, const PeerPlan& plan) {
  op = operation;
  peer_index = index;
  station = peer_station;
  sends_left = plan.sends;
  receives_left = static_cast<uint32_t>(plan.receives.size());
  eager_sent = 0;
  received_bytes = 0;
  last_slot = kNoSlot;
  granted = requested = ready_sent = false;
  listing = Listing::none;
  queue.clear();
  queue_head = 0;
}

// Sends become ready almost in order: search from the back.
void Channel::push(uint32_t step) {
  size_t at = queue.size();
  while (at > queue_head && queue[at - 1] > step) --at;
  queue.insert(queue.begin() + static_cast<std::ptrdiff_t>(at), step);
}

void Channel::pop() {
  ++queue_head;
  if (empty()) {
    queue.clear();
    queue_head = 0;
  }
}

std::byte* Operation::address(const Ref& ref) const {
  switch (ref.space) {
    case Space::input:
      // Schedules only read inputs; one pointer type keeps the steps uniform.
      return const_cast<std::byte*>(call.inputs[ref.part].data()) + ref.offset;
    case Space::output:
      return call.outputs[ref.part].data() + ref.offset;
    case Space::scratch:
      return const_cast<std::byte*>(scratch.data()) + ref.offset;
  }
  return nullptr;
}

void Operation::prepare(Plan& with) {
  plan = &with;
  ++with.users;
  waiting.assign(with.dependencies.begin(), with.dependencies.end());
  steps.assign(with.steps.size(), StepState::waiting);
  steps_left = static_cast<uint32_t>(with.steps.size());
  if (channels.size() < with.peers.size()) channels.resize(with.peers.size());
}

// Of the parts that one rank states and another takes.
bool parts_may_differ(OpKind kind) {
  return kind == OpKind::gather || kind == OpKind::scatter || kind == OpKind::all_to_all;
}

uint64_t collective_bytes(const Call& call) {
  switch (call.kind) {
    case OpKind::all_gather:
      return total(call.outputs);
    case OpKind::reduce_scatter:
      return total(call.inputs);
    case OpKind::broadcast:
    case OpKind::recv:
      return total(call.outputs);
    case OpKind::all_reduce:
    case OpKind::reduce:
    case OpKind::send:
      return total(call.inputs);
    case OpKind::gather:
    case OpKind::scatter:
    case OpKind::all_to_all:
    case OpKind::exchange:
    case OpKind::barrier:
      return 0;  // no rank knows the whole
  }
  return 0;
}

void fill_descriptor(Operation& op, Rank group_rank, int group_size) {
  net::CallDescriptor& d = op.descriptor;
  const OpKind kind = op.call.kind;
  d.kind = static_cast<uint8_t>(kind);
  d.dtype = static_cast<uint8_t>(op.call.dtype);
  const bool reduces =
      kind == OpKind::all_reduce || kind == OpKind::reduce || kind == OpKind::reduce_scatter;
  d.reduce = reduces ? static_cast<uint8_t>(op.call.reduce) : uint8_t{0};
  const bool rooted = kind == OpKind::reduce || kind == OpKind::broadcast ||
                      kind == OpKind::gather || kind == OpKind::scatter;
  d.root = rooted ? static_cast<uint16_t>(op.call.root) : uint16_t{0};
  d.group_size = static_cast<uint16_t>(group_size);
  d.bytes = op.is_exchange() ? exchange_capacity(op.call, group_rank) : collective_bytes(op.call);
  d.algorithm = 0;
  op.parts_hash = 0;
  if (kind == OpKind::all_gather) op.parts_hash = hash_parts(op.call.outputs);
  if (kind == OpKind::reduce_scatter) op.parts_hash = hash_parts(op.call.inputs);
}

net::CallDescriptor descriptor_for(const Operation& op, Rank peer, bool sending) {
  net::CallDescriptor d = op.descriptor;
  if (parts_may_differ(op.call.kind)) {
    d.bytes = sending ? part_bytes(op.call.inputs, peer) : part_bytes(op.call.outputs, peer);
  }
  return d;
}

bool agree(const net::CallDescriptor& x, const net::CallDescriptor& y) {
  const auto pairs = [](uint8_t a, uint8_t b) {
    return a == static_cast<uint8_t>(OpKind::send) && b == static_cast<uint8_t>(OpKind::recv);
  };
  if (pairs(x.kind, y.kind) || pairs(y.kind, x.kind)) {
    return x.dtype == y.dtype && x.bytes == y.bytes && x.group_size == y.group_size;
  }
  return x == y;
}

ScheduleInput schedule_input(const Operation& op, Rank group_rank, int group_size,
                             uint64_t segment_bytes) {
  ScheduleInput input;
  input.kind = op.call.kind;
  input.algorithm = op.algorithm;
  input.rank = group_rank;
  input.size = group_size;
  input.root = op.call.root;
  input.element_bytes = static_cast<uint32_t>(size_bytes(op.call.dtype));
  input.in_place = in_place(op.call, group_rank);
  if (op.is_exchange()) {
    input.input_bytes.assign(op.call.inputs.size(), op.descriptor.bytes);
    input.output_bytes = input.input_bytes;
  } else {
    for (const Bytes& part : op.call.inputs) input.input_bytes.push_back(part.size());
    for (const MutableBytes& part : op.call.outputs) input.output_bytes.push_back(part.size());
  }
  input.segment_bytes = segment_bytes;
  return input;
}

}  // namespace scant::collective
