// The table of docs/collectives.md (steps, transfers, bytes, scratch), row by row, against the
// schedules of every rank. Elements of one cache line make the rounding of scratch exact.
#include <algorithm>
#include <bit>
#include <functional>
#include <gtest/gtest.h>
#include <ostream>
#include <tuple>
#include <vector>

#include "collective/testing/schedule_interpreter.h"

namespace scant::collective {
namespace {

constexpr uint32_t kElementBytes = 64;
constexpr uint64_t kUncut = uint64_t{1} << 62;  // a segment size that cuts nothing

struct Row {
  int steps = 0;
  uint64_t transfers = 0;
  uint64_t sent = 0;
  uint64_t received = 0;
  uint64_t scratch = 0;

  bool operator==(const Row&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Row& row) {
  return out << row.steps << " steps, " << row.transfers << " transfers, " << row.sent << " sent, "
             << row.received << " received, " << row.scratch << " scratch";
}

// The symbols and rows of the document, for one rank.
class Table {
 public:
  Table(const ScheduleCase& c, Rank rank)
      : c_(c),
        p_(static_cast<uint64_t>(c.size)),
        r_(rank),
        root_(rank == c.root),
        core_(std::bit_floor(p_)),
        rest_(p_ - core_) {}

  [[nodiscard]] Row row() const {
    if (p_ == 1) return {};
    switch (c_.kind) {
      case OpKind::all_reduce:
        return all_reduce();
      case OpKind::reduce:
        return reduce();
      case OpKind::reduce_scatter:
        return reduce_scatter();
      case OpKind::all_gather:
        return all_gather();
      case OpKind::broadcast:
        return broadcast();
      case OpKind::gather:
        if (root_) return {1, 0, 0, all(0) - n(r_), 0};
        return {1, 1, n(r_), 0, 0};
      case OpKind::scatter:
        if (root_) return {1, p_ - 1, all(0) - n(r_), 0, 0};
        return {1, 0, 0, n(r_), 0};
      case OpKind::all_to_all:
        return {1, p_ - 1, exchanged(true), exchanged(false), 0};
      case OpKind::exchange:  // the schedule; the engine leaves out what a part does not fill
        return {1, p_ - 1, (p_ - 1) * c_.part_bytes(0, 0), (p_ - 1) * c_.part_bytes(0, 0), 0};
      case OpKind::barrier:
        return {log_ceil(), static_cast<uint64_t>(log_ceil()), 0, 0, 0};
      default:
        return {};
    }
  }

 private:
  [[nodiscard]] int ring_steps() const { return c_.size - 1; }
  [[nodiscard]] int log_ceil() const { return static_cast<int>(std::bit_width(p_ - 1)); }
  [[nodiscard]] int log_floor() const { return static_cast<int>(std::bit_width(p_)) - 1; }
  [[nodiscard]] int place() const { return (r_ - c_.root + c_.size) % c_.size; }
  [[nodiscard]] bool farthest() const { return place() == c_.size - 1; }
  [[nodiscard]] uint64_t vector() const { return c_.part_bytes(0, 0); }
  // Bytes of the part of a rank, counted modulo P.
  [[nodiscard]] uint64_t n(int rank) const {
    const Rank of = (rank % c_.size + c_.size) % c_.size;
    const bool sender = c_.kind == OpKind::all_gather || c_.kind == OpKind::gather;
    return sender ? c_.part_bytes(of, 0) : c_.part_bytes(0, of);
  }
  [[nodiscard]] uint64_t all(int from) const { return blocks(from, c_.size); }
  [[nodiscard]] uint64_t blocks(int first, int count) const {
    uint64_t bytes = 0;
    for (int i = 0; i < count; ++i) bytes += n(first + i);
    return bytes;
  }
  // Bytes of chunks [first, first + count) of `of`.
  [[nodiscard]] uint64_t chunks(uint64_t first, uint64_t count, uint64_t of) const {
    const uint64_t elements = vector() / c_.element_bytes;
    const auto cut = [&](uint64_t i) {
      return static_cast<uint64_t>(static_cast<unsigned __int128>(elements) * i / of);
    };
    return (cut(first + count) - cut(first)) * c_.element_bytes;
  }
  [[nodiscard]] uint64_t chunk(int index) const {
    return chunks(static_cast<uint64_t>(index) % p_, 1, p_);
  }
  [[nodiscard]] uint64_t exchanged(bool out) const {
    uint64_t bytes = 0;
    for (Rank peer = 0; peer < c_.size; ++peer) {
      if (peer != r_) bytes += out ? c_.part_bytes(r_, peer) : c_.part_bytes(peer, r_);
    }
    return bytes;
  }
  // Of a direct reduction that combines `bytes` here.
  [[nodiscard]] uint64_t direct_scratch(uint64_t bytes) const {
    return (c_.in_place && p_ > 2 ? p_ : p_ - 1) * bytes;
  }

