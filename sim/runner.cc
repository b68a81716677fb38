#include "sim/runner.h"

#include <algorithm>

#include "base/check.h"
#include "net/simulated/simulated_transport.h"

namespace scant::sim {
namespace {

using namespace std::chrono_literals;

constexpr Duration kScriptLimit = 3000s;  // virtual; beyond every deadline that can pass
constexpr Duration kShrinkLimit = 60s;
constexpr size_t kComplaintsMax = 20;

std::byte message_byte(Rank from, uint64_t index) {
  return static_cast<std::byte>((static_cast<uint64_t>(from) * 37 + index * 11 + 5) & 0xFF);
}

bool contains(const std::vector<Rank>& ranks, Rank rank) {
  return std::find(ranks.begin(), ranks.end(), rank) != ranks.end();
}

}  // namespace

Runner::Runner(Scenario scenario)
    : scenario_(std::move(scenario)),
      rng_(scenario_.seed, 2),
      network_(scenario_.network),
      start_(network_.now()),
      side_(static_cast<size_t>(scenario_.size)),
      lost_(static_cast<size_t>(scenario_.size)) {
  hosts_.resize(static_cast<size_t>(scenario_.size));
  for (Rank rank = 0; rank < scenario_.size; ++rank) {
    collective::EngineOptions options = scenario_.engine;
    options.rank = rank;
    options.size = scenario_.size;
    Host& host = hosts_[static_cast<size_t>(rank)];
    host.engine = std::make_unique<collective::Engine>(options, collective::CostModel{});
    host.pump = std::make_unique<collective::Pump>(*host.engine, network_.endpoint(rank));
    for (Rank other = 0; other < scenario_.size; ++other) host.world.push_back(other);
    for (size_t group = 0; group < scenario_.groups.size(); ++group) {
      if (!contains(scenario_.groups[group], rank)) continue;
      SCANT_CHECK(
          host.engine->add_group(static_cast<GroupId>(group + 1), scenario_.groups[group]).ok());
    }
  }
}

Duration Runner::virtual_time() const { return network_.now() - start_; }

void Runner::complain(Rank rank, const std::string& what) {
  if (complaints_.size() >= kComplaintsMax) return;
  complaints_.push_back("rank " + std::to_string(rank) + " at " +
                        std::to_string(virtual_time().count() / 1000) + " us: " + what);
}

void Runner::add_jobs(const std::vector<Task>& tasks) {
  script_begin_ = jobs_.size();
  for (const Task& task : tasks) {
    auto job = std::make_unique<Job>();
    job->task = task;
    if (task.message) {
      for (uint64_t i = 0; i < task.spec.elements; ++i) {
        job->sent.push_back(message_byte(task.members[0], i));
      }
      job->received.resize(task.spec.elements);
    } else {
      job->exercise = std::make_unique<collective::Exercise>(task.spec);
      collective::ExerciseSpec other = task.spec;
      other.kind = collective::OpKind::all_reduce;
      other.elements += 3;
      job->deviation = std::make_unique<collective::Exercise>(other);
    }
    jobs_.push_back(std::move(job));
  }
  script_end_ = jobs_.size();
}

void Runner::start_script(Rank rank) {
  Host& host = hosts_[static_cast<size_t>(rank)];
  host.next = script_begin_;
  host.script_done = false;
  network_.at(network_.now() + Duration(rng_.below(1'000'000)),
              [this, rank] { script_step(rank); });
}

void Runner::step_later(Rank rank) {
  const Duration gap(rng_.below(static_cast<uint64_t>(scenario_.gap_max.count()) + 1));
  network_.at(network_.now() + gap, [this, rank] { script_step(rank); });
}

// Submits the rank's next operation and arranges the one after it.
void Runner::script_step(Rank rank) {
  if (!network_.alive(rank)) return;
  if (network_.stopped(rank)) {
    network_.at(network_.now() + 5ms, [this, rank] { script_step(rank); });
    return;
  }
  Host& host = hosts_[static_cast<size_t>(rank)];
  while (host.next < script_end_) {
    Job& job = *jobs_[host.next++];
    const auto member = std::find(job.task.members.begin(), job.task.members.end(), rank);
    if (member == job.task.members.end()) continue;
    // A receive from any source may take the message of a later task, so nobody waits for one.
    if (!job.task.any_source && rng_.chance(scenario_.wait_chance)) host.awaited = &job;
    const bool goes_on = host.awaited == nullptr;
    submit(rank, job, static_cast<size_t>(member - job.task.members.begin()));
    network_.make_runnable(rank);
    if (goes_on) step_later(rank);
    return;
  }
  host.script_done = true;
}

void Runner::submit(Rank rank, Job& job, size_t member) {
  ++operations_;
  if (job.task.message) return submit_message(rank, job, member == 0);
  Host& host = hosts_[static_cast<size_t>(rank)];
  const auto group_rank = static_cast<Rank>(member);
  collective::Exercise& exercise = job.task.deviant == group_rank ? *job.deviation : *job.exercise;
  collective::Call call = exercise.call(group_rank);
  call.group = job.task.group;
  ++host.pending;
  host.engine->submit(network_.now(), std::move(call),
                      [this, rank, &job, member](const Result<void>& outcome, Rank source) {
                        on_outcome(rank, job, member, outcome, source);
                      });
}

void Runner::submit_message(Rank rank, Job& job, bool sending) {
  Host& host = hosts_[static_cast<size_t>(rank)];
  collective::Call call;
  call.dtype = DType::u8;
  call.tag = job.task.tag;
  if (sending) {
    call.kind = collective::OpKind::send;
    call.root = job.task.members[1];
    call.inputs = {job.sent};
  } else {
    call.kind = collective::OpKind::recv;
    call.root = job.task.any_source ? kAnySource : job.task.members[0];
    call.outputs = {job.received};
  }
  ++host.pending;
  host.engine->submit(network_.now(), std::move(call),
                      [this, rank, &job, sending](const Result<void>& outcome, Rank source) {
                        on_outcome(rank, job, sending ? 0 : 1, outcome, source);
                      });
}

void Runner::on_outcome(Rank rank, Job& job, size_t member, const Result<void>& outcome,
                        Rank source) {
  Host& host = hosts_[static_cast<size_t>(rank)];
  --host.pending;
  if (host.awaited == &job) {
    host.awaited = nullptr;
    step_later(rank);
  }
  const auto group_rank = static_cast<Rank>(member);
  if (!outcome) {
    judge_error(rank, job, outcome.error());
  } else if (job.task.message) {
    const Rank from = job.task.any_source ? source : job.task.members[0];
    for (uint64_t i = 0; member == 1 && i < job.received.size(); ++i) {
      if (job.received[i] == message_byte(from, i)) continue;
      complain(rank, "a message from " + std::to_string(from) + " came damaged");
      break;
    }
  } else if (job.task.deviant != group_rank) {
    const std::string wrong = job.exercise->verify(group_rank);
    if (!wrong.empty()) complain(rank, job.task.spec.to_string() + ": " + wrong);
    if (job.task.spec.kind == collective::OpKind::all_reduce) {
      const uint32_t digest = job.exercise->digest(group_rank);
      if (job.digest && *job.digest != digest) {
        complain(rank, job.task.spec.to_string() + ": bits differ between ranks");
      }
      job.digest = digest;
    }
  }
  if (!job.task.message) {
    // Memory that the engine gave back is freed: a late write is an error for the sanitizer.
    (job.task.deviant == group_rank ? job.deviation : job.exercise)->drop(group_rank);
  }
}

void Runner::judge_error(Rank rank, const Job& job, const Error& error) {
  const auto self = static_cast<size_t>(rank);
  bool explained = false;
  if (error.code == ErrorCode::peer_lost) {
    const bool named = error.peer >= 0 && error.peer < scenario_.size;
    const auto culprit = static_cast<size_t>(named ? error.peer : 0);
    explained = lost_[self] || (named && (lost_[culprit] || side_[self] != side_[culprit]));
    // In a partition a rank may also hear of a loss that only the other side sees.
    explained = explained || partitioned_;
  } else if (error.code == ErrorCode::mismatch) {
    explained = std::any_of(scenario_.tasks.begin(), scenario_.tasks.end(),
                            [](const Task& task) { return task.deviant != kNoRank; });
  } else if (error.code == ErrorCode::timeout) {
    // A receive from any source that a loss ended never chose its sender.
    explained =
        job.task.any_source && (partitioned_ || std::count(lost_.begin(), lost_.end(), true) > 0);
  }
  if (explained && !epoch_two_) return;
  if (explained && scenario_.kill_while_shrinking) return;
  complain(rank, (job.task.message ? std::string("message") : job.task.spec.to_string()) +
                     " failed: " + error.to_string());
}

void Runner::plan_faults() {
  faults_left_ = scenario_.faults.size();
  for (const Fault& fault : scenario_.faults) {
    network_.at(network_.now() + fault.after, [this, &fault] {
      apply(fault);
      --faults_left_;
    });
  }
}

void Runner::apply(const Fault& fault) {
  const Duration timeout = scenario_.network.peer_timeout;
  switch (fault.kind) {
    case Fault::Kind::kill_process:
    case Fault::Kind::kill_host:
      lost_[static_cast<size_t>(fault.rank)] = true;
      network_.kill(fault.rank, fault.kind == Fault::Kind::kill_process ? net::Death::process
                                                                        : net::Death::host);
      return;
    case Fault::Kind::long_stop:
      lost_[static_cast<size_t>(fault.rank)] = true;
      [[fallthrough]];
    case Fault::Kind::short_stop: {
      if (!network_.alive(fault.rank)) return;
      const bool is_long = fault.kind == Fault::Kind::long_stop;
      network_.stop(fault.rank);
      ++faults_left_;
      network_.at(network_.now() + (is_long ? 3 * timeout : timeout / 4), [this, &fault] {
        --faults_left_;
        if (network_.alive(fault.rank)) network_.resume(fault.rank);
      });
      return;
    }
    case Fault::Kind::partition:
      side_ = fault.side;
      partitioned_ = std::count(side_.begin(), side_.end(), side_[0]) !=
                     static_cast<std::ptrdiff_t>(side_.size());
      network_.partition(fault.side);
      return;
  }
}

bool Runner::run_until(Duration limit, bool (Runner::*done)() const) {
  const Time deadline = network_.now() + limit;
  while (!(this->*done)()) {
    if (!network_.advance(deadline)) return false;
    for (const Rank rank : network_.take_runnable()) {
      hosts_[static_cast<size_t>(rank)].pump->step(kNever);
    }
  }
  return true;
}

void Runner::complain_of_hangs() {
  for (Rank rank = 0; rank < scenario_.size; ++rank) {
    const Host& host = hosts_[static_cast<size_t>(rank)];
    if (!network_.alive(rank) || (host.script_done && host.engine->operations_in_flight() == 0))
      continue;
    complain(rank, "hangs in epoch " + std::to_string(host.engine->epoch()) + " with " +
                       std::to_string(host.pending) + " operations pending, " +
                       std::to_string(script_end_ - host.next) + " to submit");
  }
}

bool Runner::healthy(Rank rank) const {
  return network_.alive(rank) && !lost_[static_cast<size_t>(rank)];
}

bool Runner::scripts_done() const {
  if (faults_left_ > 0) return false;
  for (Rank rank = 0; rank < scenario_.size; ++rank) {
    const Host& host = hosts_[static_cast<size_t>(rank)];
    if (!network_.alive(rank)) continue;
    // The engine's own count: an agreement on cost parameters may outlast the script.
    if (!host.script_done || host.engine->operations_in_flight() > 0) return false;
  }
  return true;
}

std::vector<Rank> Runner::expected_survivors(Rank rank) const {
  std::vector<Rank> survivors;
  for (Rank other = 0; other < scenario_.size; ++other) {
    if (healthy(other) && side_[static_cast<size_t>(other)] == side_[static_cast<size_t>(rank)]) {
      survivors.push_back(other);
    }
  }
  return survivors;
}

bool Runner::shrinks_done() const {
  for (Rank rank = 0; rank < scenario_.size; ++rank) {
    if (healthy(rank) && hosts_[static_cast<size_t>(rank)].survivors != expected_survivors(rank)) {
      return false;
    }
  }
  return true;
}

// Shrinks until the set is the expected one: who finished just before another loss starts again.
void Runner::begin_shrink(Rank rank) {
  Host& host = hosts_[static_cast<size_t>(rank)];
  if (!healthy(rank) || host.shrinking) return;
  host.shrinking = true;
  host.engine->begin_shrink(network_.now(), network_.now() + kShrinkLimit,
                            [this, rank](Result<std::vector<Rank>> outcome) {
                              Host& own = hosts_[static_cast<size_t>(rank)];
                              own.shrinking = false;
                              if (!outcome)
                                return complain(rank,
                                                "shrink failed: " + outcome.error().to_string());
                              std::vector<Rank> stations;
                              for (const Rank old : outcome.value()) {
                                stations.push_back(own.world[static_cast<size_t>(old)]);
                              }
                              own.world = stations;
                              own.survivors = stations;
                              if (stations == expected_survivors(rank)) return;
                              network_.at(network_.now() + 10ms, [this, rank] {
                                begin_shrink(rank);
                                network_.make_runnable(rank);
                              });
                            });
}

void Runner::shrink_and_go_on() {
  epoch_two_ = true;
  for (Rank rank = 0; rank < scenario_.size; ++rank) {
    if (!healthy(rank)) continue;
    network_.at(network_.now() + Duration(rng_.below(20'000'000)), [this, rank] {
      begin_shrink(rank);
      network_.make_runnable(rank);
    });
  }
  if (scenario_.kill_while_shrinking) {
    const auto victim = static_cast<Rank>(rng_.below(static_cast<uint64_t>(scenario_.size)));
    if (healthy(victim) && expected_survivors(victim).size() > 1) {
      network_.at(network_.now() + Duration(rng_.below(40'000'000)), [this, victim] {
        if (shrinks_done()) return;  // too late: what follows expects no more losses
        lost_[static_cast<size_t>(victim)] = true;
        network_.kill(victim, net::Death::process);
        // Who had agreed with the victim must try again.
        for (Rank rank = 0; rank < scenario_.size; ++rank) {
          if (healthy(rank) && hosts_[static_cast<size_t>(rank)].survivors) begin_shrink(rank);
        }
      });
    }
  }
  if (!run_until(kShrinkLimit + 10s, &Runner::shrinks_done)) {
    for (Rank rank = 0; rank < scenario_.size; ++rank) {
      if (healthy(rank) &&
          hosts_[static_cast<size_t>(rank)].survivors != expected_survivors(rank)) {
        complain(rank,
                 "shrink does not reach the expected set; epoch " +
                     std::to_string(hosts_[static_cast<size_t>(rank)].engine->epoch()) +
                     (hosts_[static_cast<size_t>(rank)].shrinking ? ", still shrinking" : ""));
      }
    }
    return;
  }
  for (int side = 0; side < 2; ++side) {
    std::vector<Rank> members;
    for (Rank rank = 0; rank < scenario_.size; ++rank) {
      if (healthy(rank) && side_[static_cast<size_t>(rank)] == side) members.push_back(rank);
    }
    if (members.empty()) continue;
    std::vector<Task> tasks = scenario_.after_shrink;
    for (Task& task : tasks) {
      task.group = kWorldGroup;
      task.members = members;
      task.spec.size = static_cast<int>(members.size());
      task.spec.root = task.spec.root % task.spec.size;
    }
    add_jobs(tasks);
    for (const Rank rank : members) start_script(rank);
    if (!run_until(kScriptLimit, &Runner::scripts_done)) complain_of_hangs();
  }
}

void Runner::close_all() {
  for (Rank rank = 0; rank < scenario_.size; ++rank) {
    if (!network_.alive(rank)) continue;
    Host& host = hosts_[static_cast<size_t>(rank)];
    if (host.engine->operations_in_flight() != 0) {
      complain(rank, std::to_string(host.engine->operations_in_flight()) + " operations are left");
    }
    network_.endpoint(rank).close(network_.now() + 1s);
    host.engine->on_transport_closed(Error{ErrorCode::closed, 0, kNoRank, "the run is over"});
    if (host.engine->buffers_out() != 0) {
      complain(rank, std::to_string(host.engine->buffers_out()) + " buffers leak");
    }
  }
}

std::vector<std::string> Runner::run() {
  base::set_check_seed(scenario_.seed);
  add_jobs(scenario_.tasks);
  for (Rank rank = 0; rank < scenario_.size; ++rank) start_script(rank);
  plan_faults();
  if (!run_until(kScriptLimit, &Runner::scripts_done)) {
    complain_of_hangs();
  } else if (partitioned_ || std::count(lost_.begin(), lost_.end(), true) > 0) {
    shrink_and_go_on();
  }
  if (complaints_.empty()) close_all();
  return complaints_;
}

}  // namespace scant::sim
