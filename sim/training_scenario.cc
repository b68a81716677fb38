#include "sim/training_scenario.h"

#include <algorithm>

namespace scant::sim {
namespace {

using namespace std::chrono_literals;

net::LinkModel draw_link(base::Rng& rng) {
  net::LinkModel link;
  link.latency = Duration(rng.below(rng.chance(0.2) ? 20'000'000 : 300'000));
  if (rng.chance(0.4)) link.jitter = Duration(rng.below(2'000'000));
  if (rng.chance(0.5)) link.rate_bytes_per_second = 1'000'000 + rng.below(200'000'000);
  if (rng.chance(0.3)) link.loss = rng.uniform() * 0.1;
  if (rng.chance(0.2)) link.duplicate = rng.uniform() * 0.1;
  if (rng.chance(0.2)) link.corrupt = rng.uniform() * 0.02;
  if (rng.chance(0.3)) {
    link.reorder = rng.uniform() * 0.5;
    link.reorder_delay = Duration(1 + rng.below(5'000'000));
  }
  return link;
}

void draw_model(base::Rng& rng, Training& training) {
  const auto tensors = static_cast<size_t>(1 + rng.below(rng.chance(0.2) ? 12 : 4));
  const uint64_t columns_max = rng.chance(0.2) ? 1500 : 150;
  for (size_t i = 0; i < tensors; ++i) {
    training.shapes.push_back({1 + rng.below(4), 1 + rng.below(columns_max)});
  }
  training.slice_elements_min = rng.chance(0.7) ? 64 : gradient::kSliceElementsMin;
  if (rng.chance(0.15)) training.residual = codec::ResidualKind::bf16;
  training.streams = rng.chance(0.4) ? 2 + static_cast<uint32_t>(rng.below(3)) : 1;
  training.rounds = 1 + rng.below(rng.chance(0.1) ? 12 : 5);
  training.new_plan_chance = rng.chance(0.5) ? 1 : rng.uniform();
  training.new_duties_chance = rng.chance(0.3) ? rng.uniform() : 0;
  training.absent_chance = rng.chance(0.3) ? rng.uniform() * 0.5 : 0;
  training.missing_as_zeros = rng.chance(0.3);
  training.verdict_last = rng.chance(0.3);
  training.backward_max = Duration(1 + rng.below(50'000'000));
}

void draw_losses(base::Rng& rng, Training& training) {
  training.loss = {.seed = rng.next(), .chance = rng.uniform()};
  const gradient::Delivery bounded{.exact = false, .share = rng.uniform()};
  const uint64_t which = rng.below(4);
  if (which != 1) training.first_leg = bounded;
  if (which != 0) training.second_leg = bounded;
}

void draw_faults(base::Rng& rng, Training& training) {
  using Kind = TrainingFault::Kind;
  if (rng.chance(0.1)) {
    training.deviant_round = 1 + rng.below(training.rounds);
    training.deviant = static_cast<Rank>(rng.below(static_cast<uint64_t>(training.ranks)));
    return;
  }
  const auto span =
      static_cast<uint64_t>(training.backward_max.count()) * training.rounds + 40'000'000;
  for (uint64_t count = rng.chance(0.5) ? 0 : 1 + rng.below(2); count > 0; --count) {
    TrainingFault fault;
    fault.kind = static_cast<Kind>(rng.below(6));
    fault.rank = static_cast<Rank>(rng.below(static_cast<uint64_t>(training.ranks)));
    fault.after = Duration(rng.below(span));
    const Duration timeout = training.network.peer_timeout;
    const bool is_long = fault.kind == Kind::long_stop;
    fault.length =
        is_long ? 3 * timeout : Duration(rng.below(static_cast<uint64_t>(timeout.count()) / 3));
    const auto same = [&](const TrainingFault& other) { return other.rank == fault.rank; };
    if (std::ranges::none_of(training.faults, same)) training.faults.push_back(fault);
  }
  training.kill_while_shrinking = training.ranks > 3 && rng.chance(0.2);
}

// What scenarios got later each draw from, so that all else of a seed is as it was before.
enum class Later : uint64_t { planned = 4, i8 = 6, deadlines = 7, owners = 8, factors = 9 };
base::Rng rng_of(uint64_t seed, Later what) { return base::Rng(seed, static_cast<uint64_t>(what)); }

// Long enough for several periods of the planner.
void draw_planned(uint64_t seed, Training& training) {
  base::Rng rng = rng_of(seed, Later::planned);
  if (!rng.chance(0.15)) return;
  training.planned = true;
  training.rounds += 4 + rng.below(14);
  training.backward_max = std::min<Duration>(training.backward_max, 10ms);
}

void draw_i8(uint64_t seed, Training& training) {
  base::Rng rng = rng_of(seed, Later::i8);
  if (training.residual == codec::ResidualKind::f32 && rng.chance(0.15)) {
    training.residual = codec::ResidualKind::i8;
  }
}

// About as long as a message takes.
void draw_deadlines(uint64_t seed, Training& training) {
  base::Rng rng = rng_of(seed, Later::deadlines);
  training.loss.latency = training.network.link.latency;
  training.loss.rate_bytes_per_second = training.network.link.rate_bytes_per_second;
  for (gradient::Delivery* leg : {&training.first_leg, &training.second_leg}) {
    const bool wants = rng.chance(0.4);
    const auto span = static_cast<uint64_t>(2 * training.loss.latency.count()) + 2'000'000;
    const Duration drawn(1 + static_cast<int64_t>(rng.below(span)));
    if (wants && !leg->exact) leg->deadline = drawn;
  }
}

// Likewise.
void draw_owner_changes(uint64_t seed, Training& training) {
  base::Rng rng = rng_of(seed, Later::owners);
  if (rng.chance(0.35)) training.owner_change_chance = rng.uniform();
}

void draw_factors(uint64_t seed, Training& training) {
  base::Rng rng = rng_of(seed, Later::factors);
  if (rng.chance(0.4)) training.factors_chance = rng.uniform();
}

void draw_sites(base::Rng& rng, Training& training) {
  Rank site = 0;
  for (Rank rank = 0; rank < training.ranks; ++rank) {
    if (rank > 0 && rng.chance(0.4)) ++site;
    training.site_of.push_back(site);
  }
}

const char* name(TrainingFault::Kind kind) {
  switch (kind) {
    case TrainingFault::Kind::kill_process:
      return "kill process";
    case TrainingFault::Kind::kill_host:
      return "kill host";
    case TrainingFault::Kind::short_stop:
      return "short stop";
    case TrainingFault::Kind::long_stop:
      return "long stop";
    case TrainingFault::Kind::slow_links:
      return "slow links";
    case TrainingFault::Kind::bad_links:
      return "bad links";
  }
  return "?";
}

codec::Point draw_point(base::Rng& rng) {
  const double density = rng.chance(0.4) ? 1.0 : std::max(0.01, rng.uniform());
  return {density, static_cast<codec::ValueKind>(rng.below(codec::kValueKindCount)),
          rng.chance(0.2)};
}

}  // namespace

std::string Training::to_string() const {
  std::string text = std::to_string(ranks) + " ranks, " + std::to_string(streams) + " streams of " +
                     std::to_string(rounds) + " rounds, tensors";
  for (const codec::Shape& shape : shapes) {
    text += ' ';
    text += std::to_string(shape.rows) + "x" + std::to_string(shape.columns);
  }
  const net::LinkModel& link = network.link;
  text += ", slices from " + std::to_string(slice_elements_min) + ", latency " +
          std::to_string(link.latency.count() / 1000) + " us, rate " +
          std::to_string(link.rate_bytes_per_second) + " B/s, loss " + std::to_string(link.loss);
  if (!first_leg.exact || !second_leg.exact) {
    text += ", bounded" + std::string(first_leg.exact ? "" : " first") +
            (second_leg.exact ? "" : " second") + ", chance " + std::to_string(loss.chance);
    for (const gradient::Delivery& leg : {first_leg, second_leg}) {
      if (leg.deadline == Duration::zero()) continue;
      text += ", deadline " + std::to_string(leg.deadline.count() / 1000) + " us";
    }
  }
  if (residual != codec::ResidualKind::f32) {
    text += std::string(", ") + codec::name(residual) + " residuals";
  }
  if (verdict_last) text += ", verdict last";
  if (planned) text += ", planned";
  if (owner_change_chance > 0) text += ", owners change within rounds";
  if (factors_chance > 0) text += ", factors";
  if (missing_as_zeros) text += ", missing as zeros";
  for (size_t i = 0; i < site_of.size(); ++i) {
    text += i == 0 ? ", sites " : " ";
    text += std::to_string(site_of[i]);
  }
  if (deviant_round > 0) {
    text += "\n  rank " + std::to_string(deviant) + " has another plan in round " +
            std::to_string(deviant_round);
  }
  for (const TrainingFault& fault : faults) {
    text += "\n  fault: " + std::string(name(fault.kind)) + " rank " + std::to_string(fault.rank) +
            " after " + std::to_string(fault.after.count() / 1000) + " us for " +
            std::to_string(fault.length.count() / 1000) + " us";
  }
  if (kill_while_shrinking) text += "\n  a rank is killed while the others shrink";
  return text;
}

Training make_training(uint64_t seed, int ranks) {
  base::Rng rng(seed, 3);
  Training training;
  training.seed = seed;
  const int drawn =
      rng.chance(0.05) ? 10 + static_cast<int>(rng.below(8)) : 1 + static_cast<int>(rng.below(7));
  training.ranks = ranks > 0 ? ranks : drawn;
  training.engine.operation_timeout = 600s;
  training.network.seed = seed;
  training.network.link = draw_link(rng);
  training.network.datagram_bytes = 600 + rng.below(9000);
  training.network.sent_when_acknowledged = rng.chance(0.4);
  draw_model(rng, training);
  if (rng.chance(0.2)) draw_sites(rng, training);
  training.network.size = training.site_of.empty() ? training.ranks : 2 * training.ranks;
  if (rng.chance(0.3)) draw_losses(rng, training);
  if (training.ranks > 1) draw_faults(rng, training);
  draw_planned(seed, training);
  draw_i8(seed, training);
  draw_deadlines(seed, training);
  draw_owner_changes(seed, training);
  draw_factors(seed, training);
  return training;
}

Training make_training_crowd(uint64_t seed, int ranks) {
  Training training;
  training.seed = seed;
  training.ranks = ranks;
  training.network.size = ranks;
  training.network.seed = seed;
  training.engine.operation_timeout = 600s;
  // 64 elements for each rank, the least that a slice can have.
  training.shapes = {{1, 64 * static_cast<uint64_t>(ranks)}, {1, 100}};
  training.slice_elements_min = 64;
  training.rounds = 2;
  training.uniform_q4 = true;
  training.new_plan_chance = 0;
  training.backward_max = 1ms;
  return training;
}

// Both legs of a part get factors, with a rest or without.
void draw_factors(base::Rng& rng, uint64_t most, gradient::Path path, gradient::PartPlan& part) {
  const auto rank = static_cast<uint16_t>(1 + rng.below(std::min<uint64_t>(most, kDrawnRankMax)));
  const bool rest = rng.chance(0.5);
  for (codec::Point* leg : {&part.first, &part.second}) {
    if (leg == &part.second && path == gradient::Path::gather) return;
    if (!rest) *leg = codec::kKeepAll;
    leg->rank = rank;
    leg->factors = static_cast<codec::ValueKind>(rng.below(codec::kValueKindCount));
  }
}

gradient::FusionPlan draw_plan(base::Rng& rng, const Training& training,
                               const gradient::Layout& layout) {
  gradient::FusionPlan plan;
  const auto parts = static_cast<uint32_t>(layout.parts().size());
  for (uint32_t next = 0; next < parts;) {
    gradient::BufferPlan buffer{
        .first_part = next,
        .parts = static_cast<uint32_t>(1 + rng.below(std::min(parts - next, 6u))),
        .path = static_cast<gradient::Path>(rng.below(gradient::kPathCount))};
    next += buffer.parts;
    if (buffer.path != gradient::Path::all_reduce) buffer.points.resize(buffer.parts);
    for (uint32_t i = 0; i < buffer.points.size(); ++i) {
      gradient::PartPlan& part = buffer.points[i];
      part.first = draw_point(rng);
      if (buffer.path == gradient::Path::split) part.second = draw_point(rng);
      const uint64_t most = layout.rank_max(buffer.first_part + i);
      if (training.factors_chance == 0 || most == 0) continue;
      if (rng.chance(training.factors_chance)) draw_factors(rng, most, buffer.path, part);
    }
    plan.buffers.push_back(std::move(buffer));
  }
  const uint64_t reversed = rng.below(plan.buffers.size() + 1);
  if (reversed != 1) plan.reversed = static_cast<uint32_t>(reversed);
  return plan;
}

std::vector<gradient::SliceDuty> draw_duties(base::Rng& rng, const gradient::Layout& layout,
                                             int members) {
  const float share = rng.chance(0.8) ? 1.0f : 0.75f;
  std::vector<gradient::SliceDuty> duties;
  for (size_t i = 0; i < layout.slices().size(); ++i) {
    duties.push_back({static_cast<Rank>(rng.below(static_cast<uint64_t>(members))),
                      share / static_cast<float>(members)});
  }
  return duties;
}

}  // namespace scant::sim
