// Collectives: which bytes each rank sends to each other, headers included, and what it ends with.
// Engines are joined by memory, a frame at a time in a fixed order; no clock moves, so the cost
// model that is given decides alone. And the schedules of all algorithms, which fix the order of
// every sum.
#include <cstring>
#include <deque>
#include <gtest/gtest.h>

#include "collective/engine/engine.h"
#include "collective/schedules/schedule.h"
#include "collective/testing/exercise.h"
#include "golden.h"
#include "net/frame.h"

namespace scant::golden {
namespace {

using collective::Engine;
using collective::Exercise;
using collective::ExerciseSpec;
using collective::OpKind;

constexpr int kRanksMax = 9;
constexpr OpKind kKinds[] = {OpKind::all_reduce, OpKind::reduce,     OpKind::reduce_scatter,
                             OpKind::all_gather, OpKind::broadcast,  OpKind::gather,
                             OpKind::scatter,    OpKind::all_to_all, OpKind::barrier,
                             OpKind::exchange};

struct NamedCosts {
  const char* name;
  collective::CostParameters parameters;
};
constexpr NamedCosts kCosts[] = {
    {"usual", {}},
    {"far", {.alpha_s = 0.05, .beta_s_per_byte = 1e-9}},      // few messages
    {"narrow", {.alpha_s = 1e-9, .beta_s_per_byte = 1e-6}}};  // few bytes

class Joined {
 public:
  Joined(int size, const collective::CostParameters& costs) {
    for (Rank rank = 0; rank < size; ++rank) {
      collective::EngineOptions options;
      options.rank = rank;
      options.size = size;
      options.segment_bytes = 4000;
      options.eager_bytes = 8000;
      options.eager_window_bytes = 32000;
      options.agree_first = 0;
      engines_.push_back(std::make_unique<Engine>(options, collective::CostModel(costs)));
      engines_.back()->set_now(kNow);
    }
  }

  // All frames of this operation.
  Digest run(Exercise& exercise) {
    Digest frames;
    size_t done = 0;
    for (size_t rank = 0; rank < engines_.size(); ++rank) {
      engines_[rank]->submit(kNow, exercise.call(static_cast<Rank>(rank)),
                             [&done](const Result<void>& result, Rank) {
                               EXPECT_TRUE(result.ok()) << result.error().to_string();
                               ++done;
                             });
    }
    while (pass_round(frames)) continue;
    EXPECT_EQ(done, engines_.size()) << exercise.spec().to_string();
    return frames;
  }

 private:
  static constexpr Time kNow{std::chrono::hours(1)};

  // One frame from each rank to each other.
  bool pass_round(Digest& frames) {
    bool any = false;
    for (size_t from = 0; from < engines_.size(); ++from) {
      for (size_t to = 0; to < engines_.size(); ++to) {
        if (to != from) any |= pass(from, to, frames);
      }
    }
    return any;
  }
  bool pass(size_t from, size_t to, Digest& frames) {
    const std::optional<collective::OutFrame> out =
        engines_[from]->poll_transmit(static_cast<Rank>(to));
    if (!out) return false;
    frames.add_number(from << 32 | to);
    frames.add(net::encode(out->header));
    frames.add(out->payload);
    Engine& receiver = *engines_[to];
    const auto sender = static_cast<Rank>(from);
    MutableBytes target;
    bool wanted = true;
    if (out->header.length > 0) {
      target = receiver.on_header(sender, out->header);
      wanted = !target.empty();
      if (wanted) std::memcpy(target.data(), out->payload.data(), out->payload.size());
    }
    if (wanted) receiver.on_frame(sender, out->header, target);
    engines_[from]->on_sent(out->token);
    return true;
  }

