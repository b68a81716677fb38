// Every schedule of every collective on watched memory: the static checks, then runs in random
// order whose results must be, bit for bit, what docs/collectives.md (Determinism) writes down.
// Elements are combined by a hash that neither commutes nor associates, so that any other order,
// operand or number of final reductions shows.
#include <algorithm>
#include <bit>
#include <cstring>
#include <gtest/gtest.h>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "collective/testing/schedule_interpreter.h"

namespace scant::collective {
namespace {

constexpr uint64_t kSeed = 20260611;
constexpr uint64_t kUncut = uint64_t{1} << 30;  // a segment size that cuts nothing

using Elements = std::vector<uint64_t>;

// The arithmetic of elements of a few bytes.
class Hash {
 public:
  explicit Hash(uint32_t element_bytes) : bytes_(element_bytes) {}

  [[nodiscard]] uint64_t combine(uint64_t left, uint64_t right, bool finish) const {
    uint64_t h = left * 0x9E3779B97F4A7C15 + std::rotl(right, 23) * 0xC2B2AE3D27D4EB4F + 0x165667B1;
    h ^= h >> 31;
    if (finish) h = (h ^ 0x5851F42D4C957F2D) * 0xD6E8FEB86659FD93;
    return h & mask();
  }

  void combine(const std::byte* left, const std::byte* right, std::byte* to, size_t bytes,
               bool finish) const {
    for (size_t at = 0; at < bytes; at += bytes_)
      store(combine(load(left + at), load(right + at), finish), to + at);
  }

  [[nodiscard]] Elements load_all(const std::vector<std::byte>& from) const {
    Elements all;
    for (size_t at = 0; at < from.size(); at += bytes_) all.push_back(load(from.data() + at));
    return all;
  }

 private:
  [[nodiscard]] uint64_t mask() const { return bytes_ == 8 ? ~0ULL : (1ULL << 8 * bytes_) - 1; }
  [[nodiscard]] uint64_t load(const std::byte* from) const {
    uint64_t value = 0;
    std::memcpy(&value, from, bytes_);
    return value;
  }
  void store(uint64_t value, std::byte* to) const { std::memcpy(to, &value, bytes_); }

  uint32_t bytes_;
};

// The expressions of docs/collectives.md over the values x of one element, by rank.
class Expression {
 public:
  Expression(const Hash& hash, Elements x) : hash_(hash), x_(std::move(x)) {}

  // ((x_first + x_first+1) + …) + x_first-1
  [[nodiscard]] uint64_t left_fold(size_t first) const {
    uint64_t value = x(first);
    for (size_t i = 1; i < size(); ++i) value = hash_.combine(value, x(first + i), i + 1 == size());
    return value;
  }

  // x_first + (x_first+1 + (… + x_first-1))
  [[nodiscard]] uint64_t right_fold(size_t first) const {
    uint64_t value = x(first + size() - 1);
    for (size_t i = size() - 1; i > 0; --i) value = hash_.combine(x(first + i - 1), value, i == 1);
    return value;
  }

  [[nodiscard]] uint64_t neighbours_first() const {
    Elements level = folded();
    while (level.size() > 1) {
      Elements above;
      for (size_t i = 0; i < level.size(); i += 2)
        above.push_back(hash_.combine(level[i], level[i + 1], level.size() == 2));
      level = above;
    }
    return level[0];
  }

  [[nodiscard]] uint64_t halves_first() const {
    Elements level = folded();
    while (level.size() > 1) {
      const size_t half = level.size() / 2;
      for (size_t i = 0; i < half; ++i)
        level[i] = hash_.combine(level[i], level[i + half], half == 1);
      level.resize(half);
    }
    return level[0];
  }

  // The subtree of a place: all places that differ from it in bits below its lowest one.
  [[nodiscard]] uint64_t tree(size_t root, size_t place = 0) const {
    uint64_t value = x(root + place);
    for (size_t bit = 1; (place & bit) == 0 && place + bit < size(); bit *= 2) {
      const bool last = place == 0 && bit * 2 >= size();
      value = hash_.combine(value, tree(root, place + bit), last);
    }
    return value;
  }

