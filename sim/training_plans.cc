// The plans of a simulated training's rounds: drawn by the first member, or what plan::Agreement
// comes to. Owner: the one thread of the simulation.
#include <cstring>

#include "base/check.h"
#include "base/little_endian.h"
#include "sim/training_host.h"

namespace scant::sim {
namespace {

using gradient::Outcome;

// Enough for any plan of the layout: a buffer a part.
size_t plan_room(const gradient::Layout& layout) { return 64 + 64 * layout.parts().size(); }

}  // namespace

// The first member draws it, the others learn it from its bytes.
void TrainingHost::agree_on_plan(uint32_t index) {
  Stream& stream = streams_[index];
  const gradient::Layout& layout = stream.step->layout();
  stream.plan_bytes.assign(plan_room(layout), std::byte{0});
  if (members_.self == 0) {
    base::Rng rng = rng_of(index, stream.round, 2);
    gradient::FusionPlan plan = training_.uniform_q4
                                    ? gradient::uniform_plan({.path = gradient::Path::split,
                                                              .point = {1.0, codec::ValueKind::q4},
                                                              .small_elements = 0},
                                                             layout)
                                    : draw_plan(rng, training_, layout);
    const std::vector<std::byte> bytes = gradient::serialise(plan, layout);
    SCANT_CHECK(bytes.size() + 8 <= stream.plan_bytes.size());
    base::store_little(stream.plan_bytes.data(), static_cast<uint64_t>(bytes.size()));
    std::memcpy(stream.plan_bytes.data() + 8, bytes.data(), bytes.size());
  }
  gradient::Operation tell{.kind = gradient::Operation::Kind::broadcast,
                           .lane = {index, gradient::Leg::agreement},
                           .round = stream.round,
                           .span = stream.plan_bytes};
  exchange().submit(members_, std::move(tell),
                    [this, index](const Outcome& outcome) { take_plan(index, outcome); });
}

void TrainingHost::take_plan(uint32_t index, const Outcome& outcome) {
  if (abandoned_) return;
  if (!outcome.result) return fail(index, outcome.result.error());
  Stream& stream = streams_[index];
  const auto bytes = static_cast<size_t>(base::load_little<uint64_t>(stream.plan_bytes.data()));
  const gradient::Layout& layout = stream.step->layout();
  Result<gradient::FusionPlan> plan =
      gradient::parse_fusion_plan(Bytes(stream.plan_bytes).subspan(8, bytes), layout);
  if (!plan) return watcher_.complain(rank_, "plan: " + plan.error().to_string());
  set_plan(index, plan.value());
}

// In planned trainings the members agree when they are new, and after each period.
void TrainingHost::agree(uint32_t index) {
  Stream& stream = streams_[index];
  if (std::exchange(stream.agreed_epoch, members_.epoch) != members_.epoch) {
    return carry_on(index, stream.agreement->begin(members_, rates_, moment()));
  }
  if (stream.agreement->state() == plan::Agreement::State::running) return begin_round(index);
  carry_on(index, stream.agreement->agree(moment()));
}

void TrainingHost::carry_on(uint32_t index, std::optional<gradient::Operation> operation) {
  Stream& stream = streams_[index];
  if (operation) {
    return exchange().submit(members_, *std::move(operation),
                             [this, index](const Outcome& outcome) {
                               if (abandoned_) return;
                               plan::Agreement& of = *streams_[index].agreement;
                               carry_on(index, of.done(outcome.result, moment()));
                             });
  }
  if (stream.agreement->error()) return fail(index, *stream.agreement->error());
  set_plan(index, stream.agreement->decision().plan);
}

// The processor has been busy all the time, as far as the planner can tell.
plan::Moment TrainingHost::moment() const {
  const Time now = network_.now();
  return {now, std::chrono::duration<double>(now.time_since_epoch()).count()};
}

bool TrainingHost::deviates(uint32_t index) const {
  return index == 0 && rank_ == training_.deviant && members_.epoch == 1 &&
         streams_[index].round == training_.deviant_round;
}

void TrainingHost::set_plan(uint32_t index, const gradient::FusionPlan& plan) {
  const Result<void> set = streams_[index].step->set_plan(plan);
  if (!set) return watcher_.complain(rank_, "set_plan: " + set.error().to_string());
  begin_round(index);
}

}  // namespace scant::sim