  std::vector<std::unique_ptr<Engine>> engines_;
};

ExerciseSpec spec_of(OpKind kind, int size, uint64_t elements, uint64_t seed) {
  ExerciseSpec spec;
  spec.kind = kind;
  spec.reduce = kind == OpKind::all_reduce ? ReduceOp::average : ReduceOp::sum;
  spec.size = size;
  spec.root = size / 2;
  spec.elements = elements;
  spec.uneven = elements == 3001;
  spec.fractions = kind == OpKind::all_reduce;
  spec.seed = seed;
  return spec;
}

void add_runs(Lines& lines) {
  for (const NamedCosts& costs : kCosts) {
    for (int size = 1; size <= kRanksMax; ++size) {
      for (const OpKind kind : kKinds) {
        Digest frames;
        Digest results;
        Joined joined(size, costs.parameters);
        uint64_t seed = 0;
        for (const uint64_t elements : {1, 50, 3001, 6007}) {
          Exercise exercise(spec_of(kind, size, elements, ++seed));
          const Digest sent = joined.run(exercise);
          frames.add_number(sent.size());
          frames.add_number(sent.hash());
          for (Rank rank = 0; rank < size; ++rank) {
            EXPECT_EQ(exercise.verify(rank), "");
            results.add_number(exercise.digest(rank));
          }
        }
        const std::string name = std::string("collective/") + costs.name + "/" +
                                 std::to_string(size) + "/" + collective::name(kind);
        lines.add(name + "/frames", frames);
        lines.add(name + "/results", results);
      }
    }
  }
}

void add_ref(Digest& digest, const collective::Ref& ref) {
  digest.add_number(static_cast<uint64_t>(ref.space) << 32 | ref.part);
  digest.add_number(ref.offset);
}

Digest digest_of_schedule(const collective::Schedule& schedule) {
  Digest digest;
  digest.add_number(schedule.scratch_bytes);
  for (const collective::Step& step : schedule.steps) {
    digest.add_number(static_cast<uint64_t>(step.kind) << 2 | uint64_t{step.received_first} << 1 |
                      uint64_t{step.finish});
    digest.add_number(static_cast<uint64_t>(static_cast<uint32_t>(step.peer)) << 32 | step.slot);
    for (const collective::Ref& ref : {step.a, step.b, step.destination}) add_ref(digest, ref);
    digest.add_number(step.bytes);
    for (const uint32_t after : step.after) digest.add_number(after);
  }
  return digest;
}

// Of calls whose parts all have the same size.
collective::ScheduleInput input_of(OpKind kind, collective::Algorithm algorithm, Rank rank,
                                   int size) {
  constexpr uint64_t kBytes = 30000;
  const auto parts = static_cast<size_t>(size);
  collective::ScheduleInput input{.kind = kind,
                                  .algorithm = algorithm,
                                  .rank = rank,
                                  .size = size,
                                  .root = size / 2,
                                  .element_bytes = 4,
                                  .input_bytes = {kBytes},
                                  .output_bytes = {kBytes},
                                  .segment_bytes = 4000};
  const bool at_root = rank == input.root;
  if (kind == OpKind::all_gather) input.output_bytes.assign(parts, kBytes);
  if (kind == OpKind::reduce_scatter) input.input_bytes.assign(parts, kBytes);
  if (kind == OpKind::gather) input.output_bytes.assign(at_root ? parts : 0, kBytes);
  if (kind == OpKind::scatter) input.input_bytes.assign(at_root ? parts : 0, kBytes);
  if (kind == OpKind::all_to_all) {
    input.input_bytes.assign(parts, kBytes);
    input.output_bytes.assign(parts, kBytes);
  }
  if (kind == OpKind::reduce && !at_root) input.output_bytes.clear();
  if (kind == OpKind::broadcast) input.input_bytes.clear();
  return input;
}

void add_schedules(Lines& lines) {
  for (const OpKind kind : kKinds) {
    if (kind == OpKind::barrier || kind == OpKind::exchange) continue;  // their frames tell all
    for (const collective::Algorithm algorithm : collective::algorithms_for(kind)) {
      Digest digest;
      for (int size = 1; size <= kRanksMax; ++size) {
        for (Rank rank = 0; rank < size; ++rank) {
          const auto schedule = collective::make_schedule(input_of(kind, algorithm, rank, size));
          digest.add_number(digest_of_schedule(schedule).hash());
        }
      }
      lines.add(std::string("collective/schedule/") + collective::name(kind) + "/" +
                    collective::name(algorithm),
                digest);
    }
  }
}

}  // namespace

void add_collectives(Lines& lines) {
  add_runs(lines);
  add_schedules(lines);
}

}  // namespace scant::golden
