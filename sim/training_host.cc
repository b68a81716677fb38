#include "sim/training_host.h"

#include <algorithm>

#include "base/check.h"
#include "base/little_endian.h"

namespace scant::sim {
namespace {

using namespace std::chrono_literals;
using gradient::Outcome;
using State = TrainingHost::Stream::State;

std::vector<gradient::HostPlace> places_of(const Training& training) {
  std::vector<gradient::HostPlace> places;
  for (Rank rank = 0; rank < static_cast<Rank>(training.site_of.size()); ++rank) {
    places.push_back({.site = training.site_of[static_cast<size_t>(rank)],
                      .inner = rank,
                      .outer = training.ranks + rank});
  }
  return places;
}

}  // namespace

plan::WorkRates usual_rates() {
  plan::WorkRates rates;
  for (auto* kinds : {&rates.encode, &rates.decode}) {
    for (auto& kind : *kinds) kind = {.dense_s = 2e-9, .entry_s = 6e-9};
  }
  rates.scan_s = 1e-9;
  rates.clear_s = 1e-9;
  rates.record_s = 2e-6;
  return rates;
}

Duration duration_of(const gradient::Effort& effort, const plan::WorkRates& rates) {
  double seconds = static_cast<double>(effort.scanned) * rates.scan_s +
                   static_cast<double>(effort.cleared) * rates.clear_s +
                   static_cast<double>(effort.records) * rates.record_s +
                   static_cast<double>(effort.products) * rates.product_s +
                   static_cast<double>(effort.bases) * rates.basis_s;
  for (size_t kind = 0; kind < effort.encoded.size(); ++kind) {
    seconds += static_cast<double>(effort.encoded[kind].dense) * rates.encode[kind].dense_s +
               static_cast<double>(effort.encoded[kind].entries) * rates.encode[kind].entry_s +
               static_cast<double>(effort.decoded[kind].dense) * rates.decode[kind].dense_s +
               static_cast<double>(effort.decoded[kind].entries) * rates.decode[kind].entry_s;
  }
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

TrainingHost::TrainingHost(const Training& training, net::SimulatedNetwork& network, Rank rank,
                           TrainingWatcher& watcher)
    : training_(training),
      network_(network),
      rank_(rank),
      watcher_(watcher),
      inner_(network, rank, {.engine = training.engine, .loss = training.loss}),
      streams_(training.streams) {
  if (training.site_of.empty()) return;
  outer_ = std::make_unique<gradient::SimulatedExchange>(
      network, training.ranks + rank,
      gradient::SimulatedExchangeOptions{.engine = training.engine, .loss = training.loss});
  nested_ = std::make_unique<gradient::NestedExchange>(inner_, outer_.get(), places_of(training),
                                                       gradient::everyone(training.ranks, rank));
}

TrainingHost::~TrainingHost() { abandon(); }

gradient::Exchange& TrainingHost::exchange() {
  if (nested_) return *nested_;
  return inner_;
}

void TrainingHost::start(const gradient::Members& members) {
  members_ = members;
  for (uint32_t i = 0; i < streams_.size(); ++i) {
    Stream& stream = streams_[i];
    auto layout = gradient::Layout::create(training_.shapes, training_.ranks,
                                           {.slice_elements_min = training_.slice_elements_min});
    SCANT_CHECK(layout.ok(), "the scenario's shapes make a layout");
    stream.arena.assign(layout.value().arena_elements(), 0.0f);
    stream.fed = stream.arena;
    auto made = gradient::GradientStep::create(std::move(layout).value(),
                                               {.residual = training_.residual,
                                                .seed = training_.seed + i,
                                                .missing_as_zeros = training_.missing_as_zeros,
                                                .first_leg = training_.first_leg,
                                                .second_leg = training_.second_leg,
                                                .verdict_last = training_.verdict_last},
                                               members, i);
    SCANT_CHECK(made.ok(), "the scenario's options make a step");
    stream.step = std::move(made).value();
    if (training_.planned) {
      stream.agreement = std::make_unique<plan::Agreement>(
          stream.step->layout(), plan::AgreementOptions{.lane = {i, gradient::Leg::agreement}});
    }
    next_round(i);
  }
}

void TrainingHost::pump(Rank station) {
  (station == rank_ ? inner_ : *outer_).pump();
  drive();
}

// While the rank is stopped nothing happens on it.
void TrainingHost::later(Duration after, std::function<void()> action) {
  network_.at(network_.now() + after, [this, action = std::move(action)] {
    if (abandoned_ || !network_.alive(rank_)) return;
    if (network_.stopped(rank_)) return later(5ms, action);
    action();
    drive();
  });
}

base::Rng TrainingHost::rng_of(uint32_t stream, uint64_t round, uint64_t use) const {
  return base::Rng(base::random_at(training_.seed, stream, round), use);
}

// The same on all ranks, unless what is missing counts as zeros.
bool TrainingHost::has_gradient(uint32_t stream, uint64_t round, uint32_t tensor) const {
  base::Rng rng = rng_of(stream, round, 1000 + tensor);
  if (rng.chance(training_.absent_chance)) return false;
  if (!training_.missing_as_zeros) return true;
  base::Rng own(rng.next(), static_cast<uint64_t>(rank_));
  return !own.chance(training_.absent_chance);
}

void TrainingHost::next_round(uint32_t index) {
  Stream& stream = streams_[index];
  if (stream.completed >= training_.rounds) {
    stream.state = State::finished;
    return;
  }
  stream.round = stream.completed + 1;
  base::Rng rng = rng_of(index, stream.round, 1);
  const bool has_plan = !stream.step->plan().buffers.empty();
  const bool wants = rng.chance(training_.new_plan_chance);
  // After an error all agree again: a rank may have kept another plan.
  stream.state = State::agreeing;
  later(Duration(1 + static_cast<int64_t>(rng.below(200'000))), [this, index, has_plan, wants] {
    if (streams_[index].state != State::agreeing) return;
    if (training_.planned) return agree(index);
    if (wants || !has_plan || members_.epoch > 1) return agree_on_plan(index);
    begin_round(index);
  });
}

void TrainingHost::begin_round(uint32_t index) {
  Stream& stream = streams_[index];
  if (deviates(index)) {
    base::Rng own = rng_of(index, stream.round, 3);
    const Result<void> set =
        stream.step->set_plan(draw_plan(own, training_, stream.step->layout()));
    if (!set) return watcher_.complain(rank_, "set_plan: " + set.error().to_string());
  }
  base::Rng rng = rng_of(index, stream.round, 4);
  gradient::RoundSpec spec{.round = stream.round, .arena = stream.arena, .members = members_};
  spec.curves = stream.agreement && stream.agreement->curves_wanted();
  if (rng.chance(training_.new_duties_chance)) {
    spec.duties = draw_duties(rng, stream.step->layout(), members_.size());
  }
  const Held before = held_by(*stream.step);
  std::ranges::fill(stream.arena, 0.0f);
  std::ranges::fill(stream.fed, 0.0f);
  const gradient::Layout& layout = stream.step->layout();
  for (uint32_t tensor = 0; tensor < layout.tensors().size(); ++tensor) {
    if (!has_gradient(index, stream.round, tensor)) continue;
    const gradient::TensorLayout& known = layout.tensors()[tensor];
    const uint64_t stream_of = stream.round << 16 | index;
    for (uint64_t i = known.offset; i < known.offset + known.shape.elements(); ++i) {
      const uint64_t drawn =
          base::random_at(training_.seed + 1, stream_of, static_cast<uint64_t>(rank_) << 40 | i);
      const double uniform = static_cast<double>(drawn >> 11) * 0x1p-53 - 0.5;
      stream.fed[i] = static_cast<float>(uniform * uniform * uniform * (1.0 + tensor));
    }
  }
  const Result<void> begun = stream.step->begin(spec, network_.now());
  if (!begun) return watcher_.complain(rank_, "begin: " + begun.error().to_string());
  stream.state = State::running;
  stream.stated_failure = stream.lost_first = false;
  stream.tensors_ready = 0;
  stream.owner_changes = draw_owner_changes(index);
  stream.owner_changes_made = 0;
  stream.samples = 1 + rng.below(100) + static_cast<uint64_t>(rank_);
  stream.held = held_by(*stream.step);
  watcher_.on_begin(*this, index, before);
  backward(index);
}

// The same on all ranks, each of which comes to them in its own time.
std::vector<std::vector<gradient::SliceDuty>> TrainingHost::draw_owner_changes(
    uint32_t index) const {
  const Stream& stream = streams_[index];
  base::Rng rng = rng_of(index, stream.round, 6);
  if (!rng.chance(training_.owner_change_chance)) return {};
  std::vector<std::vector<gradient::SliceDuty>> changes(1 + rng.below(3),
                                                        stream.step->seat().duties);
  for (auto& duties : changes) {
    for (gradient::SliceDuty& duty : duties) {
      duty.owner = static_cast<Rank>(rng.below(static_cast<uint64_t>(members_.size())));
    }
  }
  return changes;
}

void TrainingHost::change_owners(uint32_t index) {
  Stream& stream = streams_[index];
  auto& duties = stream.owner_changes[stream.owner_changes_made++];
  const Result<void> changed = stream.step->change_owners(std::move(duties));
  if (!changed) watcher_.complain(rank_, "change_owners: " + changed.error().to_string());
}

// Tensors become ready one after the other, in an order of this rank's own.
void TrainingHost::backward(uint32_t index) {
  Stream& stream = streams_[index];
  base::Rng rng = rng_of(index, stream.round, 5000 + static_cast<uint64_t>(rank_));
  std::vector<uint32_t> order;
  for (uint32_t i = 0; i < stream.step->layout().tensors().size(); ++i) {
    if (has_gradient(index, stream.round, i)) order.push_back(i);
  }
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.below(i)]);
  const auto each = static_cast<uint64_t>(training_.backward_max.count()) / (order.size() + 1);
  Duration at{};
  const uint64_t round = stream.round;
  const auto same = [this, index, round] {
    return streams_[index].state == State::running && streams_[index].round == round;
  };
  for (const uint32_t tensor : order) {
    at += Duration(static_cast<int64_t>(rng.below(each + 1)));
    later(at, [this, index, tensor, same] {
      if (!same()) return;
      Stream& of = streams_[index];
      const gradient::TensorLayout& known = of.step->layout().tensors()[tensor];
      std::copy_n(of.fed.begin() + static_cast<std::ptrdiff_t>(known.offset),
                  known.shape.elements(),
                  of.arena.begin() + static_cast<std::ptrdiff_t>(known.offset));
      ++of.tensors_ready;
      of.step->ready(tensor, network_.now());
    });
  }
  for (size_t i = 0; i < stream.owner_changes.size(); ++i) {
    later(Duration(static_cast<int64_t>(rng.below(static_cast<uint64_t>(at.count()) + 1))),
          [this, index, same] {
            if (same()) change_owners(index);
          });
  }
  later(at + 1us,
        [this, index, round, tensors = order.size()] { finish_backward(index, round, tensors); });
}

// A rank that was stopped meanwhile may have tensors and changes to come.
void TrainingHost::finish_backward(uint32_t index, uint64_t round, size_t tensors) {
  Stream& stream = streams_[index];
  if (stream.state != State::running || stream.round != round) return;
  const bool all_changes = stream.owner_changes_made == stream.owner_changes.size();
  if (stream.tensors_ready < tensors || !all_changes) {
    return later(1ms, [this, index, round, tensors] { finish_backward(index, round, tensors); });
  }
  stream.step->finish(0, stream.samples, network_.now());
}

void TrainingHost::drive() {
  if (std::exchange(driving_, true)) {
    driven_again_ = true;
    return;
  }
  do {
    driven_again_ = false;
    for (uint32_t i = 0; i < streams_.size(); ++i) {
      while (!abandoned_ && drive(i)) {
      }
    }
  } while (driven_again_);
  driving_ = false;
}

// One thing that the stream wants; false when there is nothing.
bool TrainingHost::drive(uint32_t index) {
  Stream& stream = streams_[index];
  if (stream.state != State::running) return false;
  gradient::GradientStep& step = *stream.step;
  if (const auto lane = step.next_cancelled()) {
    exchange().cancel(members_, *lane);
    return true;
  }
  if (auto transmit = step.poll_transmit(network_.now())) {
    const gradient::Ticket& ticket = transmit->ticket;
    if (ticket.leg == gradient::Leg::verdict && !ticket.opening)
      stream.stated_failure = step.failed();
    submit(index, *std::move(transmit));
    return true;
  }
  if (!working_) {
    if (const auto job = step.next()) {
      work(index, *job);
      return true;
    }
  }
  while (step.next_arrived()) {
  }
  auto outcome = step.take_outcome(network_.now());
  if (!outcome) return false;
  stream.state = State::failed;
  if (*outcome) {
    stream.completed = stream.round;
    stream.state = State::idle;
  }
  watcher_.on_end(*this, index, *outcome);
  if (*outcome && stream.agreement) {
    static_cast<void>(stream.agreement->step_done(outcome->value(), network_.now()));
  }
  if (stream.state == State::idle) {
    next_round(index);
  } else {
    leave_lanes(index);
  }
  return true;
}

void TrainingHost::submit(uint32_t index, gradient::Transmit transmit) {
  exchange().submit(members_, std::move(transmit.operation),
                    [this, index, ticket = transmit.ticket](const Outcome& outcome) {
                      Stream& stream = streams_[index];
                      for (const gradient::Missing& one : outcome.missing) {
                        stream.lost_first |=
                            one.leg == gradient::Leg::first && one.sender == members_.self;
                      }
                      stream.step->on_done(ticket, outcome, network_.now());
                      if (!abandoned_) drive();
                    });
}

// The work is done at once, and takes its time.
void TrainingHost::work(uint32_t index, const gradient::GradientStep::Job& job) {
  working_ = true;
  const Time begin = network_.now();
  const Duration takes = duration_of(streams_[index].step->run(job), rates_);
  later(takes, [this, index, job, begin] {
    working_ = false;
    streams_[index].step->finished(job, begin, network_.now());
  });
}

void TrainingHost::fail(uint32_t index, const Error& error) {
  streams_[index].state = State::failed;
  watcher_.on_error(*this, index, error);
  leave_lanes(index);
}

// Others may not have met the error: they shall not wait for this host, here or in the next round.
void TrainingHost::leave_lanes(uint32_t index) {
  for (size_t leg = 0; leg < gradient::kLegCount; ++leg) {
    exchange().cancel(members_, {index, static_cast<gradient::Leg>(leg)});
  }
}

void TrainingHost::shrink(bool outer, Duration limit, gradient::SimulatedExchange::Shrunk done) {
  (outer ? *outer_ : inner_).shrink(limit, std::move(done));
}

void TrainingHost::go_on(const gradient::Members& members) {
  members_ = members;
  if (nested_) nested_->change(members);
  for (uint32_t i = 0; i < streams_.size(); ++i) {
    Stream& stream = streams_[i];
    stream.state = State::agreeing;
    stream.own_completed.assign(8, std::byte{0});
    base::store_little(stream.own_completed.data(), stream.completed);
    stream.all_completed.assign(8 * static_cast<size_t>(members.size()), std::byte{0});
    gradient::Operation tell{.kind = gradient::Operation::Kind::all_gather,
                             .lane = {i, gradient::Leg::agreement},
                             .sent = {stream.own_completed}};
    for (size_t place = 0; place < static_cast<size_t>(members.size()); ++place) {
      tell.room.push_back(MutableBytes(stream.all_completed).subspan(8 * place, 8));
    }
    exchange().submit(members_, std::move(tell), [this, i](const Outcome& outcome) {
      if (abandoned_) return;
      if (!outcome.result) return fail(i, outcome.result.error());
      Stream& of = streams_[i];
      // Who lacks a round that others applied loads their parameters: here there are none.
      for (size_t at = 0; at < of.all_completed.size(); at += 8) {
        of.completed =
            std::max(of.completed, base::load_little<uint64_t>(of.all_completed.data() + at));
      }
      next_round(i);
    });
  }
  drive();
}

bool TrainingHost::at_rest() const {
  return std::ranges::all_of(streams_, [](const Stream& stream) {
    return stream.state == State::failed || stream.state == State::finished;
  });
}

bool TrainingHost::any_failed() const {
  return std::ranges::any_of(streams_,
                             [](const Stream& stream) { return stream.state == State::failed; });
}

bool TrainingHost::all_finished() const {
  return std::ranges::all_of(streams_,
                             [](const Stream& stream) { return stream.state == State::finished; });
}

std::string TrainingHost::state() const {
  std::string text;
  for (const Stream& stream : streams_) {
    static constexpr const char* kNames[] = {"idle", "agreeing", "running", "failed", "finished"};
    text += std::string(text.empty() ? "" : ", ") + kNames[static_cast<size_t>(stream.state)] +
            " in round " + std::to_string(stream.round);
    if (stream.step->under_way() > 0) {
      text += " with " + std::to_string(stream.step->under_way()) + " operations";
    }
  }
  return text;
}

std::string TrainingHost::leaks() const {
  size_t operations = inner_.operations_in_flight();
  size_t buffers = inner_.buffers_out();
  if (outer_) {
    operations += outer_->operations_in_flight();
    buffers += outer_->buffers_out();
  }
  if (nested_) operations += nested_->operations_in_flight();
  for (const Stream& stream : streams_) operations += stream.step->under_way();
  if (operations + buffers == 0) return {};
  return std::to_string(operations) + " operations and " + std::to_string(buffers) +
         " buffers are left";
}

void TrainingHost::abandon() {
  if (std::exchange(abandoned_, true)) return;
  inner_.abandon();
  if (outer_) outer_->abandon();
  nested_.reset();
}

void TrainingHost::close() {
  inner_.close(1s);
  if (outer_) outer_->close(1s);
}

}  // namespace scant::sim