 private:
  [[nodiscard]] size_t size() const { return x_.size(); }
  [[nodiscard]] uint64_t x(size_t rank) const { return x_[rank % size()]; }
  [[nodiscard]] Elements folded() const {
    const size_t core = std::bit_floor(size());
    const size_t remainder = size() - core;
    Elements leaves;
    for (size_t i = 0; i < remainder; ++i)
      leaves.push_back(hash_.combine(x(2 * i), x(2 * i + 1), false));
    for (size_t i = remainder; i < core; ++i) leaves.push_back(x(i + remainder));
    return leaves;
  }

  const Hash& hash_;
  Elements x_;
};

// One of P chunks that are cut at E·i/P.
size_t chunk_of(size_t element, size_t elements, size_t size) {
  size_t chunk = 0;
  while (elements * (chunk + 1) / size <= element) ++chunk;
  return chunk;
}

bool is_reduction(OpKind kind) {
  return kind == OpKind::all_reduce || kind == OpKind::reduce || kind == OpKind::reduce_scatter;
}

bool is_rooted(OpKind kind) {
  return kind == OpKind::reduce || kind == OpKind::broadcast || kind == OpKind::gather ||
         kind == OpKind::scatter;
}

uint64_t expected_element(const ScheduleCase& c, const Expression& x, Rank rank, size_t element,
                          size_t elements) {
  const auto size = static_cast<size_t>(c.size);
  const auto root = static_cast<size_t>(c.root);
  switch (c.algorithm) {
    case Algorithm::direct:
      return x.left_fold(0);
    case Algorithm::recursive_doubling:
      return x.neighbours_first();
    case Algorithm::halving_doubling:
      return x.halves_first();
    case Algorithm::tree:
      return x.tree(root);
    case Algorithm::ring:
      break;
  }
  if (c.kind == OpKind::reduce) return x.right_fold(root);
  if (c.kind == OpKind::reduce_scatter) return x.left_fold(static_cast<size_t>(rank) + 1);
  return x.left_fold(chunk_of(element, elements, size));
}

// What the ranks hold before the run: inputs by rank and part, and the root's vector.
struct Values {
  std::vector<std::vector<std::vector<std::byte>>> inputs;
  std::vector<std::byte> broadcast;
};

Values fill(ScheduleWorld& world, const ScheduleCase& c, uint64_t seed) {
  base::Rng rng(seed, 1);
  const auto randomise = [&](std::vector<std::byte>& bytes) {
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng.next() & 0xFF);
  };
  Values values;
  for (Rank rank = 0; rank < c.size; ++rank) {
    auto& of_rank = values.inputs.emplace_back();
    const size_t parts = c.input_of(rank).input_bytes.size();
    for (uint32_t part = 0; part < parts; ++part) {
      randomise(world.input(rank, part));
      of_rank.push_back(world.input(rank, part));
    }
  }
  if (c.kind == OpKind::broadcast) {
    randomise(world.output(c.root, 0));
    values.broadcast = world.output(c.root, 0);
  }
  return values;
}

Elements expected_reduction(const ScheduleCase& c, const Values& values, const Hash& hash,
                            Rank rank) {
  const size_t part = c.kind == OpKind::reduce_scatter ? static_cast<size_t>(rank) : 0;
  std::vector<Elements> of_ranks;
  for (const auto& inputs : values.inputs) of_ranks.push_back(hash.load_all(inputs[part]));
  Elements expected;
  const size_t elements = of_ranks[0].size();
  for (size_t i = 0; i < elements; ++i) {
    Elements x;
    for (const Elements& of_rank : of_ranks) x.push_back(of_rank[i]);
    expected.push_back(expected_element(c, Expression(hash, x), rank, i, elements));
  }
  return expected;
}

// What output part `part` of a rank must hold in kinds that only move bytes.
const std::vector<std::byte>& expected_move(const ScheduleCase& c, const Values& values, Rank rank,
                                            size_t part) {
  if (c.kind == OpKind::broadcast) return values.broadcast;
  const auto own = static_cast<size_t>(rank);
  if (c.kind == OpKind::scatter) return values.inputs[static_cast<size_t>(c.root)][own];
  return values.inputs[part][c.kind == OpKind::all_to_all || c.kind == OpKind::exchange ? own : 0];
}

std::string wrong_result(ScheduleWorld& world, const ScheduleCase& c, const Values& values) {
  const Hash hash(c.element_bytes);
  for (Rank rank = 0; rank < c.size; ++rank) {
    const ScheduleInput shape = c.input_of(rank);
    for (uint32_t part = 0; part < shape.output_bytes.size(); ++part) {
      const bool right =
          is_reduction(c.kind)
              ? hash.load_all(world.output(rank, part)) == expected_reduction(c, values, hash, rank)
              : world.output(rank, part) == expected_move(c, values, rank, part);
      if (!right) return "wrong in output " + std::to_string(part) + " of " + std::to_string(rank);
    }
    for (uint32_t part = 0; part < shape.input_bytes.size(); ++part) {
      if (!c.in_place && world.input(rank, part) != values.inputs[static_cast<size_t>(rank)][part])
        return "input " + std::to_string(part) + " of " + std::to_string(rank) + " has changed";
    }
  }
  return {};
}

void hold(const ScheduleCase& c, int runs) {
  ASSERT_EQ(ScheduleWorld(c).check(), "") << c.to_string();
  const Hash hash(c.element_bytes);
  for (int i = 0; i < runs; ++i) {
    const uint64_t seed = kSeed + static_cast<uint64_t>(i);
    ScheduleWorld world(c);
    const Values values = fill(world, c, seed);
    const std::string problem = world.run(
        seed, [&hash](const std::byte* left, const std::byte* right, std::byte* to, size_t bytes,
                      bool finish) { hash.combine(left, right, to, bytes, finish); });
    ASSERT_EQ(problem, "") << c.to_string() << ", seed " << seed;
    ASSERT_EQ(wrong_result(world, c, values), "") << c.to_string() << ", seed " << seed;
  }
}

struct Layout {
  uint64_t elements;  // of every part, or the most of a part
  bool unequal;       // parts of different lengths, some of them empty
  uint32_t element_bytes;
  uint64_t segment_bytes;
};

// Segments below an element, of no whole number of elements, and longer than all there is.
constexpr Layout kLayouts[] = {
    {0, false, 8, 64},  {1, false, 8, 64}, {13, false, 8, 29},    {37, false, 4, 1},
    {64, false, 4, 80}, {61, false, 1, 7}, {11, true, 8, kUncut}, {29, true, 4, 27},
};

ScheduleCase with_layout(const Layout& layout) {
  ScheduleCase c;
  c.element_bytes = layout.element_bytes;
  c.segment_bytes = layout.segment_bytes;
  c.part_bytes = [layout](Rank from, Rank to) {
    const uint64_t mixed = static_cast<uint64_t>(from) * 7 + static_cast<uint64_t>(to) * 4 + 5;
    return (layout.unequal ? mixed % (layout.elements + 1) * (mixed % 3 == 0 ? 0 : 1)
                           : layout.elements) *
           layout.element_bytes;
  };
  return c;
}

using Collective = std::pair<OpKind, Algorithm>;

std::vector<Collective> collectives() {
  std::vector<Collective> all;
  for (const OpKind kind : {OpKind::all_reduce, OpKind::reduce, OpKind::reduce_scatter,
                            OpKind::all_gather, OpKind::broadcast, OpKind::gather, OpKind::scatter,
                            OpKind::all_to_all, OpKind::exchange, OpKind::barrier}) {
    for (const Algorithm algorithm : algorithms_for(kind)) all.emplace_back(kind, algorithm);
  }
  return all;
}

std::string test_name(const testing::TestParamInfo<Collective>& info) {
  return std::string(name(info.param.first)) + "_by_" + name(info.param.second);
}

class EverySchedule : public testing::TestWithParam<Collective> {
 protected:
  // Both ways of memory, every given root.
  static void hold_variants(ScheduleCase c, const std::vector<Rank>& roots, int runs) {
    std::tie(c.kind, c.algorithm) = GetParam();
    for (const Rank root : is_rooted(c.kind) ? roots : std::vector<Rank>{0}) {
      for (const bool in_place : {false, true}) {
        c.root = root;
        c.in_place = in_place;
        hold(c, runs);
        if (HasFatalFailure()) return;
      }
    }
  }
};

TEST_P(EverySchedule, OfSmallGroupsGivesTheWrittenExpression) {
  for (int size = 1; size <= 9; ++size) {
    std::vector<Rank> roots;
    for (Rank root = 0; root < size; ++root) roots.push_back(root);
    for (const Layout& layout : kLayouts) {
      ScheduleCase c = with_layout(layout);
      c.size = size;
      hold_variants(c, roots, 3);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(EverySchedule, OfLargeGroupsGivesTheWrittenExpression) {
  for (const int size : {16, 17, 33}) {
    for (const Layout& layout : {Layout{5, false, 4, 16}, Layout{53, true, 8, 128}}) {
      ScheduleCase c = with_layout(layout);
      c.size = size;
      hold_variants(c, {0, 5, size - 1}, 1);
      if (HasFatalFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, EverySchedule, testing::ValuesIn(collectives()), test_name);

// The hash that the tests above trust.
TEST(ScheduleHash, TellsOrderGroupingAndFinish) {
  for (const uint32_t bytes : {1U, 4U, 8U}) {
    const Hash h(bytes);
    EXPECT_NE(h.combine(1, 2, false), h.combine(2, 1, false));
    EXPECT_NE(h.combine(h.combine(1, 2, false), 3, false),
              h.combine(1, h.combine(2, 3, false), false));
    EXPECT_NE(h.combine(1, 2, false), h.combine(1, 2, true));
  }
}

// What a step knows: the ranks that had begun when it was complete.
TEST(BarrierSchedule, EndsNowhereBeforeAllHaveBegun) {
  for (int size = 1; size <= 33; ++size) {
    ScheduleCase c = with_layout(kLayouts[0]);
    c.kind = OpKind::barrier;
    c.algorithm = Algorithm::recursive_doubling;
    c.size = size;
    ScheduleWorld world(c);
    std::vector<std::vector<std::set<Rank>>> known;
    for (Rank rank = 0; rank < size; ++rank)
      known.emplace_back(world.schedule(rank).steps.size(), std::set<Rank>{rank});
    // A step hears from what it waits for; a receive also from the send that it pairs with.
    const auto hear = [&](Rank rank, size_t id) {
      const Step& step = world.schedule(rank).steps[id];
      auto& here = known[static_cast<size_t>(rank)][id];
      for (const uint32_t before : step.after) {
        if (before != kNoStep) here.merge(std::set(known[static_cast<size_t>(rank)][before]));
      }
      if (step.kind != Step::Kind::receive) return;
      const auto& theirs = world.schedule(step.peer).steps;
      for (size_t i = 0; i < theirs.size(); ++i) {
        const bool pairs = theirs[i].kind == Step::Kind::send && theirs[i].peer == rank &&
                           theirs[i].slot == step.slot;
        if (pairs) here.merge(std::set(known[static_cast<size_t>(step.peer)][i]));
      }
    };
    for (int times = 0; times < 2 * size; ++times) {
      for (Rank rank = 0; rank < size; ++rank) {
        for (size_t id = 0; id < world.schedule(rank).steps.size(); ++id) hear(rank, id);
      }
    }
    for (Rank rank = 0; rank < size; ++rank) {
      std::set<Rank> all = {rank};
      for (const auto& step : known[static_cast<size_t>(rank)]) all.merge(std::set(step));
      EXPECT_EQ(all.size(), static_cast<size_t>(size)) << "rank " << rank << " of " << size;
    }
  }
}

}  // namespace
}  // namespace scant::collective
