// Send and receive: their sequences, and the line of receives that wait for a source
// (docs/engine.md, Matching).
#include <algorithm>

#include "collective/engine/engine_impl.h"

namespace scant::collective {

void Engine::Impl::submit_point_to_point(Group& group, Operation& op) {
  const Rank other = op.call.root;
  op.key = OpKey{group.id, 0, op.call.tag, kNoRank, op.call.kind == OpKind::send};
  if (other == group.rank) {
    return fail(op,
                Error{ErrorCode::invalid_argument, 0, self,
                      std::string(name(op.call.kind)) + ": peer " + std::to_string(other) +
                          " is this rank itself"},
                Notify::nobody);
  }
  Mailbox& box = group.mailboxes[op.call.tag];
  if (op.call.kind == OpKind::send) {
    const Rank station = group.stations[static_cast<size_t>(other)];
    op.key.station = station;
    op.key.sequence = box.next_send[station]++;
    return begin(op);
  }
  if (other != kAnySource && box.line.empty()) {
    return bind(group, op, group.stations[static_cast<size_t>(other)]);
  }
  if (other == kAnySource && group.lost) return fail(op, *group.lost, Notify::nobody);
  op.state = OpState::unbound;
  op.begun = now;
  arm(op, op.deadline, false);
  box.line.push_back(&op);
  match_line(group, op.call.tag);
}

void Engine::Impl::bind(Group& group, Operation& op, Rank station) {
  op.key.station = station;
  op.key.sequence = group.mailboxes[op.call.tag].next_receive[station]++;
  const Rank rank = group.rank_of[static_cast<size_t>(station)];
  if (op.call.root == kAnySource) op.source = rank;
  op.call.root = rank;
  begin(op);
}

// Serves the line from its front: one that names its source takes that source's next message; one
// from any source takes the message that was heard of first, or stops the line.
void Engine::Impl::match_line(Group& group, uint32_t tag) {
  Mailbox& box = group.mailboxes[tag];
  while (!box.line.empty()) {
    Operation& op = *box.line.front();
    Rank station = kNoRank;
    if (op.call.root != kAnySource) {
      station = group.stations[static_cast<size_t>(op.call.root)];
    } else {
      uint64_t first = UINT64_MAX;
      for (const Rank candidate : group.stations) {
        const auto next = box.next_receive.find(candidate);
        const uint32_t sequence = next == box.next_receive.end() ? 0 : next->second;
        const Early* heard = early.find(OpKey{group.id, sequence, tag, candidate, false});
        if (heard == nullptr || heard->first_heard >= first) continue;
        first = heard->first_heard;
        station = candidate;
      }
    }
    if (station == kNoRank) return;
    box.line.pop_front();
    bind(group, op, station);
  }
}

void Engine::Impl::heard_of(const OpKey& key) {
  if (key.station == kNoRank || key.sending) return;
  Group* group = find_group(key.group);
  if (group == nullptr) return;
  const auto box = group->mailboxes.find(key.tag);
  if (box != group->mailboxes.end() && !box->second.line.empty()) match_line(*group, key.tag);
}

Age Engine::Impl::age_of_message(const OpKey& key) {
  const Group& group = *find_group(key.group);
  const auto box = group.mailboxes.find(key.tag);
  if (box == group.mailboxes.end()) return Age::early;
  const auto& counts = key.sending ? box->second.next_send : box->second.next_receive;
  const auto next = counts.find(key.station);
  return next != counts.end() && key.sequence < next->second ? Age::late : Age::early;
}

}  // namespace scant::collective
