// Direct algorithms: each pair exchanges its bytes once. One step; the choice for few or small
// bytes, and the only one where every pair has bytes of its own (all_to_all) or one rank has all
// (gather, scatter).
#include "base/check.h"
#include "collective/schedules/schedule_builder.h"

namespace scant::collective {
namespace {

uint32_t part_of(Rank rank) { return static_cast<uint32_t>(rank); }

// The i-th peer after this rank, so that no receiver is everyone's first target.
Rank after(const ScheduleBuilder& b, int distance) { return (b.rank() + distance) % b.size(); }
Rank before(const ScheduleBuilder& b, int distance) {
  return (b.rank() + b.size() - distance) % b.size();
}

// Everyone's value of one segment lands in scratch; `own` is this rank's.
std::vector<ScheduleBuilder::Operand> receive_all(ScheduleBuilder& b, Ref own, uint64_t bytes) {
  std::vector<ScheduleBuilder::Operand> operands(static_cast<size_t>(b.size()));
  operands[part_of(b.rank())] = {own, kNoStep};
  for (int d = 1; d < b.size(); ++d) {
    const Rank peer = before(b, d);
    const Ref slot = at(Space::scratch, b.reserve_scratch(bytes));
    operands[part_of(peer)] = {slot, b.receive(peer, slot, bytes)};
  }
  return operands;
}

void all_reduce(ScheduleBuilder& b) {
  for (const Region piece : b.segments({0, b.input().input_bytes[0]})) {
    StepIds sends;
    for (int d = 1; d < b.size(); ++d) {
      sends.push_back(b.send(after(b, d), at(Space::input, piece.begin), piece.bytes()));
    }
    const auto operands = receive_all(b, at(Space::input, piece.begin), piece.bytes());
    b.reduce_in_order(operands, piece.begin, piece.bytes(), b.input().in_place ? sends : StepIds{});
  }
}

void reduce(ScheduleBuilder& b) {
  for (const Region piece : b.segments({0, b.input().input_bytes[0]})) {
    const Ref own = at(Space::input, piece.begin);
    if (b.rank() != b.input().root) {
      b.send(b.input().root, own, piece.bytes());
    } else {
      b.reduce_in_order(receive_all(b, own, piece.bytes()), piece.begin, piece.bytes(), {});
    }
  }
}

void reduce_scatter(ScheduleBuilder& b) {
  for (int d = 1; d < b.size(); ++d) {
    const Rank peer = after(b, d);
    for (const Region piece : b.segments({0, b.input().input_bytes[part_of(peer)]})) {
      b.send(peer, at(Space::input, piece.begin, part_of(peer)), piece.bytes());
    }
  }
  for (const Region piece : b.segments({0, b.input().output_bytes[0]})) {
    const auto operands =
        receive_all(b, at(Space::input, piece.begin, part_of(b.rank())), piece.bytes());
    b.reduce_in_order(operands, piece.begin, piece.bytes(), {});
  }
}

void send_parts(ScheduleBuilder& b, Rank peer, Space space, uint32_t part, uint64_t bytes) {
  for (const Region piece : b.segments({0, bytes}))
    b.send(peer, at(space, piece.begin, part), piece.bytes());
}

void receive_parts(ScheduleBuilder& b, Rank peer, Space space, uint32_t part, uint64_t bytes) {
  for (const Region piece : b.segments({0, bytes}))
    b.receive(peer, at(space, piece.begin, part), piece.bytes());
}

void all_gather(ScheduleBuilder& b) {
  const ScheduleInput& input = b.input();
  b.copy_part(at(Space::input, 0), at(Space::output, 0, part_of(b.rank())), input.input_bytes[0]);
  for (int d = 1; d < b.size(); ++d) {
    send_parts(b, after(b, d), Space::input, 0, input.input_bytes[0]);
    const uint32_t part = part_of(before(b, d));
    receive_parts(b, before(b, d), Space::output, part, input.output_bytes[part]);
  }
}

void broadcast(ScheduleBuilder& b) {
  const ScheduleInput& input = b.input();
  if (b.rank() != input.root)
    return receive_parts(b, input.root, Space::output, 0, input.output_bytes[0]);
  for (int d = 1; d < b.size(); ++d)
    send_parts(b, after(b, d), Space::output, 0, input.output_bytes[0]);
}

void gather(ScheduleBuilder& b) {
  const ScheduleInput& input = b.input();
  if (b.rank() != input.root)
    return send_parts(b, input.root, Space::input, 0, input.input_bytes[0]);
  b.copy_part(at(Space::input, 0), at(Space::output, 0, part_of(b.rank())), input.input_bytes[0]);
  for (int d = 1; d < b.size(); ++d) {
    const uint32_t part = part_of(after(b, d));
    receive_parts(b, after(b, d), Space::output, part, input.output_bytes[part]);
  }
}

void scatter(ScheduleBuilder& b) {
  const ScheduleInput& input = b.input();
  if (b.rank() != input.root)
    return receive_parts(b, input.root, Space::output, 0, input.output_bytes[0]);
  b.copy_part(at(Space::input, 0, part_of(b.rank())), at(Space::output, 0), input.output_bytes[0]);
  for (int d = 1; d < b.size(); ++d) {
    const uint32_t part = part_of(after(b, d));
    send_parts(b, after(b, d), Space::input, part, input.input_bytes[part]);
  }
}

void all_to_all(ScheduleBuilder& b) {
  const ScheduleInput& input = b.input();
  const uint32_t own = part_of(b.rank());
  b.copy_part(at(Space::input, 0, own), at(Space::output, 0, own), input.input_bytes[own]);
  for (int d = 1; d < b.size(); ++d) {
    const uint32_t to = part_of(after(b, d));
    const uint32_t from = part_of(before(b, d));
    send_parts(b, after(b, d), Space::input, to, input.input_bytes[to]);
    receive_parts(b, before(b, d), Space::output, from, input.output_bytes[from]);
  }
}

}  // namespace

void direct_schedule(ScheduleBuilder& builder) {
  switch (builder.input().kind) {
    case OpKind::all_reduce:
      return all_reduce(builder);
    case OpKind::reduce:
      return reduce(builder);
    case OpKind::reduce_scatter:
      return reduce_scatter(builder);
    case OpKind::all_gather:
      return all_gather(builder);
    case OpKind::broadcast:
      return broadcast(builder);
    case OpKind::gather:
      return gather(builder);
    case OpKind::scatter:
      return scatter(builder);
    case OpKind::all_to_all:
    case OpKind::exchange:  // of the capacity
      return all_to_all(builder);
    default:
      SCANT_CHECK(false, "no direct schedule for this kind");
  }
}

}  // namespace scant::collective
