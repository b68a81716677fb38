// Recursive doubling (whole vectors, fewest steps) and halving-doubling (halves, fewest bytes in 2
// log2(P) steps) for all_reduce: groups that are no power of two are folded (schedule_builder.h).
// all_gather and barrier in log2(P) rounds of dissemination, which serve any group.
#include <algorithm>

#include "base/check.h"
#include "collective/schedules/schedule_builder.h"

namespace scant::collective {
namespace {

// Pieces of the vector with the step that wrote each last.
struct Piece {
  Region region;
  uint32_t written = kNoStep;
};

// The steps that wrote any byte of `region`; pieces are sorted and do not overlap.
StepIds writers(const std::vector<Piece>& pieces, Region region) {
  StepIds ids;
  auto piece = std::partition_point(pieces.begin(), pieces.end(),
                                    [&](const Piece& p) { return p.region.end <= region.begin; });
  for (; piece != pieces.end() && piece->region.begin < region.end; ++piece)
    ids.push_back(piece->written);
  return ids;
}

struct State {
  Space space = Space::input;  // where this rank's current value lies
  std::vector<Piece> pieces;
};

State initial(const ScheduleBuilder& b) {
  State state;
  for (const Region region : b.segments({0, b.input().input_bytes[0]}))
    state.pieces.push_back({region, kNoStep});
  return state;
}

// A folded rank gives its value to its even neighbour and later gets the result.
void folded(ScheduleBuilder& b, const State& state) {
  const Rank partner = b.rank() - 1;
  StepIds sends;
  for (const Piece& piece : state.pieces) {
    sends.push_back(b.send(partner, at(Space::input, piece.region.begin), piece.region.bytes()));
  }
  for (size_t i = 0; i < state.pieces.size(); ++i) {
    const Region region = state.pieces[i].region;
    b.receive(partner, at(Space::output, region.begin), region.bytes(), {sends[i]});
  }
}

bool stands_for_two(const ScheduleBuilder& b, const Fold& fold) {
  return b.rank() < 2 * fold.remainder;
}

void take_folded_value(ScheduleBuilder& b, State& state) {
  for (Piece& piece : state.pieces) {
    piece.written =
        b.receive_reduce(b.rank() + 1, at(Space::input, piece.region.begin),
                         at(Space::output, piece.region.begin), piece.region.bytes(), false, false);
  }
  state.space = Space::output;
}

void recursive_doubling_all_reduce(ScheduleBuilder& b) {
  const Fold fold(b.size());
  State state = initial(b);
  const int me = fold.core_rank(b.rank());
  if (me < 0) return folded(b, state);
  if (stands_for_two(b, fold)) take_folded_value(b, state);
  for (int distance = 1; distance < fold.core; distance *= 2) {
    const int other = me ^ distance;
    const Rank partner = fold.group_rank(other);
    StepIds sends;
    for (const Piece& piece : state.pieces) {
      sends.push_back(b.send(partner, at(state.space, piece.region.begin), piece.region.bytes(),
                             {piece.written}));
    }
    for (size_t i = 0; i < state.pieces.size(); ++i) {
      Piece& piece = state.pieces[i];
      piece.written = b.receive_reduce(
          partner, at(state.space, piece.region.begin), at(Space::output, piece.region.begin),
          piece.region.bytes(), other < me, distance * 2 == fold.core, {sends[i], piece.written});
    }
    state.space = Space::output;
  }
  if (!stands_for_two(b, fold)) return;
  for (const Piece& piece : state.pieces) {
    b.send(b.rank() + 1, at(Space::output, piece.region.begin), piece.region.bytes(),
           {piece.written});
  }
}

class HalvingDoubling {
 public:
  explicit HalvingDoubling(ScheduleBuilder& b)
      : b_(b), fold_(b.size()), me_(fold_.core_rank(b.rank())) {}

  void build() {
    State state = initial(b_);
    if (me_ < 0) return folded(b_, state);
    if (stands_for_two(b_, fold_)) take_folded_value(b_, state);
    space_ = state.space;
    pieces_ = state.pieces;
    halve();
    double_back();
    if (!stands_for_two(b_, fold_)) return;
    for (const Region piece : b_.segments({0, bytes()})) send(b_.rank() + 1, Space::output, piece);
  }

 private:
  struct Level {
    Rank partner = kNoRank;
    Region given;         // the half that the partner completes
    StepIds given_sends;  // by segment of `given`
  };

  [[nodiscard]] uint64_t bytes() const { return b_.input().input_bytes[0]; }

  // Core ranks [first, first + count) own this stretch of the vector.
  [[nodiscard]] Region owned_by(int first, int count) const {
    return {b_.chunk(bytes(), first, fold_.core).begin,
            b_.chunk(bytes(), first + count - 1, fold_.core).end};
  }

  uint32_t send(Rank peer, Space space, Region piece) {
    return b_.send(peer, at(space, piece.begin), piece.bytes(), writers(pieces_, piece));
  }

