#include "sim/scenario.h"

#include <algorithm>

#include "base/rng.h"

namespace scant::sim {
namespace {

using namespace std::chrono_literals;

int draw_size(base::Rng& rng) {
  if (rng.chance(0.06)) return 10 + static_cast<int>(rng.below(24));
  return 2 + static_cast<int>(rng.below(8));
}

net::LinkModel draw_link(base::Rng& rng) {
  net::LinkModel link;
  link.latency = Duration(rng.below(rng.chance(0.3) ? 20'000'000 : 300'000));
  if (rng.chance(0.4)) link.jitter = Duration(rng.below(2'000'000));
  if (rng.chance(0.4)) link.rate_bytes_per_second = 1'000'000 + rng.below(200'000'000);
  if (rng.chance(0.4)) link.loss = rng.uniform() * 0.15;
  if (rng.chance(0.3)) link.duplicate = rng.uniform() * 0.1;
  if (rng.chance(0.2)) link.corrupt = rng.uniform() * 0.02;
  if (rng.chance(0.4)) {
    link.reorder = rng.uniform() * 0.5;
    link.reorder_delay = Duration(1 + rng.below(5'000'000));
  }
  return link;
}

void draw_engine(base::Rng& rng, collective::EngineOptions& options) {
  options.operation_timeout = 600s;
  if (rng.chance(0.5)) {
    options.segment_bytes = 512 + rng.below(4000);
    options.eager_bytes = 1 + rng.below(6000);
    options.eager_window_bytes = static_cast<uint32_t>(8000 + rng.below(40'000));
  }
  if (rng.chance(0.5)) {
    options.agree_first = 1 + static_cast<uint32_t>(rng.below(6));
    options.agree_every = 40 + static_cast<uint32_t>(rng.below(30));
  }
}

Task draw_task(base::Rng& rng, const Scenario& scenario, uint64_t elements_max, double messages) {
  Task task;
  const auto all = [](int size) {
    std::vector<Rank> members;
    for (Rank rank = 0; rank < size; ++rank) members.push_back(rank);
    return members;
  };
  if (rng.chance(messages)) {
    task.message = true;
    const auto size = static_cast<uint64_t>(scenario.size);
    const auto from = static_cast<Rank>(rng.below(size));
    const auto to =
        static_cast<Rank>((static_cast<uint64_t>(from) + 1 + rng.below(size - 1)) % size);
    task.members = {from, to};
    task.tag = static_cast<uint32_t>(rng.below(3));
    task.any_source = task.tag == 2;
    // A receive from any source must fit whoever is first.
    task.spec.elements = task.any_source ? 64 : rng.below(rng.chance(0.3) ? 20'000 : 100);
    task.spec.seed = rng.next();
    return task;
  }
  const uint64_t which = rng.below(scenario.groups.size() + 1);
  task.group = static_cast<GroupId>(which);
  task.members = which == 0 ? all(scenario.size) : scenario.groups[which - 1];
  task.spec = collective::random_spec(rng, static_cast<int>(task.members.size()), elements_max);
  return task;
}

void draw_faults(base::Rng& rng, Scenario& scenario, Duration span) {
  const auto when = [&] { return Duration(rng.below(static_cast<uint64_t>(span.count()) + 1)); };
  const auto someone = [&] {
    return static_cast<Rank>(rng.below(static_cast<uint64_t>(scenario.size)));
  };
  const uint64_t choice = rng.below(10);
  if (choice < 4) return;  // a run without faults
  if (choice < 8) {
    // One fault, or two of different ranks.
    static constexpr Fault::Kind kKinds[] = {Fault::Kind::kill_process, Fault::Kind::kill_host,
                                             Fault::Kind::short_stop, Fault::Kind::long_stop};
    scenario.faults.push_back(Fault{kKinds[rng.below(4)], someone(), when(), {}});
    const Rank other = someone();
    if (other != scenario.faults[0].rank && scenario.size > 2 && rng.chance(0.3)) {
      scenario.faults.push_back(Fault{kKinds[rng.below(4)], other, when(), {}});
    }
    scenario.kill_while_shrinking = scenario.size > 4 && rng.chance(0.3);
    return;
  }
  if (choice == 8) {
    Fault fault{Fault::Kind::partition, kNoRank, when(), {}};
    for (Rank rank = 0; rank < scenario.size; ++rank) {
      fault.side.push_back(static_cast<int>(rng.below(2)));
    }
    scenario.faults.push_back(fault);
    return;
  }
  // Ranks that disagree about one call.
  Task& task = scenario.tasks[rng.below(scenario.tasks.size())];
  if (!task.message && task.members.size() > 1) {
    task.deviant = static_cast<Rank>(rng.below(task.members.size()));
  }
}

const char* name(Fault::Kind kind) {
  switch (kind) {
    case Fault::Kind::kill_process:
      return "kill process";
    case Fault::Kind::kill_host:
      return "kill host";
    case Fault::Kind::short_stop:
      return "short stop";
    case Fault::Kind::long_stop:
      return "long stop";
    case Fault::Kind::partition:
      return "partition";
  }
  return "?";
}

}  // namespace

std::string Scenario::to_string() const {
  std::string text = std::to_string(size) + " ranks, " + std::to_string(tasks.size()) + " tasks";
  const net::LinkModel& link = network.link;
  text += ", latency " + std::to_string(link.latency.count() / 1000) + " us, rate " +
          std::to_string(link.rate_bytes_per_second) + " B/s, loss " + std::to_string(link.loss) +
          ", duplicate " + std::to_string(link.duplicate) + ", corrupt " +
          std::to_string(link.corrupt) + ", reorder " + std::to_string(link.reorder);
  text += ", segment " + std::to_string(engine.segment_bytes) + ", window " +
          std::to_string(engine.eager_window_bytes);
  for (const Fault& fault : faults) {
    text += "\n  fault: " + std::string(name(fault.kind)) + " rank " + std::to_string(fault.rank) +
            " after " + std::to_string(fault.after.count() / 1000) + " us";
    for (const int side : fault.side) text += side == 0 ? " a" : " b";
  }
  for (size_t i = 0; i < tasks.size(); ++i) {
    const Task& task = tasks[i];
    text += "\n  task " + std::to_string(i) + " group " + std::to_string(task.group) + ": ";
    if (task.message) {
      text += "message " + std::to_string(task.members[0]) + " -> " +
              std::to_string(task.members[1]) + " tag " + std::to_string(task.tag) + ", " +
              std::to_string(task.spec.elements) + " bytes" +
              (task.any_source ? ", any source" : "");
    } else {
      text += task.spec.to_string();
    }
    if (task.deviant != kNoRank) text += ", deviant member " + std::to_string(task.deviant);
  }
  return text;
}

Scenario make_scenario(uint64_t seed, int size) {
  base::Rng rng(seed, 1);
  Scenario scenario;
  scenario.seed = seed;
  const int drawn = draw_size(rng);
  scenario.size = size > 0 ? size : drawn;
  draw_engine(rng, scenario.engine);
  scenario.network.size = scenario.size;
  scenario.network.seed = seed;
  scenario.network.link = draw_link(rng);
  scenario.network.datagram_bytes = 600 + rng.below(9000);
  scenario.network.heartbeat_traffic = rng.chance(0.2);
  if (scenario.network.heartbeat_traffic) {
    // Five heartbeats lost in a row are a loss by design; the scenario wants only the losses it
    // plans.
    scenario.network.link.loss = std::min(scenario.network.link.loss, 0.005);
    scenario.network.link.corrupt = std::min(scenario.network.link.corrupt, 0.005);
  }
  scenario.network.sent_when_acknowledged = rng.chance(0.4);
  if (scenario.size > 2 && rng.chance(0.4)) {
    for (uint64_t count = 1 + rng.below(2); count > 0; --count) {
      std::vector<Rank> members;
      for (Rank rank = 0; rank < scenario.size; ++rank) {
        if (rng.chance(0.6)) members.push_back(rank);
      }
      for (size_t i = members.size(); i > 1; --i) std::swap(members[i - 1], members[rng.below(i)]);
      if (!members.empty()) scenario.groups.push_back(members);
    }
  }
  // What a task moves grows with the square of the size: keep a run within seconds.
  const auto square = static_cast<uint64_t>(scenario.size) * static_cast<uint64_t>(scenario.size);
  const uint64_t elements_max =
      std::min(rng.chance(0.15) ? 100'000 : 1 + rng.below(3000), 400'000 / square);
  const double messages = rng.chance(0.4) ? rng.uniform() : 0;
  const uint64_t tasks = 1 + rng.below(rng.chance(0.1) ? 150 : 30);
  for (uint64_t i = 0; i < tasks; ++i) {
    scenario.tasks.push_back(draw_task(rng, scenario, elements_max, messages));
  }
  scenario.gap_max = rng.chance(0.3) ? 0ns : Duration(1 + rng.below(10'000'000));
  scenario.wait_chance = rng.chance(0.5) ? 0 : rng.uniform();
  const Duration span = scenario.gap_max * static_cast<int64_t>(tasks) + 40ms;
  draw_faults(rng, scenario, span);
  for (int i = 0; i < 3; ++i) scenario.after_shrink.push_back(draw_task(rng, scenario, 500, 0));
  return scenario;
}

Scenario make_crowd(uint64_t seed, int size) {
  Scenario scenario;
  scenario.seed = seed;
  scenario.size = size;
  scenario.network.size = size;
  scenario.network.seed = seed;
  scenario.engine.operation_timeout = 600s;
  for (const uint64_t elements : {1U, 4096U}) {
    Task task;
    for (Rank rank = 0; rank < size; ++rank) task.members.push_back(rank);
    task.spec.size = size;
    task.spec.elements = elements;
    task.spec.seed = seed;
    scenario.tasks.push_back(task);
  }
  return scenario;
}

}  // namespace scant::sim