  [[nodiscard]] Row all_reduce() const {
    const uint64_t bytes = vector();
    const auto l = static_cast<uint64_t>(log_floor());
    const auto rank = static_cast<uint64_t>(r_);
    const bool first_pairs = rank < 2 * rest_;
    const bool folded = first_pairs && rank % 2 == 1;
    const int more = rest_ > 0 ? 2 : 0;
    switch (c_.algorithm) {
      case Algorithm::direct:
        return {1, p_ - 1, (p_ - 1) * bytes, (p_ - 1) * bytes, direct_scratch(bytes)};
      case Algorithm::recursive_doubling: {
        const uint64_t transfers = folded ? 1 : l + (first_pairs ? 1 : 0);
        // The longest way leads from one rank to the one that differs in every bit; a fold adds a
        // step at an end that stands for two.
        const int ends = rest_ == 0 ? 0 : 2 * rest_ <= core_ ? 1 : 2;
        return {log_floor() + ends, transfers, transfers * bytes, transfers * bytes, 0};
      }
      case Algorithm::halving_doubling: {
        if (folded) return {2 * log_floor() + more, 1, bytes, bytes, 0};
        const uint64_t place = first_pairs ? rank / 2 : rank - rest_;
        uint64_t doubling = 0;
        for (uint64_t width = 1; width < core_; width *= 2)
          doubling += chunks(place / width * width, width, core_);
        const uint64_t halving = bytes - chunks(place, 1, core_);
        const uint64_t fold = first_pairs ? bytes : 0;
        // What halving gives away comes back complete; what doubling gives away came in halving.
        return {2 * log_floor() + more, 2 * l + (first_pairs ? 1 : 0), halving + doubling + fold,
                halving + doubling + fold, 0};
      }
      default:
        return {2 * ring_steps(), 2 * (p_ - 1), 2 * bytes - chunk(r_ + 1) - chunk(r_ + 2),
                2 * bytes - chunk(r_) - chunk(r_ + 1), 0};
    }
  }

  [[nodiscard]] uint64_t children() const {
    uint64_t count = 0;
    for (int bit = 1; (place() & bit) == 0 && place() + bit < c_.size; bit *= 2) ++count;
    return count;
  }

  [[nodiscard]] Row reduce() const {
    const uint64_t bytes = vector();
    const uint64_t once = root_ ? 0 : 1;
    switch (c_.algorithm) {
      case Algorithm::direct:
        if (root_) return {1, 0, 0, (p_ - 1) * bytes, direct_scratch(bytes)};
        return {1, 1, bytes, 0, 0};
      case Algorithm::tree:
        return {log_floor(), once, once * bytes, children() * bytes,
                !root_ && children() > 0 ? bytes : 0};
      default:
        return {ring_steps(), once, once * bytes, farthest() ? 0 : bytes,
                root_ || farthest() ? 0 : bytes};
    }
  }

  [[nodiscard]] Row reduce_scatter() const {
    const uint64_t sent = all(0) - n(r_);
    if (c_.algorithm == Algorithm::direct)
      return {1, p_ - 1, sent, (p_ - 1) * n(r_), direct_scratch(n(r_))};
    return {ring_steps(), p_ - 1, sent, all(0) - n(r_ - 1), sent - n(r_ - 1)};
  }

  [[nodiscard]] Row all_gather() const {
    const uint64_t received = all(0) - n(r_);
    switch (c_.algorithm) {
      case Algorithm::direct:
        return {1, p_ - 1, (p_ - 1) * n(r_), received, 0};
      case Algorithm::recursive_doubling: {
        uint64_t sent = 0;
        for (int distance = 1; distance < c_.size; distance *= 2)
          sent += blocks(r_, std::min(distance, c_.size - distance));
        // A last round of few blocks does not wait for the round before it.
        const int waits = 4 * p_ <= uint64_t{3} << log_ceil() ? log_ceil() - 1 : log_ceil();
        return {waits, static_cast<uint64_t>(log_ceil()), sent, received, all(0)};
      }
      default:
        return {ring_steps(), p_ - 1, all(0) - n(r_ + 1), received, 0};
    }
  }