  void halve() {
    int first = 0;
    for (int count = fold_.core; count > 1; count /= 2) {
      const int half = count / 2;
      const bool upper = me_ >= first + half;
      const int other = upper ? me_ - half : me_ + half;
      Level level;
      level.partner = fold_.group_rank(other);
      level.given = owned_by(upper ? first : first + half, half);
      for (const Region piece : b_.segments(level.given)) {
        level.given_sends.push_back(send(level.partner, space_, piece));
      }
      if (upper) first += half;
      std::vector<Piece> kept;
      for (const Region piece : b_.segments(owned_by(first, half))) {
        kept.push_back({piece, b_.receive_reduce(level.partner, at(space_, piece.begin),
                                                 at(Space::output, piece.begin), piece.bytes(),
                                                 other < me_, half == 1, writers(pieces_, piece))});
      }
      pieces_ = std::move(kept);
      space_ = Space::output;
      levels_.push_back(std::move(level));
    }
  }

  // The partner gives back, complete, the half that it got.
  void double_back() {
    for (auto level = levels_.rbegin(); level != levels_.rend(); ++level) {
      if (!pieces_.empty()) {
        const Region mine = {pieces_.front().region.begin, pieces_.back().region.end};
        for (const Region piece : b_.segments(mine)) send(level->partner, Space::output, piece);
      }
      std::vector<Piece> arrived;
      const auto segments = b_.segments(level->given);
      for (size_t i = 0; i < segments.size(); ++i) {
        arrived.push_back(
            {segments[i], b_.receive(level->partner, at(Space::output, segments[i].begin),
                                     segments[i].bytes(), {level->given_sends[i]})});
      }
      pieces_.insert(pieces_.end(), arrived.begin(), arrived.end());
      std::sort(pieces_.begin(), pieces_.end(),
                [](const Piece& x, const Piece& y) { return x.region.begin < y.region.begin; });
    }
  }

  ScheduleBuilder& b_;
  Fold fold_;
  int me_;
  Space space_ = Space::input;
  std::vector<Piece> pieces_;
  std::vector<Level> levels_;
};

// Blocks wait in scratch in the order own, next, next but one, …: what goes out in a round is one
// stretch from its start, what comes in lies right behind what is there.
void all_gather(ScheduleBuilder& b) {
  const auto& parts = b.input().output_bytes;
  const auto part_at = [&](int place) {
    return static_cast<uint32_t>((b.rank() + place) % b.size());
  };
  std::vector<uint64_t> begin = {0};  // of the block at each place
  for (int place = 0; place < b.size(); ++place)
    begin.push_back(begin.back() + parts[part_at(place)]);
  const auto blocks = [&](int first, int count) {
    return Region{begin[static_cast<size_t>(first)],
                  begin[static_cast<size_t>(first) + static_cast<size_t>(count)]};
  };
  const uint64_t scratch = b.reserve_scratch(begin.back());
  const Region own = blocks(0, 1);
  std::vector<Piece> pieces;
  if (own.bytes() > 0) {
    pieces.push_back({own, b.copy(at(Space::input, 0), at(Space::scratch, scratch), own.bytes())});
  }
  b.copy_part(at(Space::input, 0), at(Space::output, 0, part_at(0)), own.bytes());
  for (int distance = 1; distance < b.size(); distance *= 2) {
    const int count = std::min(distance, b.size() - distance);
    // Both sides cut from the start of the stretch, which lies elsewhere at the other.
    const Region out = blocks(0, count);
    for (const Region piece : b.segments(out)) {
      b.send(static_cast<Rank>(part_at(b.size() - distance)),
             at(Space::scratch, scratch + piece.begin), piece.bytes(), writers(pieces, piece));
    }
    const Region in = blocks(distance, count);
    for (const Region piece : b.segments({0, in.bytes()})) {
      const Region where = {in.begin + piece.begin, in.begin + piece.end};
      pieces.push_back(
          {where, b.receive(static_cast<Rank>(part_at(distance)),
                            at(Space::scratch, scratch + where.begin), where.bytes())});
    }
  }
  for (int place = 1; place < b.size(); ++place) {
    const Region block = blocks(place, 1);
    for (const Region piece : b.segments({0, block.bytes()})) {
      const Region where = {block.begin + piece.begin, block.begin + piece.end};
      b.copy(at(Space::scratch, scratch + where.begin),
             at(Space::output, piece.begin, part_at(place)), where.bytes(), writers(pieces, where));
    }
  }
}

// In round k everyone hears, through others, from the 2^(k+1) ranks before it.
void barrier(ScheduleBuilder& b) {
  StepIds heard;
  for (int distance = 1; distance < b.size(); distance *= 2) {
    b.send((b.rank() + distance) % b.size(), Ref{}, 0, heard);
    heard = {b.receive((b.rank() - distance + b.size()) % b.size(), Ref{}, 0, heard)};
  }
}

}  // namespace

void recursive_doubling_schedule(ScheduleBuilder& builder) {
  if (builder.input().kind == OpKind::barrier) return barrier(builder);
  if (builder.input().kind == OpKind::all_gather) return all_gather(builder);
  SCANT_CHECK(builder.input().kind == OpKind::all_reduce, "no recursive doubling for this kind");
  recursive_doubling_all_reduce(builder);
}

void halving_doubling_schedule(ScheduleBuilder& builder) {
  SCANT_CHECK(builder.input().kind == OpKind::all_reduce, "no halving-doubling for this kind");
  HalvingDoubling(builder).build();
}

}  // namespace scant::collective
