// Exchange: parts whose size only the sender knows, up to a capacity that all ranks state. The
// schedule is that of the capacity; here are the steps that a part does not fill, the frame that
// ends it, and the sizes that are told (docs/engine.md). Owner: the engine's thread.
#include <algorithm>

#include "collective/engine/engine_impl.h"

namespace scant::collective {

uint64_t Operation::bytes_of(const Step& step) const {
  if (!is_exchange() || step.bytes == 0) return step.bytes;
  const uint64_t part = call.inputs[step.a.part].size();
  return part <= step.a.offset ? 0 : std::min(step.bytes, part - step.a.offset);
}

// An empty part is sent all the same, in its first step.
bool Operation::beyond_part(const Step& send) const {
  return is_exchange() && send.slot > 0 && bytes_of(send) == 0;
}

bool Operation::ends_part(const Step& send) const {
  return is_exchange() &&
         (send.bytes == 0 || call.inputs[send.a.part].size() <= send.a.offset + send.bytes);
}

const char* Operation::objection(const Channel& channel, const net::FrameHeader& header) const {
  constexpr const char* kCut = "; its parts are cut differently";
  constexpr const char* kBehind = "; it sends data behind the last frame of its part";
  const std::vector<uint32_t>& receives = plan->peers[channel.peer_index].receives;
  const uint64_t bytes = plan->steps[receives[header.slot]].bytes;
  const bool last = (header.flags & kFlagLast) != 0;
  if (!is_exchange()) return header.length == bytes ? nullptr : kCut;
  if (last && (header.length > bytes || (header.length == 0 && header.slot > 0))) return kCut;
  if (!last && (header.length != bytes || header.slot + 1 == receives.size())) return kCut;
  if (channel.last_slot != kNoSlot) {
    if (last && header.slot != channel.last_slot)
      return "; it marks two frames as the last of its part";
    return header.slot > channel.last_slot ? kBehind : nullptr;
  }
  if (!last) return nullptr;
  const auto after = receives.begin() + header.slot + 1;
  const bool untouched = std::all_of(
      after, receives.end(), [this](uint32_t step) { return steps[step] == StepState::ready; });
  return untouched ? nullptr : kBehind;
}

// The header was judged when it came; other frames may have become whole since.
bool Engine::Impl::settle_part(Operation& op, Channel& channel, const net::FrameHeader& header) {
  if (const char* wrong = op.objection(channel, header)) {
    mismatch(op, channel.station, header, wrong);
    return false;
  }
  channel.received_bytes += header.length;
  if ((header.flags & kFlagLast) == 0) return true;
  channel.last_slot = header.slot;
  const std::vector<uint32_t>& receives = op.plan->peers[channel.peer_index].receives;
  for (size_t slot = size_t{header.slot} + 1; slot < receives.size(); ++slot) {
    --channel.receives_left;
    op.steps[receives[slot]] = StepState::complete;
    work.emplace_back(&op, receives[slot]);  // done by the completion of the frame's own step
  }
  return true;
}

// Of an exchange that ended well.
void Operation::tell_received() const {
  const auto own = static_cast<size_t>(group->rank);
  call.received[own] = call.inputs[own].size();
  for (size_t i = 0; i < plan->peers.size(); ++i) {
    call.received[static_cast<size_t>(plan->peers[i].rank)] = channels[i].received_bytes;
  }
}

}  // namespace scant::collective