  [[nodiscard]] Row broadcast() const {
    const uint64_t bytes = vector();
    const uint64_t received = root_ ? 0 : bytes;
    switch (c_.algorithm) {
      case Algorithm::direct:
        return {1, root_ ? p_ - 1 : 0, root_ ? (p_ - 1) * bytes : 0, received, 0};
      case Algorithm::tree:
        return {log_floor(), children(), children() * bytes, received, 0};
      default:
        return {ring_steps(), farthest() ? 0U : 1U, farthest() ? 0 : bytes, received, 0};
    }
  }

  const ScheduleCase& c_;
  uint64_t p_;
  Rank r_;
  bool root_;
  uint64_t core_;
  uint64_t rest_;
};

Row row_of(const Schedule& schedule, int steps) {
  const Traffic sent = traffic(schedule);
  Row row = {steps, sent.messages, sent.bytes, 0, schedule.scratch_bytes};
  for (const Step& step : schedule.steps) {
    if (step.kind == Step::Kind::receive || step.kind == Step::Kind::receive_reduce)
      row.received += step.bytes;
  }
  return row;
}

// Every collective of groups of these sizes, every root of the small ones, both ways of memory.
template <typename Visit>
void for_each_case(const std::vector<int>& sizes, const Visit& visit) {
  for (const OpKind kind : {OpKind::all_reduce, OpKind::reduce, OpKind::reduce_scatter,
                            OpKind::all_gather, OpKind::broadcast, OpKind::gather, OpKind::scatter,
                            OpKind::all_to_all, OpKind::exchange, OpKind::barrier}) {
    for (const Algorithm algorithm : algorithms_for(kind)) {
      for (const int size : sizes) {
        for (const bool in_place : {false, true}) {
          for (Rank root = 0; root<size; root += size> 9 ? 7 : 1) {
            ScheduleCase c;
            std::tie(c.kind, c.algorithm, c.size) = std::tie(kind, algorithm, size);
            std::tie(c.root, c.in_place) = std::tie(root, in_place);
            c.element_bytes = kElementBytes;
            c.segment_bytes = kUncut;
            visit(c);
          }
        }
      }
    }
  }
}

const std::vector<int> kSizes = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33};

// Lengths, in elements of a part or vector, that leave no chunk and no part empty.
std::function<uint64_t(Rank, Rank)> filled(int size, bool unequal) {
  const auto elements = static_cast<uint64_t>(size) * 2 + 1;
  return [=](Rank from, Rank to) {
    const uint64_t mixed = static_cast<uint64_t>(from) * 5 + static_cast<uint64_t>(to) * 3;
    return (unequal ? elements + mixed % 7 : elements) * kElementBytes;
  };
}

TEST(ScheduleTable, RowsAreExact) {
  for_each_case(kSizes, [](ScheduleCase c) {
    for (const bool unequal : {false, true}) {
      if (unequal && c.kind == OpKind::exchange) continue;  // one capacity
      c.part_bytes = filled(c.size, unequal);
      ScheduleWorld world(c);
      ASSERT_EQ(world.run(1, [](auto&&...) {}), "") << c.to_string();
      for (Rank rank = 0; rank < c.size; ++rank) {
        EXPECT_EQ(row_of(world.schedule(rank), world.rounds()), Table(c, rank).row())
            << c.to_string() << (unequal ? ", unequal" : "") << ", rank " << rank;
      }
    }
  });
}

// Cutting adds messages, and nothing else; empty chunks and parts take messages away.
TEST(ScheduleTable, BytesAndScratchDependOnNoSegmentSize) {
  for_each_case(kSizes, [](ScheduleCase c) {
    for (const bool sparse : {false, true}) {
      if (c.kind == OpKind::exchange && sparse) continue;  // one capacity
      c.segment_bytes = sparse ? kUncut : 3 * kElementBytes + 1;
      c.part_bytes = filled(c.size, c.kind != OpKind::exchange);
      if (sparse)
        c.part_bytes = [](Rank from, Rank to) {
          const uint64_t mixed =
              static_cast<uint64_t>(from) * 5 + static_cast<uint64_t>(to) * 3 + 2;
          return mixed % 7 / 2 * kElementBytes;
        };
      for (Rank rank = 0; rank < c.size; ++rank) {
        Row row = row_of(make_schedule(c.input_of(rank)), 0);
        Row expected = Table(c, rank).row();
        if (sparse) {
          EXPECT_LE(row.transfers, expected.transfers) << c.to_string();
        } else {
          EXPECT_GE(row.transfers, expected.transfers) << c.to_string();
        }
        expected.steps = 0;
        expected.transfers = row.transfers;
        EXPECT_EQ(row, expected) << c.to_string() << ", rank " << rank;
      }
    }
  });
}

// Chunks of a vector that no machine holds: the cuts do not overflow.
TEST(ScheduleTable, HoldsForVectorsOfAnExabyte) {
  for_each_case({2, 3, 7, 8, 9}, [](ScheduleCase c) {
    const bool divides = c.kind == OpKind::all_reduce && c.algorithm != Algorithm::direct &&
                         c.algorithm != Algorithm::recursive_doubling;
    if (!divides) return;
    c.element_bytes = 1;
    c.part_bytes = [](Rank, Rank) { return (uint64_t{1} << 61) + 5; };
    for (Rank rank = 0; rank < c.size; ++rank) {
      Row expected = Table(c, rank).row();
      expected.steps = 0;
      EXPECT_EQ(row_of(make_schedule(c.input_of(rank)), 0), expected)
          << c.to_string() << ", rank " << rank;
    }
  });
}

ScheduleCase bytes_of(OpKind kind, Algorithm algorithm, int size, uint64_t bytes) {
  ScheduleCase c;
  std::tie(c.kind, c.algorithm, c.size) = std::tie(kind, algorithm, size);
  c.element_bytes = 1;
  c.part_bytes = [bytes](Rank, Rank) { return bytes; };
  return c;
}

// Regions of different ranks never share a cache line.
TEST(ScheduleTable, ScratchRegionsAreWholeCacheLines) {
  const auto scratch = [](const ScheduleCase& c) {
    return make_schedule(c.input_of(0)).scratch_bytes;
  };
  ScheduleCase direct = bytes_of(OpKind::all_reduce, Algorithm::direct, 3, 100);
  EXPECT_EQ(scratch(direct), 2 * 128U);
  direct.in_place = true;
  EXPECT_EQ(scratch(direct), 3 * 128U);
  direct.segment_bytes = 40;  // 40, 40 and 20
  EXPECT_EQ(scratch(direct), 3 * 3 * 64U);
  EXPECT_EQ(scratch(bytes_of(OpKind::reduce_scatter, Algorithm::ring, 4, 65)), 2 * 128U);
  EXPECT_EQ(scratch(bytes_of(OpKind::all_gather, Algorithm::recursive_doubling, 5, 13)), 128U);
}

// Chunks [0, 7) and [7, 14) in segments of 4: the second begins inside a segment.
TEST(ScheduleTable, TransfersAreCutAtMultiplesFromTheStartOfTheBuffer) {
  ScheduleCase c = bytes_of(OpKind::all_reduce, Algorithm::ring, 2, 14);
  c.segment_bytes = 4;
  for (Rank rank = 0; rank < 2; ++rank) {
    std::vector<uint64_t> sent;
    for (const Step& step : make_schedule(c.input_of(rank)).steps) {
      if (step.kind == Step::Kind::send) sent.push_back(step.bytes);
    }
    const auto expected =
        rank == 0 ? std::vector<uint64_t>{4, 3, 1, 4, 2} : std::vector<uint64_t>{1, 4, 2, 4, 3};
    EXPECT_EQ(sent, expected) << "rank " << rank;
  }
}

// Of equal parts, all_gather by recursive doubling sends no byte twice.
TEST(ScheduleTable, RecursiveDoublingGathersEqualPartsWithTheFewestBytes) {
  for (int size = 2; size <= 33; ++size) {
    const ScheduleCase c = bytes_of(OpKind::all_gather, Algorithm::recursive_doubling, size, 12);
    for (Rank rank = 0; rank < size; ++rank)
      EXPECT_EQ(traffic(make_schedule(c.input_of(rank))).bytes,
                static_cast<uint64_t>(size - 1) * 12);
  }
}

}  // namespace
}  // namespace scant::collective
