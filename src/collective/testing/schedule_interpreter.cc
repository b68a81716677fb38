// Memory of a group, the static checks and the random run.
#include "collective/testing/schedule_interpreter.h"

#include <algorithm>
#include <cstring>

namespace scant::collective {
namespace {

bool sends(const Step& step) { return step.kind == Step::Kind::send; }
bool receives(const Step& step) {
  return step.kind == Step::Kind::receive || step.kind == Step::Kind::receive_reduce;
}

std::string step_text(Rank rank, uint32_t step) {
  return "rank " + std::to_string(rank) + " step " + std::to_string(step);
}

}  // namespace

std::string ScheduleCase::to_string() const {
  return std::string(name(kind)) + " by " + name(algorithm) + " of " +
         std::to_string(part_bytes(0, 0)) + " bytes, elements of " + std::to_string(element_bytes) +
         ", P " + std::to_string(size) + ", root " + std::to_string(root) + ", segments of " +
         std::to_string(segment_bytes) + (in_place ? ", in place" : "");
}

ScheduleInput ScheduleCase::input_of(Rank rank) const {
  ScheduleInput made;
  made.kind = kind;
  made.algorithm = algorithm;
  made.rank = rank;
  made.size = size;
  made.root = root;
  made.element_bytes = element_bytes;
  made.in_place = in_place;
  made.segment_bytes = segment_bytes;
  auto& in = made.input_bytes;
  auto& out = made.output_bytes;
  const auto from_each = [&](std::vector<uint64_t>& parts, Rank to) {
    for (Rank from = 0; from < size; ++from) parts.push_back(part_bytes(from, to));
  };
  const auto to_each = [&](std::vector<uint64_t>& parts, Rank from) {
    for (Rank to = 0; to < size; ++to) parts.push_back(part_bytes(from, to));
  };
  switch (kind) {
    case OpKind::all_reduce:
    case OpKind::reduce:
      in = {part_bytes(0, 0)};
      if (kind == OpKind::all_reduce || rank == root) out = in;
      break;
    case OpKind::reduce_scatter:
      to_each(in, 0);
      out = {part_bytes(0, rank)};
      break;
    case OpKind::all_gather:
      in = {part_bytes(rank, 0)};
      from_each(out, 0);
      break;
    case OpKind::broadcast:
      out = {part_bytes(0, 0)};
      break;
    case OpKind::gather:
      in = {part_bytes(rank, 0)};
      if (rank == root) from_each(out, 0);
      break;
    case OpKind::scatter:
      if (rank == root) to_each(in, 0);
      out = {part_bytes(0, rank)};
      break;
    case OpKind::all_to_all:
    case OpKind::exchange:  // of the capacity on both sides
      to_each(in, rank);
      from_each(out, rank);
      break;
    default:
      break;
  }
  return made;
}

ScheduleWorld::ScheduleWorld(const ScheduleCase& the_case) : case_(the_case) {
  constexpr std::byte kPoison{0xA5};
  for (Rank rank = 0; rank < case_.size; ++rank) {
    Host host;
    host.input = case_.input_of(rank);
    host.schedule = make_schedule(host.input);
    Memory& memory = host.memory;
    memory.outputs = host.input.input_bytes.size();
    memory.scratch = memory.outputs + host.input.output_bytes.size();
    std::vector<uint64_t> sizes = host.input.input_bytes;
    sizes.insert(sizes.end(), host.input.output_bytes.begin(), host.input.output_bytes.end());
    sizes.push_back(host.schedule.scratch_bytes);
    for (size_t i = 0; i < sizes.size(); ++i) {
      memory.buffers.emplace_back(sizes[i], kPoison);
      memory.written.emplace_back(sizes[i], i < memory.outputs);
    }
    const bool is_source = case_.kind == OpKind::broadcast && rank == case_.root;
    if (is_source) memory.written[memory.outputs].assign(sizes[memory.outputs], true);
    hosts_.push_back(std::move(host));
  }
  messages_.resize(hosts_.size() * hosts_.size());
}

size_t ScheduleWorld::index_of(const Host& host, const Ref& ref) const {
  const Memory& memory = host.memory;
  if (ref.space == Space::scratch) return memory.scratch;
  if (ref.space == Space::input) return ref.part;
  const size_t own_input = memory.outputs == 1 ? 0 : static_cast<size_t>(host.input.rank);
  const size_t outputs = memory.scratch - memory.outputs;
  const size_t own_output = outputs == 1 ? 0 : static_cast<size_t>(host.input.rank);
  if (case_.in_place && memory.outputs > 0 && ref.part == own_output) return own_input;
  return memory.outputs + ref.part;
}

std::vector<std::byte>& ScheduleWorld::input(Rank rank, uint32_t part) {
  return hosts_[static_cast<size_t>(rank)].memory.buffers[part];
}

std::vector<std::byte>& ScheduleWorld::output(Rank rank, uint32_t part) {
  Host& host = hosts_[static_cast<size_t>(rank)];
  return host.memory.buffers[index_of(host, Ref{Space::output, part, 0})];
}

const Schedule& ScheduleWorld::schedule(Rank rank) const {
  return hosts_[static_cast<size_t>(rank)].schedule;
}

std::vector<ScheduleWorld::Access> ScheduleWorld::accesses(const Host& host,
                                                           const Step& step) const {
  std::vector<Access> all;
  if (step.bytes == 0) return all;
  const auto add = [&](const Ref& ref, bool writes) {
    all.push_back({index_of(host, ref), ref.offset, ref.offset + step.bytes, writes});
  };
  if (step.kind != Step::Kind::receive) add(step.a, false);
  if (step.kind == Step::Kind::reduce) add(step.b, false);
  if (!sends(step)) add(step.destination, true);
  return all;
}

std::string ScheduleWorld::check_step(const Host& host, const Step& step) const {
  const uint64_t element = host.input.element_bytes;
  const uint64_t segment = std::max(case_.segment_bytes / element * element, element);
  const bool communicates = sends(step) || receives(step);
  if (step.bytes % element != 0) return "cuts an element";
  if (communicates && step.bytes > segment) return "is longer than a segment";
  if (communicates && step.bytes == 0 && case_.kind != OpKind::barrier) return "moves nothing";
  if (communicates && (step.peer < 0 || step.peer >= case_.size || step.peer == host.input.rank))
    return "has no such peer";
  for (const Access& access : accesses(host, step)) {
    const Memory& memory = host.memory;
    if (access.buffer >= memory.buffers.size() || access.end > memory.buffers[access.buffer].size())
      return "reaches beyond a buffer";
    if (access.writes && access.buffer < memory.outputs && !case_.in_place)
      return "writes an input";
    if (access.writes && step.destination.space == Space::input) return "writes an input";
  }
  // A reduction may overwrite an operand, but overlap it in no other way.
  if (step.kind == Step::Kind::reduce || step.kind == Step::Kind::receive_reduce ||
      step.kind == Step::Kind::copy) {
    const std::vector<Access> all = accesses(host, step);
    for (size_t i = 0; i + 1 < all.size(); ++i) {
      const Access& to = all.back();
      const bool same = all[i].begin == to.begin && step.kind != Step::Kind::copy;
      if (all[i].buffer == to.buffer && all[i].begin < to.end && to.begin < all[i].end && !same)
        return "overlaps its operand";
    }
  }
  return {};
}

// Whatever two steps touch, one of them writing, must be ordered by dependencies.
std::string ScheduleWorld::check_order(const Host& host) const {
  const auto& steps = host.schedule.steps;
  std::vector<std::vector<bool>> before(steps.size());  // before[i][j]: j is complete when i starts
  std::vector<std::vector<Access>> touched;
  for (uint32_t i = 0; i < steps.size(); ++i) {
    before[i].assign(i, false);
    for (const uint32_t j : steps[i].after) {
      if (j == kNoStep) continue;
      if (j >= i) return step_text(host.input.rank, i) + " depends on a later step";
      before[i][j] = true;
      for (uint32_t k = 0; k < j; ++k) {
        if (before[j][k]) before[i][k] = true;
      }
    }
    touched.push_back(accesses(host, steps[i]));
    for (uint32_t j = 0; j < i; ++j) {
      if (before[i][j]) continue;
      for (const Access& x : touched[i]) {
        for (const Access& y : touched[j]) {
          if (x.buffer == y.buffer && x.begin < y.end && y.begin < x.end && (x.writes || y.writes))
            return step_text(host.input.rank, i) + " and step " + std::to_string(j) +
                   " touch the same bytes in no order";
        }
      }
    }
  }
  return {};
}

std::string ScheduleWorld::check_pairs() const {
  std::vector<std::vector<uint64_t>> sent(messages_.size());
  std::vector<std::vector<uint64_t>> expected(messages_.size());
  for (const Host& host : hosts_) {
    for (const Step& step : host.schedule.steps) {
      if (!sends(step) && !receives(step)) continue;
      const auto rank = static_cast<size_t>(host.input.rank);
      const auto peer = static_cast<size_t>(step.peer);
      auto& list =
          sends(step) ? sent[rank * hosts_.size() + peer] : expected[peer * hosts_.size() + rank];
      if (step.slot != list.size())
        return "rank " + std::to_string(rank) + " counts slots wrongly towards " +
               std::to_string(peer);
      list.push_back(step.bytes);
    }
  }
  for (size_t pair = 0; pair < sent.size(); ++pair) {
    if (sent[pair] != expected[pair])
      return "what rank " + std::to_string(pair / hosts_.size()) + " sends is not what rank " +
             std::to_string(pair % hosts_.size()) + " receives";
  }
  return {};
}

std::string ScheduleWorld::check() const {
  for (const Host& host : hosts_) {
    for (uint32_t i = 0; i < host.schedule.steps.size(); ++i) {
      const std::string problem = check_step(host, host.schedule.steps[i]);
      if (!problem.empty()) return step_text(host.input.rank, i) + ' ' + problem;
    }
    if (std::string problem = check_order(host); !problem.empty()) return problem;
  }
  return check_pairs();
}

std::byte* ScheduleWorld::address(Host& host, const Ref& ref) {
  return host.memory.buffers[index_of(host, ref)].data() + ref.offset;
}

ScheduleWorld::Message& ScheduleWorld::message(Rank from, Rank to, uint32_t slot) {
  auto& of_pair = messages_[static_cast<size_t>(from) * hosts_.size() + static_cast<size_t>(to)];
  if (of_pair.size() <= slot) of_pair.resize(slot + 1);
  return of_pair[slot];
}

std::string ScheduleWorld::execute(Rank rank, uint32_t id, const Combine& combine) {
  Host& host = hosts_[static_cast<size_t>(rank)];
  const Step& step = host.schedule.steps[id];
  for (const Access& access : accesses(host, step)) {
    auto& written = host.memory.written[access.buffer];
    const auto begin = written.begin() + static_cast<std::ptrdiff_t>(access.begin);
    const auto end = written.begin() + static_cast<std::ptrdiff_t>(access.end);
    if (!access.writes && std::find(begin, end, false) != end)
      return step_text(rank, id) + " reads what nobody wrote";
    if (access.writes) std::fill(begin, end, true);
  }
  int& depth = host.depth[id];
  std::byte* to = step.bytes == 0 || sends(step) ? nullptr : address(host, step.destination);
  const std::byte* received = nullptr;
  if (sends(step)) {
    Message& out = message(rank, step.peer, step.slot);
    out.there = true;
    out.depth = depth + 1;
    if (step.bytes > 0) {
      const std::byte* from = address(host, step.a);
      out.payload.assign(from, from + step.bytes);
    }
  } else if (receives(step)) {
    const Message& in = message(step.peer, rank, step.slot);
    depth = std::max(depth, in.depth);
    received = in.payload.data();
  }
  rounds_ = std::max(rounds_, depth);
  if (to == nullptr) return {};
  if (step.kind == Step::Kind::receive) std::memcpy(to, received, step.bytes);
  if (step.kind == Step::Kind::copy) std::memcpy(to, address(host, step.a), step.bytes);
  if (step.kind == Step::Kind::reduce)
    combine(address(host, step.a), address(host, step.b), to, step.bytes, step.finish);
  if (step.kind == Step::Kind::receive_reduce) {
    const std::byte* own = address(host, step.a);
    combine(step.received_first ? received : own, step.received_first ? own : received, to,
            step.bytes, step.finish);
  }
  return {};
}

void ScheduleWorld::release(Rank rank, uint32_t done,
                            std::vector<std::pair<Rank, uint32_t>>& ready) {
  Host& host = hosts_[static_cast<size_t>(rank)];
  --host.left;
  for (const uint32_t next : host.successors[done]) {
    host.depth[next] = std::max(host.depth[next], host.depth[done]);
    if (--host.waiting[next] == 0) ready.emplace_back(rank, next);
  }
}

std::string ScheduleWorld::run(uint64_t seed, const Combine& combine) {
  base::Rng rng(seed);
  std::vector<std::pair<Rank, uint32_t>> ready;
  for (Host& host : hosts_) {
    const auto& steps = host.schedule.steps;
    host.left = steps.size();
    host.waiting.assign(steps.size(), 0);
    host.depth.assign(steps.size(), 0);
    host.successors.assign(steps.size(), {});
    for (uint32_t i = 0; i < steps.size(); ++i) {
      for (const uint32_t j : steps[i].after) {
        if (j == kNoStep) continue;
        ++host.waiting[i];
        host.successors[j].push_back(i);
      }
      if (host.waiting[i] == 0) ready.emplace_back(host.input.rank, i);
    }
  }
  // Steps whose dependencies are met run in random order; a receive among them waits, in `parked`,
  // for its message, which therefore arrives at a random moment.
  std::vector<std::pair<Rank, uint32_t>> parked;
  bool progress = true;
  while (!ready.empty() || (progress && !parked.empty())) {
    if (ready.empty()) {
      ready.swap(parked);
      progress = false;
    }
    std::swap(ready[rng.below(ready.size())], ready.back());
    const auto [rank, id] = ready.back();
    ready.pop_back();
    const Step& step = hosts_[static_cast<size_t>(rank)].schedule.steps[id];
    if (receives(step) && !message(step.peer, rank, step.slot).there) {
      parked.emplace_back(rank, id);
      continue;
    }
    if (std::string problem = execute(rank, id, combine); !problem.empty()) return problem;
    release(rank, id, ready);
    progress = true;
  }
  for (const Host& host : hosts_) {
    if (host.left > 0)
      return "rank " + std::to_string(host.input.rank) + " waits forever with " +
             std::to_string(host.left) + " steps left";
  }
  return {};
}

}  // namespace scant::collective
