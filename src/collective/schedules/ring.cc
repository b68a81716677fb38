// Ring algorithms: each rank talks to its two neighbours only, and every link carries the fewest
// bytes possible. Steps are cut into segments that move on independently, so that reducing one
// overlaps sending the next.
#include "base/check.h"
#include "collective/schedules/schedule_builder.h"

namespace scant::collective {
namespace {

int wrap(const ScheduleBuilder& b, int index) { return (index % b.size() + b.size()) % b.size(); }
Rank next(const ScheduleBuilder& b) { return wrap(b, b.rank() + 1); }
Rank previous(const ScheduleBuilder& b) { return wrap(b, b.rank() - 1); }

// Step ids by chunk and segment, as the chunk's last writer or last sender.
using ByChunk = std::vector<StepIds>;

StepIds one(const ByChunk& ids, int chunk, size_t segment) {
  const StepIds& of_chunk = ids[static_cast<size_t>(chunk)];
  return segment < of_chunk.size() ? StepIds{of_chunk[segment]} : StepIds{};
}

// Chunk c starts at rank c, gathers the next ranks' values on its way and is complete at rank c -
// 1: the left operand is what arrived. Then the complete chunks go round once.
void all_reduce(ScheduleBuilder& b) {
  const uint64_t bytes = b.input().input_bytes[0];
  const auto pieces = [&](int c) { return b.segments(b.chunk(bytes, c, b.size())); };
  ByChunk written(static_cast<size_t>(b.size()));
  ByChunk sent(static_cast<size_t>(b.size()));
  for (int s = 0; s + 1 < b.size(); ++s) {
    const int out = wrap(b, b.rank() - s);
    const auto out_pieces = pieces(out);
    for (size_t i = 0; i < out_pieces.size(); ++i) {
      const Ref from = at(s == 0 ? Space::input : Space::output, out_pieces[i].begin);
      sent[static_cast<size_t>(out)].push_back(
          b.send(next(b), from, out_pieces[i].bytes(), one(written, out, i)));
    }
    const int in = wrap(b, b.rank() - s - 1);
    const bool complete = s + 2 == b.size();
    for (const Region piece : pieces(in)) {
      written[static_cast<size_t>(in)].push_back(
          b.receive_reduce(previous(b), at(Space::input, piece.begin),
                           at(Space::output, piece.begin), piece.bytes(), true, complete));
    }
  }
  for (int s = 0; s + 1 < b.size(); ++s) {
    const int out = wrap(b, b.rank() + 1 - s);
    const auto out_pieces = pieces(out);
    for (size_t i = 0; i < out_pieces.size(); ++i) {
      b.send(next(b), at(Space::output, out_pieces[i].begin), out_pieces[i].bytes(),
             one(written, out, i));
    }
    const int in = wrap(b, b.rank() - s);
    const auto in_pieces = pieces(in);
    StepIds arrived;
    for (size_t i = 0; i < in_pieces.size(); ++i) {
      arrived.push_back(b.receive(previous(b), at(Space::output, in_pieces[i].begin),
                                  in_pieces[i].bytes(), one(sent, in, i)));
    }
    written[static_cast<size_t>(in)] = arrived;
  }
}

// As the first half of all_reduce, with parts for chunks: part p starts at rank p + 1 and is
// complete at rank p. Partial sums wait in scratch, since the user's input is only read.
void reduce_scatter(ScheduleBuilder& b) {
  const auto& parts = b.input().input_bytes;
  std::vector<uint64_t> scratch(parts.size());
  ByChunk written(parts.size());
  for (int s = 0; s + 1 < b.size(); ++s) {
    const auto out = static_cast<uint32_t>(wrap(b, b.rank() - 1 - s));
    const auto out_pieces = b.segments({0, parts[out]});
    for (size_t i = 0; i < out_pieces.size(); ++i) {
      const Ref from = s == 0 ? at(Space::input, out_pieces[i].begin, out)
                              : at(Space::scratch, scratch[out] + out_pieces[i].begin);
      b.send(next(b), from, out_pieces[i].bytes(), one(written, static_cast<int>(out), i));
    }
    const auto in = static_cast<uint32_t>(wrap(b, b.rank() - 2 - s));
    const bool complete = s + 2 == b.size();
    if (!complete) scratch[in] = b.reserve_scratch(parts[in]);
    for (const Region piece : b.segments({0, parts[in]})) {
      const Ref to =
          complete ? at(Space::output, piece.begin) : at(Space::scratch, scratch[in] + piece.begin);
      written[in].push_back(b.receive_reduce(previous(b), at(Space::input, piece.begin, in), to,
                                             piece.bytes(), true, complete));
    }
  }
}

void all_gather(ScheduleBuilder& b) {
  const auto& parts = b.input().output_bytes;
  b.copy_part(at(Space::input, 0), at(Space::output, 0, static_cast<uint32_t>(b.rank())),
              b.input().input_bytes[0]);
  StepIds arrived;  // of the part that is sent on in this step
  for (int s = 0; s + 1 < b.size(); ++s) {
    const auto out = static_cast<uint32_t>(wrap(b, b.rank() - s));
    const auto out_pieces = b.segments({0, parts[out]});
    for (size_t i = 0; i < out_pieces.size(); ++i) {
      const Ref from = s == 0 ? at(Space::input, out_pieces[i].begin)
                              : at(Space::output, out_pieces[i].begin, out);
      b.send(next(b), from, out_pieces[i].bytes(), s == 0 ? StepIds{} : StepIds{arrived[i]});
    }
    const auto in = static_cast<uint32_t>(wrap(b, b.rank() - s - 1));
    arrived.clear();
    for (const Region piece : b.segments({0, parts[in]})) {
      arrived.push_back(b.receive(previous(b), at(Space::output, piece.begin, in), piece.bytes()));
    }
  }
}

// A chain from the root: each rank passes every segment on as it comes.
void broadcast(ScheduleBuilder& b) {
  const int place = wrap(b, b.rank() - b.input().root);
  for (const Region piece : b.segments({0, b.input().output_bytes[0]})) {
    const Ref where = at(Space::output, piece.begin);
    StepIds arrived;
    if (place > 0) arrived.push_back(b.receive(previous(b), where, piece.bytes()));
    if (place + 1 < b.size()) b.send(next(b), where, piece.bytes(), arrived);
  }
}

// The same chain towards the root; the own value is the left operand, what the ranks further away
// sent the right one.
void reduce(ScheduleBuilder& b) {
  const int place = wrap(b, b.rank() - b.input().root);
  const uint64_t bytes = b.input().input_bytes[0];
  const bool inner = place > 0 && place + 1 < b.size();
  const uint64_t scratch = inner ? b.reserve_scratch(bytes) : 0;
  for (const Region piece : b.segments({0, bytes})) {
    const Ref own = at(Space::input, piece.begin);
    if (place + 1 == b.size()) {
      b.send(previous(b), own, piece.bytes());
    } else if (place == 0) {
      b.receive_reduce(next(b), own, at(Space::output, piece.begin), piece.bytes(), false, true);
    } else {
      const Ref partial = at(Space::scratch, scratch + piece.begin);
      const uint32_t combined =
          b.receive_reduce(next(b), own, partial, piece.bytes(), false, false);
      b.send(previous(b), partial, piece.bytes(), {combined});
    }
  }
}

}  // namespace

void ring_schedule(ScheduleBuilder& builder) {
  switch (builder.input().kind) {
    case OpKind::all_reduce:
      return all_reduce(builder);
    case OpKind::reduce_scatter:
      return reduce_scatter(builder);
    case OpKind::all_gather:
      return all_gather(builder);
    case OpKind::broadcast:
      return broadcast(builder);
    case OpKind::reduce:
      return reduce(builder);
    default:
      SCANT_CHECK(false, "no ring schedule for this kind");
  }
}

}  // namespace scant::collective
