#include "sim/training_runner.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <utility>

#include "base/check.h"

namespace scant::sim {
namespace {

using namespace std::chrono_literals;

constexpr Duration kPhaseLimit = 3000s;  // virtual; beyond every deadline that can pass
constexpr Duration kShrinkLimit = 60s;
constexpr size_t kComplaintsMax = 20;
// A sparse step tells what is left as a difference of sums of f32: of 4096 elements in 16 lanes.
constexpr double kEnergySteps = 4096.0 / 16 + 8;

std::string text_of(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

// A dense step measures one block in eight, and takes the others to have kept the same share.
double energy_share(const gradient::GradientStep& step) {
  const auto is_block = [](const gradient::SliceLayout& slice) {
    return slice.range.elements <= codec::kDenseBlockElements;
  };
  return std::ranges::all_of(step.layout().slices(), is_block) ? 0.02 : 0.1;
}

double energy_of(const Held& of_worker, const Held& of_owner) {
  double sum = 0;
  for (const double value : of_worker.worker) sum += value * value;
  for (const double value : of_owner.owner) sum += value * value;
  return sum;
}

}  // namespace

TrainingRunner::TrainingRunner(Training training)
    : training_(std::move(training)),
      rng_(training_.seed, 4),
      network_(training_.network),
      start_(network_.now()),
      lost_(static_cast<size_t>(training_.ranks)),
      shrunk_(static_cast<size_t>(training_.ranks)),
      shrinking_(static_cast<size_t>(training_.ranks)) {
  for (Rank rank = 0; rank < training_.ranks; ++rank) {
    hosts_.push_back(std::make_unique<TrainingHost>(training_, network_, rank, *this));
  }
}

TrainingRunner::~TrainingRunner() = default;

void TrainingRunner::complain(Rank rank, const std::string& what) {
  if (complaints_.size() >= kComplaintsMax) return;
  complaints_.push_back("rank " + std::to_string(rank) + " at " +
                        std::to_string(virtual_time().count() / 1000) + " us: " + what);
}

TrainingRunner::Round& TrainingRunner::round_of(const TrainingHost& host, uint32_t stream) {
  TrainingHost& of = *hosts_[static_cast<size_t>(host.rank())];
  return rounds_[{stream, of.stream(stream).round, host.members().epoch}];
}

void TrainingRunner::on_begin(TrainingHost& host, uint32_t index, const Held& before) {
  TrainingHost::Stream& stream = host.stream(index);
  Round& round = round_of(host, index);
  if (!round.ledger) {
    round.members = host.members();
    round.over.assign(static_cast<size_t>(host.members().size()), false);
    const uint32_t drawn = training_.factors_chance > 0 ? kDrawnRankMax : 0;
    const uint32_t rank = training_.planned ? codec::kHeldRanks.back() : drawn;
    round.ledger =
        std::make_unique<RoundLedger>(stream.step->layout(), stream.step->seat(),
                                      roundings_of(training_.residual, !is_exact(), rank));
  }
  round.plan_hashes.push_back(stream.step->plan_hash());
  round.ledger->begin(stream.held, stream.fed);
  round.energy_met += round.ledger->energy_met(stream.held, stream.fed);
  const std::string wrong = round.ledger->check_adopted(before, stream.held);
  if (!wrong.empty()) complain(host.rank(), wrong);
  check_owners(host, index);
}

// Once a round has begun, what no owner's average takes along is with the worker's.
void TrainingRunner::check_owners(TrainingHost& host, uint32_t index) {
  const gradient::GradientStep& step = *host.stream(index).step;
  for (uint32_t slice = 0; slice < step.layout().slices().size(); ++slice) {
    if (step.seat().owns(slice) || step.residuals().owner_if_made(slice) == nullptr) continue;
    complain(host.rank(), "still keeps what it had as the owner of slice " + std::to_string(slice));
  }
}

void TrainingRunner::on_end(TrainingHost& host, uint32_t index,
                            const Result<gradient::StepReport>& outcome) {
  TrainingHost::Stream& stream = host.stream(index);
  Round& round = round_of(host, index);
  round.over[static_cast<size_t>(host.members().self)] = true;
  stream.energy_met += round.energy_met;
  const Held held = held_by(*stream.step);
  if (outcome) {
    ended_well(host, index, round, outcome.value(), held);
  } else {
    ++round.failed;
    judge_error(host.rank(), outcome.error(), &round);
    if (stream.stated_failure) {
      ++counts_.returned;
      const std::string wrong =
          round.ledger->check_returned(stream.held, held, stream.fed, stream.step->plan());
      if (!wrong.empty()) complain(host.rank(), wrong);
    }
  }
  // With what came back: the next verdict tells the owner's, and the next records the worker's.
  check_energy(host, index, energy_of(held, held),
               stream.step->residuals().worker_energy() + stream.step->residuals().owner_energy(),
               "its residuals say");
  if (std::ranges::count(round.over, true) == round.members.size()) {
    judge({index, stream.round, host.members().epoch}, round);
  }
}

void TrainingRunner::ended_well(TrainingHost& host, uint32_t index, Round& round,
                                const gradient::StepReport& report, const Held& held) {
  TrainingHost::Stream& stream = host.stream(index);
  const auto place = static_cast<size_t>(host.members().self);
  std::string wrong = round.ledger->end(held, stream.arena);
  if (!wrong.empty()) complain(host.rank(), "round " + std::to_string(stream.round) + ": " + wrong);
  wrong = round.ledger->check_sent(held, stream.fed, stream.step->plan());
  if (!wrong.empty()) complain(host.rank(), wrong);
  if (round.well++ == 0) {
    round.accounts = report.accounts;
    round.changed_buffers = report.changed_buffers;
  } else {
    if (report.changed_buffers != round.changed_buffers) {
      complain(host.rank(), "has other owners than another member");
    }
    for (size_t i = 0; i < round.accounts.size(); ++i) {
      const gradient::RankAccount& one = round.accounts[i];
      const gradient::RankAccount& other = report.accounts[i];
      if (one.residual_energy == other.residual_energy && one.samples == other.samples) continue;
      complain(host.rank(), "the account of place " + std::to_string(i) + " differs");
    }
  }
  // What it takes along if it is lost: its worker's residual of now, its owner's of the round
  // before. It does not know yet what of its records will come back, nor what coefficients will
  // lose by its rounding.
  const gradient::RankAccount& own = report.accounts[place];
  if (own.samples != stream.samples) complain(host.rank(), "its samples are told wrong");
  const bool factors = std::ranges::any_of(
      report.buffers, [](const gradient::BufferTimes& times) { return times.basis_end > 0; });
  round.factors |= factors;
  if (!stream.lost_first && !factors) {
    check_energy(host, index, energy_of(held, stream.held), own.residual_energy,
                 "its verdict says");
  }
}

void TrainingRunner::check_energy(TrainingHost& host, uint32_t index, double energy, double told,
                                  const char* who) {
  TrainingHost::Stream& stream = host.stream(index);
  const double allowed =
      energy_share(*stream.step) * energy + kEnergySteps * 0x1p-24 * stream.energy_met + 1e-12;
  if (std::abs(told - energy) <= allowed) return;
  complain(host.rank(), "holds energy " + text_of(energy) + ", " + who + " " + text_of(told) +
                            ", bound " + text_of(allowed));
}

void TrainingRunner::on_error(TrainingHost& host, uint32_t, const Error& error) {
  judge_error(host.rank(), error, nullptr);
}

// Plans that were drawn equal by chance are no deviation.
bool TrainingRunner::has_deviant(const Round& round) {
  return std::ranges::adjacent_find(round.plan_hashes, std::not_equal_to<>()) !=
         round.plan_hashes.end();
}

void TrainingRunner::judge_error(Rank rank, const Error& error, const Round* round) {
  const auto self = static_cast<size_t>(rank);
  const bool any_lost = std::ranges::count(lost_, true) > 0;
  bool explained = false;
  if (error.code == ErrorCode::peer_lost) {
    const bool named = error.peer >= 0 && error.peer < training_.ranks;
    explained = lost_[self] || (named && lost_[static_cast<size_t>(error.peer)]);
  } else if (error.code == ErrorCode::closed) {
    explained = any_lost;
  } else if (error.code == ErrorCode::mismatch) {
    explained = round != nullptr && has_deviant(*round);
  }
  if (!explained) complain(rank, "fails without a fault: " + error.to_string());
}

// All members are over with it, or lost.
void TrainingRunner::judge(const RoundKey& key, Round& round) {
  if (round.judged) return;
  round.judged = true;
  const auto [stream, number, epoch] = key;
  if (has_deviant(round)) {
    ++counts_.deviated;
    if (stream != 0 || number != training_.deviant_round || epoch != 1) {
      complain(round.members.stations[0], "round " + std::to_string(number) +
                                              " began with plans that no fault made different");
    }
    if (round.well > 0) {
      complain(round.members.stations[0], "round " + std::to_string(number) +
                                              " ended well, with different plans on its members");
    }
  }
  if (round.failed > 0) {
    ++counts_.failed;
    if (round.well > 0) ++counts_.parted;
    // A round parts its members only when one is lost on the way to its end.
    if (round.well > 0 && std::ranges::count(lost_, true) == 0) {
      complain(round.members.stations[0],
               "round " + std::to_string(number) + " ended well on some members alone");
    }
    return;
  }
  if (round.well == 0) return;
  ++counts_.rounds;
  if (round.changed_buffers > 0) ++counts_.changed;
  // A member that was lost after its part was done keeps what it then held, unless the end of the
  // round would have given it something back.
  for (size_t place = 0; place < round.over.size(); ++place) {
    if (round.over[place]) continue;
    if (!is_exact() || round.factors) return;
    const Rank rank = round.members.stations[place];
    round.ledger->keep(held_by(*hosts_[static_cast<size_t>(rank)]->stream(stream).step));
  }
  ++counts_.checked;
  const std::string wrong = round.ledger->check();
  if (wrong.empty()) return;
  complain(round.members.stations[0], "stream " + std::to_string(stream) + " round " +
                                          std::to_string(number) + " epoch " +
                                          std::to_string(epoch) + ": " + wrong);
}

void TrainingRunner::judge_rounds() {
  for (auto& [key, round] : rounds_) {
    bool all = true;
    for (size_t place = 0; place < round.over.size(); ++place) {
      all = all && (round.over[place] || !healthy(round.members.stations[place]));
    }
    if (all) judge(key, round);
  }
  std::erase_if(rounds_, [](const auto& entry) { return entry.second.judged; });
}

void TrainingRunner::lose(Rank rank) { lost_[static_cast<size_t>(rank)] = true; }

void TrainingRunner::plan_faults() {
  faults_left_ = training_.faults.size();
  for (const TrainingFault& fault : training_.faults) {
    network_.at(network_.now() + fault.after, [this, &fault] {
      --faults_left_;
      apply(fault);
    });
  }
}

void TrainingRunner::apply(const TrainingFault& fault) {
  using Kind = TrainingFault::Kind;
  std::vector<Rank> stations{fault.rank};
  if (!training_.site_of.empty()) stations.push_back(training_.ranks + fault.rank);
  if (!network_.alive(fault.rank)) return;
  const auto at_end = [&](std::function<void()> action) {
    ++faults_left_;
    network_.at(network_.now() + fault.length, [this, action = std::move(action)] {
      --faults_left_;
      action();
    });
  };
  switch (fault.kind) {
    case Kind::kill_process:
    case Kind::kill_host:
      lose(fault.rank);
      for (const Rank station : stations) {
        network_.kill(station,
                      fault.kind == Kind::kill_process ? net::Death::process : net::Death::host);
      }
      return;
    case Kind::long_stop:
      lose(fault.rank);
      [[fallthrough]];
    case Kind::short_stop:
      for (const Rank station : stations) network_.stop(station);
      return at_end([this, stations] {
        for (const Rank station : stations) {
          if (network_.alive(station)) network_.resume(station);
        }
      });
    case Kind::slow_links:
    case Kind::bad_links:
      change_links(fault, true);
      return at_end([this, &fault] { change_links(fault, false); });
  }
}

void TrainingRunner::change_links(const TrainingFault& fault, bool worse) {
  net::LinkModel model = training_.network.link;
  if (worse && fault.kind == TrainingFault::Kind::slow_links) {
    model.rate_bytes_per_second = 2'000'000;
    model.latency += 5ms;
  }
  if (worse && fault.kind == TrainingFault::Kind::bad_links) model.loss = 0.3;
  for (Rank other = 0; other < training_.ranks; ++other) {
    if (other == fault.rank) continue;
    network_.set_link(fault.rank, other, model);
    network_.set_link(other, fault.rank, model);
  }
}

template <typename Over>
bool TrainingRunner::run_until(Duration limit, const Over& over) {
  const Time deadline = network_.now() + limit;
  while (!over()) {
    if (!network_.advance(deadline)) return false;
    for (const Rank station : network_.take_runnable()) {
      hosts_[static_cast<size_t>(station % training_.ranks)]->pump(station);
    }
  }
  return true;
}

bool TrainingRunner::healthy(Rank rank) const {
  return network_.alive(rank) && !lost_[static_cast<size_t>(rank)];
}

std::vector<Rank> TrainingRunner::survivors() const {
  std::vector<Rank> all;
  for (Rank rank = 0; rank < training_.ranks; ++rank) {
    if (healthy(rank)) all.push_back(rank);
  }
  return all;
}

// Ranks that were stopped too long come to an end too, once they go on.
bool TrainingRunner::at_rest() const {
  if (faults_left_ > 0) return false;
  return std::ranges::all_of(hosts_, [this](const auto& host) {
    return !network_.alive(host->rank()) || host->at_rest();
  });
}

// Until its set is that of the survivors. A rank's two stations do not wait for each other: while
// one is under way the other may have to begin again.
void TrainingRunner::begin_shrink(Rank rank, bool outer) {
  const auto index = static_cast<size_t>(rank);
  if (!healthy(rank) || std::exchange(shrinking_[index][outer ? 1 : 0], true)) return;
  hosts_[index]->shrink(outer, kShrinkLimit, [this, rank, outer](Result<gradient::Members> left) {
    const auto at = static_cast<size_t>(rank);
    shrinking_[at][outer ? 1 : 0] = false;
    if (!healthy(rank)) return;
    if (!left) return complain(rank, "shrink failed: " + left.error().to_string());
    std::vector<Rank> stations;
    for (const Rank station : left.value().stations) {
      if (station < training_.ranks) stations.push_back(station);
    }
    const bool expected = stations == survivors();
    shrunk_[at][outer ? 1 : 0] = std::move(stations);
    if (!expected) network_.at(network_.now() + 10ms, [=, this] { begin_shrink(rank, outer); });
  });
}

void TrainingRunner::begin_shrink(Rank rank) {
  begin_shrink(rank, false);
  if (!training_.site_of.empty()) begin_shrink(rank, true);
}

bool TrainingRunner::has_shrunk(Rank rank) const {
  const auto index = static_cast<size_t>(rank);
  const auto is_done = [&](size_t which) {
    return !shrinking_[index][which] && shrunk_[index][which] == survivors();
  };
  return is_done(0) && (training_.site_of.empty() || is_done(1));
}

// Until all have the expected set: who finished just before another loss starts again.
bool TrainingRunner::shrink() {
  for (auto& shrunk : shrunk_) shrunk = {};
  for (const Rank rank : survivors()) {
    network_.at(network_.now() + Duration(static_cast<int64_t>(rng_.below(20'000'000))),
                [this, rank] { begin_shrink(rank); });
  }
  const auto done = [this] {
    return std::ranges::all_of(survivors(), [this](Rank rank) { return has_shrunk(rank); });
  };
  if (training_.kill_while_shrinking && epoch_ == 1 && survivors().size() > 2) {
    const Rank victim = survivors()[rng_.below(survivors().size())];
    network_.at(network_.now() + Duration(static_cast<int64_t>(rng_.below(40'000'000))),
                [this, victim, done] {
                  if (done()) return;  // too late: what follows expects no loss of this fault
                  apply({.kind = TrainingFault::Kind::kill_process, .rank = victim});
                  for (const Rank rank : survivors()) {
                    const auto& shrunk = shrunk_[static_cast<size_t>(rank)];
                    if (!shrunk[0].empty()) begin_shrink(rank, false);
                    if (!shrunk[1].empty()) begin_shrink(rank, true);
                  }
                });
  }
  if (run_until(kShrinkLimit + 10s, done)) return true;
  complain(kNoRank, "the survivors do not agree on who is left");
  return false;
}

void TrainingRunner::go_on() {
  ++epoch_;
  ++counts_.epochs;
  const std::vector<Rank> stations = survivors();
  for (size_t place = 0; place < stations.size(); ++place) {
    hosts_[static_cast<size_t>(stations[place])]->go_on(
        {.epoch = epoch_, .stations = stations, .self = static_cast<Rank>(place)});
  }
}

void TrainingRunner::close_all() {
  for (const Rank rank : survivors()) {
    const std::string leaks = hosts_[static_cast<size_t>(rank)]->leaks();
    if (!leaks.empty()) complain(rank, leaks);
  }
  for (const Rank rank : survivors()) hosts_[static_cast<size_t>(rank)]->close();
}

std::vector<std::string> TrainingRunner::run() {
  base::set_check_seed(training_.seed);
  plan_faults();
  for (auto& host : hosts_) host->start(gradient::everyone(training_.ranks, host->rank()));
  while (complaints_.empty()) {
    if (!run_until(kPhaseLimit, [this] { return at_rest(); })) {
      for (auto& host : hosts_) {
        if (!network_.alive(host->rank()) || host->at_rest()) continue;
        complain(host->rank(), "hangs: " + host->state());
      }
      break;
    }
    judge_rounds();
    const std::vector<Rank> left = survivors();
    const auto failed = [this](Rank rank) {
      return hosts_[static_cast<size_t>(rank)]->any_failed();
    };
    if (std::ranges::none_of(left, failed) || !complaints_.empty()) break;
    if (std::ranges::count(lost_, true) > 0 && !shrink()) break;
    go_on();
  }
  // What a farewell or an agreement on costs still has under way comes to an end.
  const auto clean = [this] {
    return std::ranges::all_of(survivors(), [this](Rank rank) {
      return hosts_[static_cast<size_t>(rank)]->leaks().empty();
    });
  };
  if (complaints_.empty()) {
    (void)run_until(kPhaseLimit, clean);
    close_all();
  }
  for (auto& host : hosts_) host->abandon();
  return complaints_;
}

}  // namespace scant::sim
