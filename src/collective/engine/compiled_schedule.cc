#include "collective/engine/compiled_schedule.h"

#include <algorithm>

#include "base/check.h"
#include "base/counters.h"
#include "base/rng.h"

namespace scant::collective {
namespace {

bool communicates(const Step& step) {
  return step.kind == Step::Kind::send || step.kind == Step::Kind::receive ||
         step.kind == Step::Kind::receive_reduce;
}

Schedule point_to_point(const ScheduleInput& input) {
  const bool sending = input.kind == OpKind::send;
  const uint64_t bytes = sending ? input.input_bytes.at(0) : input.output_bytes.at(0);
  const uint64_t element = std::max<uint32_t>(input.element_bytes, 1);
  const uint64_t segment = std::max(element, input.segment_bytes / element * element);
  Schedule schedule;
  uint64_t offset = 0;
  uint32_t slot = 0;
  do {
    Step step;
    step.kind = sending ? Step::Kind::send : Step::Kind::receive;
    step.peer = input.root;
    step.slot = slot++;
    step.bytes = std::min(segment, bytes - offset);
    step.a = Ref{Space::input, 0, offset};
    step.destination = Ref{Space::output, 0, offset};
    schedule.steps.push_back(step);
    offset += step.bytes;
  } while (offset < bytes);
  return schedule;
}

void append_barrier(Schedule& schedule, const ScheduleInput& input) {
  ScheduleInput barrier;
  barrier.kind = OpKind::barrier;
  barrier.algorithm = algorithms_for(OpKind::barrier).front();
  barrier.rank = input.rank;
  barrier.size = input.size;
  barrier.segment_bytes = input.segment_bytes;
  const auto first = static_cast<uint32_t>(schedule.steps.size());
  for (Step step : make_schedule(barrier).steps) {
    for (uint32_t& before : step.after) {
      if (before != kNoStep) before += first;
    }
    schedule.steps.push_back(step);
  }
}

void append_empty_frame(Schedule& schedule, Step::Kind kind, Rank peer) {
  for (const Step& step : schedule.steps) {
    if (step.peer == peer && communicates(step) &&
        (step.kind == Step::Kind::send) == (kind == Step::Kind::send)) {
      return;
    }
  }
  Step step;
  step.kind = kind;
  step.peer = peer;
  schedule.steps.push_back(step);
}

// Parts without bytes still carry the descriptor, in one empty frame.
void append_empty_parts(Schedule& schedule, const ScheduleInput& input) {
  for (Rank peer = 0; peer < input.size; ++peer) {
    if (peer == input.rank) continue;
    const bool everyone = input.kind == OpKind::all_to_all || input.kind == OpKind::exchange;
    const bool to_peer = everyone || (input.kind == OpKind::gather && peer == input.root) ||
                         (input.kind == OpKind::scatter && input.rank == input.root);
    const bool from_peer = everyone || (input.kind == OpKind::gather && input.rank == input.root) ||
                           (input.kind == OpKind::scatter && peer == input.root);
    const auto part = [peer](const std::vector<uint64_t>& parts) {
      return parts.size() == 1 ? parts[0] : parts.at(static_cast<size_t>(peer));
    };
    if (to_peer && part(input.input_bytes) == 0) {
      append_empty_frame(schedule, Step::Kind::send, peer);
    }
    if (from_peer && part(input.output_bytes) == 0) {
      append_empty_frame(schedule, Step::Kind::receive, peer);
    }
  }
}

uint64_t hash_of(const ScheduleInput& input) {
  uint64_t hash = 0;
  const auto mix = [&hash](uint64_t value) { hash = base::random_at(hash, value, 1); };
  mix(static_cast<uint64_t>(input.kind) | static_cast<uint64_t>(input.algorithm) << 8 |
      static_cast<uint64_t>(input.element_bytes) << 16 | uint64_t{input.in_place} << 32);
  mix(static_cast<uint64_t>(input.rank) | static_cast<uint64_t>(input.size) << 32);
  mix(static_cast<uint64_t>(static_cast<uint32_t>(input.root)) | input.segment_bytes << 32);
  for (uint64_t bytes : input.input_bytes) mix(bytes);
  mix(input.input_bytes.size());
  for (uint64_t bytes : input.output_bytes) mix(bytes);
  return hash;
}

bool same(const ScheduleInput& x, const ScheduleInput& y) {
  return x.kind == y.kind && x.algorithm == y.algorithm && x.rank == y.rank && x.size == y.size &&
         x.root == y.root && x.element_bytes == y.element_bytes && x.in_place == y.in_place &&
         x.segment_bytes == y.segment_bytes && x.input_bytes == y.input_bytes &&
         x.output_bytes == y.output_bytes;
}

void index_peers(Plan& plan) {
  std::vector<Rank> ranks;
  for (const Step& step : plan.steps) {
    if (communicates(step)) ranks.push_back(step.peer);
  }
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  plan.peers.resize(ranks.size());
  for (size_t i = 0; i < ranks.size(); ++i) plan.peers[i].rank = ranks[i];
  plan.peer_of_step.assign(plan.steps.size(), kNoStep);
  for (uint32_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    if (!communicates(step)) continue;
    const uint32_t peer_index = plan.find_peer(step.peer);
    plan.peer_of_step[i] = peer_index;
    PeerPlan& peer = plan.peers[peer_index];
    if (step.kind == Step::Kind::send) {
      ++peer.sends;
      continue;
    }
    if (peer.receives.size() <= step.slot) peer.receives.resize(step.slot + 1, kNoStep);
    SCANT_CHECK(peer.receives[step.slot] == kNoStep, "two receives share a slot");
    peer.receives[step.slot] = i;
    peer.receive_bytes += step.bytes;
  }
  for (const PeerPlan& peer : plan.peers) {
    for (uint32_t step : peer.receives) SCANT_CHECK(step != kNoStep, "a slot is skipped");
  }
}

}  // namespace

uint32_t Plan::find_peer(Rank group_rank) const {
  const auto found =
      std::lower_bound(peers.begin(), peers.end(), group_rank,
                       [](const PeerPlan& peer, Rank rank) { return peer.rank < rank; });
  if (found == peers.end() || found->rank != group_rank) return kNoStep;
  return static_cast<uint32_t>(found - peers.begin());
}

std::unique_ptr<Plan> compile(Schedule schedule) {
  auto plan = std::make_unique<Plan>();
  plan->steps = std::move(schedule.steps);
  plan->scratch_bytes = schedule.scratch_bytes;
  const size_t count = plan->steps.size();
  plan->dependencies.assign(count, 0);
  plan->successor_begin.assign(count + 1, 0);
  for (uint32_t i = 0; i < count; ++i) {
    for (uint32_t before : plan->steps[i].after) {
      if (before == kNoStep) continue;
      SCANT_CHECK(before < i, "a schedule refers forwards");
      ++plan->dependencies[i];
      ++plan->successor_begin[before + 1];
    }
    if (plan->dependencies[i] == 0) plan->ready_at_start.push_back(i);
  }
  for (size_t i = 0; i < count; ++i) plan->successor_begin[i + 1] += plan->successor_begin[i];
  plan->successors.resize(plan->successor_begin[count]);
  std::vector<uint32_t> fill(plan->successor_begin.begin(), plan->successor_begin.end());
  for (uint32_t i = 0; i < count; ++i) {
    for (uint32_t before : plan->steps[i].after) {
      if (before != kNoStep) plan->successors[fill[before]++] = i;
    }
  }
  index_peers(*plan);
  return plan;
}

Schedule schedule_for(const ScheduleInput& input) {
  if (input.kind == OpKind::send || input.kind == OpKind::recv) return point_to_point(input);
  Schedule schedule = make_schedule(input);
  if (input.size == 1) return schedule;
  if (input.kind == OpKind::gather || input.kind == OpKind::scatter ||
      input.kind == OpKind::all_to_all || input.kind == OpKind::exchange) {
    append_empty_parts(schedule, input);
  } else if (std::none_of(schedule.steps.begin(), schedule.steps.end(), communicates)) {
    append_barrier(schedule, input);
  }
  return schedule;
}

Plan& PlanCache::get(const ScheduleInput& input) {
  const uint64_t hash = hash_of(input);
  for (Entry& entry : entries_) {
    if (entry.hash == hash && same(entry.input, input)) {
      entry.used_at = ++uses_;
      return *entry.plan;
    }
  }
  static base::Counter& built =
      base::counter("scant_engine_schedules_built_total", "Schedules computed for new calls");
  built.add();
  if (entries_.size() >= keep_max_) evict();
  entries_.push_back(Entry{hash, ++uses_, input, compile(schedule_for(input))});
  return *entries_.back().plan;
}

// Drops the plan that was used longest ago and that no operation runs; keeps all when every plan is
// in use.
void PlanCache::evict() {
  size_t oldest = entries_.size();
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].plan->users != 0) continue;
    if (oldest == entries_.size() || entries_[i].used_at < entries_[oldest].used_at) oldest = i;
  }
  if (oldest == entries_.size()) return;
  std::swap(entries_[oldest], entries_.back());
  entries_.pop_back();
}

}  // namespace scant::collective
