// Averages of seeded steps on 1 to 9 ranks: threads over loopback, as in a training of one machine.
// By plan: the arena of each step, the messages it was decoded from, and what all ranks save.
//
// Which algorithm an all-reduce takes follows from measured times, and the order of its sums from
// the algorithm. So where that path is used, gradients lie on a coarse grid on which every order
// gives the same sum; golden_collectives.cc holds the orders.
#include <algorithm>
#include <functional>
#include <gtest/gtest.h>
#include <limits>
#include <utility>

#include "codec/record/record.h"
#include "collective/testing/threads_as_ranks.h"
#include "golden.h"
#include "gradient/testing/averagers.h"

namespace scant::golden {
namespace {

using codec::Point;
using codec::ValueKind;
using gradient::AveragerOptions;
using gradient::BufferPlan;
using gradient::FusionPlan;
using gradient::Host;
using gradient::Layout;
using gradient::Path;

constexpr int kRanksMax = 9;
constexpr int kSteps = 4;

const std::vector<codec::Shape>& shapes() {
  static const std::vector<codec::Shape> all{{1, 10}, {300, 200}, {1, 300},  {64, 640},
                                             {7, 33}, {1, 1},     {128, 129}};
  return all;
}

float on_grid(int step, Rank rank, uint32_t tensor, uint64_t element) {
  const uint64_t drawn = base::random_at(static_cast<uint64_t>(step) << 32 | tensor,
                                         static_cast<uint64_t>(rank), element);
  return static_cast<float>(static_cast<int64_t>(drawn >> 53) - 1024) * 0x1p-10f;
}

float with_strange(int step, Rank rank, uint32_t tensor, uint64_t element) {
  const uint64_t drawn = base::random_at(static_cast<uint64_t>(step), tensor, element);
  if (step != 2 || tensor == 2 || drawn % 5003 != 1 || rank != 0)
    return gradient::gradient_at(step, rank, tensor, element);
  return drawn >> 63 == 0 ? std::numeric_limits<float>::quiet_NaN()
                          : std::numeric_limits<float>::infinity();
}

FusionPlan uniform(const Layout& layout, Path path, Point point, uint64_t buffer_bytes = 150'000) {
  return gradient::uniform_plan({.path = path,
                                 .point = point,
                                 .buffer_bytes = buffer_bytes,
                                 .first_buffer_bytes = 10'000,
                                 .small_elements = 100},
                                layout);
}

FusionPlan reversed(const Layout& layout, Path path, Point point) {
  FusionPlan plan = uniform(layout, path, point, 1);
  plan.reversed = static_cast<uint32_t>(plan.buffers.size()) - 1;
  return plan;
}

// A buffer of one part after the other, of all paths in turn.
FusionPlan mixed(const Layout& layout) {
  FusionPlan plan;
  for (uint32_t part = 0; part < layout.parts().size(); ++part) {
    BufferPlan buffer{part, 1, static_cast<Path>(part % gradient::kPathCount), {}};
    const Point first{part == 1 ? 0.05 : 1.0, ValueKind::q4};
    if (buffer.path == Path::split) buffer.points = {{first, {1.0, ValueKind::q8}}};
    if (buffer.path == Path::gather) buffer.points = {{first, gradient::kNoSecondLeg}};
    plan.buffers.push_back(std::move(buffer));
  }
  plan.reversed = 3;
  return plan;
}

// What f32 leaves of a sparse gradient on the grid lies on it too; the owner leaves nothing.
FusionPlan sparse_on_grid(const Layout& layout) {
  FusionPlan plan = uniform(layout, Path::split, {0.05, ValueKind::f32});
  for (BufferPlan& buffer : plan.buffers)
    for (gradient::PartPlan& part : buffer.points) part.second = {1.0, ValueKind::f32};
  return plan;
}

FusionPlan changed(const Layout& layout, int step) {
  if (step == 1) return sparse_on_grid(layout);
  if (step == 2) return uniform(layout, Path::all_reduce, {});
  if (step == 3) return uniform(layout, Path::gather, {0.1, ValueKind::q8});
  return reversed(layout, Path::split, {0.3, ValueKind::bf16, true});
}

// Without all_reduce, another in each step.
FusionPlan drawn(const Layout& layout, int step) {
  base::Rng rng(static_cast<uint64_t>(step), 77);
  FusionPlan plan = gradient::random_plan(rng, layout);
  for (BufferPlan& buffer : plan.buffers) {
    if (buffer.path != Path::all_reduce) continue;
    buffer.path = Path::gather;
    buffer.points.assign(buffer.parts, {{0.3, ValueKind::q3}, gradient::kNoSecondLeg});
  }
  return plan;
}

struct Case {
  const char* name;
  std::function<FusionPlan(const Layout&, int step)> plan;
  std::function<float(int, Rank, uint32_t, uint64_t)> gradient = gradient::gradient_at;
  AveragerOptions options = {};
  bool lacks = false;  // step 2: the last rank has no tensor 3; step 3: nobody has tensor 1
};

std::vector<Case> cases() {
  const auto plain = [](Path path, Point point) {
    return [=](const Layout& layout, int) { return uniform(layout, path, point); };
  };
  const auto options = [](const std::function<void(AveragerOptions&)>& set) {
    AveragerOptions made;
    set(made);
    return made;
  };
  return {
      {.name = "all_reduce", .plan = plain(Path::all_reduce, {}), .gradient = on_grid},
      {.name = "gather_f32", .plan = plain(Path::gather, {1.0, ValueKind::f32})},
      {.name = "gather_q4_sparse", .plan = plain(Path::gather, {0.05, ValueKind::q4})},
      {.name = "split_f32", .plan = plain(Path::split, {1.0, ValueKind::f32})},
      {.name = "split_q4", .plan = plain(Path::split, {1.0, ValueKind::q4})},
      {.name = "split_q4_sparse", .plan = plain(Path::split, {0.05, ValueKind::q4})},
      {.name = "split_bf16_by_row",
       .plan = plain(Path::split, {0.05, ValueKind::bf16, true}),
       .options = options([](AveragerOptions& o) { o.workers = 2; })},
      {.name = "split_q2_bf16_residual",
       .plan = plain(Path::split, {1.0, ValueKind::q2}),
       .options = options([](AveragerOptions& o) {
         o.residual = codec::ResidualKind::bf16;
         o.decay = 0.75f;
         o.seed = 42;
       })},
      {.name = "reversed",
       .plan =
           [](const Layout& l, int) {
             return reversed(l, Path::split, {1.0, ValueKind::q3});
           }},
      {.name = "mixed", .plan = [](const Layout& l, int) { return mixed(l); }, .gradient = on_grid},
      {.name = "changed", .plan = changed, .gradient = on_grid},
      {.name = "drawn", .plan = drawn},
      {.name = "missing",
       .plan = plain(Path::split, {0.05, ValueKind::q4}),
       .options = options([](AveragerOptions& o) { o.missing_as_zeros = true; }),
       .lacks = true},
      {.name = "not_finite",
       .plan = plain(Path::split, {0.1, ValueKind::q4}),
       .gradient = with_strange},
      {.name = "not_finite_gather",
       .plan = plain(Path::gather, {1.0, ValueKind::bf16}),
       .gradient = with_strange}};
}

struct OfRank {
  std::vector<Digest> arenas;    // by step
  std::vector<Digest> messages;  // by step
  std::vector<std::byte> saved;
};

// A rank's records lie in its message in the order in which they were encoded, which follows from
// when its gradients came. Here they are put in the order of the tensors.
void add_message(Digest& digest, Bytes message) {
  auto parsed = codec::parse_all(message);
  ASSERT_TRUE(parsed.ok()) << parsed.error().to_string();
  std::ranges::sort(parsed.value(), {}, [](const codec::RecordView& record) {
    return std::pair(record.header().tensor, record.header().first);
  });
  digest.add_number(message.size());
  for (const codec::RecordView& record : parsed.value()) digest.add(record.view());
}

Digest digest_of_messages(const gradient::Averager& averager) {
  Digest digest;
  for (const gradient::AveragedBuffer& buffer : averager.averaged()) {
    digest.add_number(static_cast<uint64_t>(buffer.path));
    digest.add_number(uint64_t{buffer.first_part} << 32 | buffer.parts);
    for (const Bytes message : buffer.messages) add_message(digest, message);
  }
  return digest;
}

std::vector<uint32_t> absent_in(const Case& known, int step, bool last_rank) {
  if (!known.lacks) return {};
  if (step == 2 && last_rank) return {3};
  if (step == 3) return {1};
  return {};
}

void step_all(Host& host, const Case& known, OfRank& result) {
  host.gradient = known.gradient;
  const bool last = host.communicator.rank() + 1 == host.communicator.size();
  for (int step = 1; step <= kSteps; ++step) {
    host.set(known.plan(host.layout, step));
    const auto report = host.step(step, static_cast<uint64_t>(step), absent_in(known, step, last));
    ASSERT_TRUE(report.ok()) << report.error().to_string();
    Digest arena = digest_of(host.arena);
    arena.add_number(report.value().plan_hash);
    arena.add_number(report.value().nonfinite);
    for (const bool present : report.value().present) arena.add_number(present ? 1 : 0);
    result.arenas.push_back(arena);
    result.messages.push_back(digest_of_messages(*host.averager));
    if (step == 2) host.averager->scale_residuals(0.5f);
  }
  result.saved = host.averager->save().value();
}

using ByRank = std::vector<OfRank>;

// The cases one after the other, with groups of their own. By case.
std::vector<ByRank> run(const std::vector<Case>& all, int ranks) {
  std::vector<ByRank> results(all.size(), ByRank(static_cast<size_t>(ranks)));
  collective::on_ranks(ranks, [&](Communicator& communicator) {
    const auto rank = static_cast<size_t>(communicator.rank());
    for (size_t i = 0; i < all.size(); ++i) {
      AveragerOptions options = all[i].options;
      options.key = all[i].name;
      Host host(communicator, gradient::layout_for(ranks, shapes()), options);
      ASSERT_NO_FATAL_FAILURE(step_all(host, all[i], results[i][rank])) << all[i].name;
    }
  });
  return results;
}

Digest digest_of_saved(const ByRank& by_rank) {
  Digest saved;
  for (const OfRank& one : by_rank) {
    EXPECT_EQ(one.arenas, by_rank[0].arenas) << "ranks differ";
    EXPECT_EQ(one.messages, by_rank[0].messages) << "ranks differ";
    saved.add(one.saved);
  }
  return saved;
}

void add_case(Lines& lines, const std::string& name, const ByRank& by_rank) {
  SCOPED_TRACE(name);
  ASSERT_EQ(by_rank[0].arenas.size(), size_t{kSteps});
  for (size_t step = 0; step < kSteps; ++step) {
    const std::string at = name + "/" + std::to_string(step + 1);
    lines.add(at + "/arena", by_rank[0].arenas[step]);
    lines.add(at + "/messages", by_rank[0].messages[step]);
  }
  lines.add(name + "/saved", digest_of_saved(by_rank));
}

// Residuals of three ranks, taken up by fewer, as many and more.
void add_restored(Lines& lines) {
  const auto plan = [](const Layout& layout, int) {
    return uniform(layout, Path::split, {0.05, ValueKind::q4});
  };
  const Case known{.name = "restored", .plan = plan};
  const ByRank before = run({known}, 3)[0];
  for (const int ranks : {1, 2, 3, 5}) {
    ByRank by_rank(static_cast<size_t>(ranks));
    collective::on_ranks(ranks, [&](Communicator& communicator) {
      const auto rank = static_cast<size_t>(communicator.rank());
      Host host(communicator, gradient::layout_for(ranks, shapes()));
      if (rank < before.size()) {
        const Result<void> restored = host.averager->restore(before[rank].saved);
        ASSERT_TRUE(restored.ok()) << restored.error().to_string();
      }
      step_all(host, known, by_rank[rank]);
    });
    add_case(lines, "average/restored/" + std::to_string(ranks), by_rank);
  }
}

}  // namespace

void add_averages(Lines& lines) {
  const std::vector<Case> all = cases();
  for (int ranks = 1; ranks <= kRanksMax; ++ranks) {
    const std::vector<ByRank> results = run(all, ranks);
    for (size_t i = 0; i < all.size(); ++i)
      add_case(lines, std::string("average/") + all[i].name + "/" + std::to_string(ranks),
               results[i]);
  }
  add_restored(lines);
}

}  // namespace scant::golden
