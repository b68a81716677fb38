#include "gradient/nested_exchange.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/fault.h"
#include "base/little_endian.h"

namespace scant::gradient {
namespace {

// Beside the three stages.
constexpr uint32_t kFarewellLane = 3;

// Of a farewell: code, errno, peer, length of the text, text.
constexpr size_t kFarewellBytes = 256;
constexpr size_t kFarewellHead = 16;
// At most so long a stage of the farewell waits for hosts that take no part in the lane.
constexpr Duration kFarewellLimit = std::chrono::seconds(5);

Lane lane_of(Lane lane, uint32_t which) {
  return {.slot = lane.slot * kLanesOfNestedSlot + which, .leg = lane.leg};
}
Lane lane_of(Lane lane, TransferStage stage) { return lane_of(lane, static_cast<uint32_t>(stage)); }

using base::closed;

void write_error(const Error& error, std::byte* to) {
  const size_t text = std::min(error.message.size(), kFarewellBytes - kFarewellHead);
  base::store_little(to, static_cast<uint32_t>(error.code));
  base::store_little(to + 4, static_cast<uint32_t>(error.sys_errno));
  base::store_little(to + 8, static_cast<uint32_t>(error.peer));
  base::store_little(to + 12, static_cast<uint32_t>(text));
  std::memcpy(to + kFarewellHead, error.message.data(), text);
}

// What is no code counts as corrupt.
Error read_error(const std::byte* from) {
  const auto code = base::load_little<uint32_t>(from);
  const size_t text =
      std::min<size_t>(base::load_little<uint32_t>(from + 12), kFarewellBytes - kFarewellHead);
  const bool known = code < static_cast<uint32_t>(kErrorCodeCount);
  return {.code = known ? static_cast<ErrorCode>(code) : ErrorCode::corrupt,
          .sys_errno = static_cast<int>(base::load_little<uint32_t>(from + 4)),
          .peer = static_cast<Rank>(base::load_little<uint32_t>(from + 8)),
          .message = std::string(reinterpret_cast<const char*>(from + kFarewellHead), text)};
}

void make_rooms(Operation& gather, std::vector<std::byte>& memory, int members) {
  memory.resize(kFarewellBytes * static_cast<size_t>(members));
  for (size_t at = 0; at < memory.size(); at += kFarewellBytes) {
    gather.room.push_back(MutableBytes(memory).subspan(at, kFarewellBytes));
  }
}

}  // namespace

NestedExchange::NestedExchange(Exchange& inner, Exchange* outer, std::vector<HostPlace> hosts,
                               Members members)
    : inner_(inner), outer_(outer), hosts_(std::move(hosts)), members_(std::move(members)) {}

NestedExchange::~NestedExchange() {
  for (auto& [key, channel] : channels_) {
    channel->cause = closed("the exchange is gone");
    for (const auto& moving : channel->moving) moving->done({.result = *channel->cause});
  }
}

size_t NestedExchange::operations_in_flight() const {
  size_t count = 0;
  for (const auto& [key, channel] : channels_) {
    count += channel->moving.size() + (channel->farewell.under_way ? 1 : 0);
  }
  return count;
}

NestedExchange::Channel& NestedExchange::channel_of(const Members& among, Lane lane) {
  const Key key = key_of(among, lane);
  newest_epoch_ = std::max(newest_epoch_, among.epoch);
  const auto found = channels_.find(key);
  if (found != channels_.end()) return *found->second;
  // What is left of earlier epochs is over, unless something of it is still under way.
  std::erase_if(channels_, [&](const auto& entry) {
    const Channel& old = *entry.second;
    return old.among.epoch < among.epoch && old.moving.empty() && !old.farewell.under_way;
  });
  auto channel = std::make_unique<Channel>();
  channel->among = among;
  channel->lane = lane;
  channel->sites = sites_of(among, hosts_);
  SCANT_CHECK(!channel->sites.leads() || outer_ != nullptr || channel->sites.count() == 1,
              "the first member of a site needs the outer exchange");
  return *channels_.emplace(key, std::move(channel)).first->second;
}

void NestedExchange::submit(const Members& among, Operation operation, Done done) {
  const auto refuse = [&](std::string what) {
    done({.result = Error{.code = ErrorCode::invalid_argument,
                          .message = "exchange: " + std::move(what)}});
  };
  if (operation.lane.slot >= kNestedSlotsMax) {
    return refuse("slots within a site are 0 to " + std::to_string(kNestedSlotsMax - 1));
  }
  const auto unknown = [&](Rank station) {
    return station < 0 || static_cast<size_t>(station) >= hosts_.size();
  };
  if (among.self < 0 || among.self >= among.size() ||
      std::ranges::any_of(among.stations, unknown)) {
    return refuse("members have no place here");
  }
  Channel& channel = channel_of(among, operation.lane);
  if (channel.cause) return done({.result = *channel.cause});
  channel.timeout = operation.timeout;
  auto moving = std::make_unique<Moving>(
      Moving{.transfer = Transfer(channel.sites, std::move(operation)), .done = std::move(done)});
  const Result<void> checked = moving->transfer.check();
  channel.moving.push_back(std::move(moving));
  if (!checked) return fail(channel, checked.error());
  work(channel);
}

void NestedExchange::cancel(const Members& among, Lane lane) {
  if (among.self < 0) return;
  // Of an earlier epoch nothing is under way but what is known.
  const bool known = channels_.contains(key_of(among, lane));
  if (!known && among.epoch < newest_epoch_) return;
  Channel& channel = channel_of(among, lane);
  channel.cause_known = true;
  fail(channel, closed("the lane was cancelled; use it again under a later epoch"));
}

// Begins what can begin. An operation begins a stage after those before it have begun theirs, so
// that the lanes inside keep one order on all hosts.
void NestedExchange::work(Channel& channel) {
  if (std::exchange(channel.working, true)) return;
  for (bool changed = true; changed && !channel.cause;) {
    changed = false;
    for (size_t i = 0; i < channel.moving.size() && !channel.cause; ++i) {
      Moving& moving = *channel.moving[i];
      while (!moving.under_way && moving.stage < kTransferStageCount && !channel.cause &&
             channel.begun[static_cast<size_t>(moving.stage)] == channel.first + i) {
        changed = true;
        begin_stage(channel, moving);
      }
    }
    while (!channel.moving.empty() && !channel.cause) {
      Moving& moving = *channel.moving.front();
      if (moving.under_way || moving.stage < kTransferStageCount) break;
      const std::unique_ptr<Moving> over = std::move(channel.moving.front());
      channel.moving.pop_front();
      ++channel.first;
      over->done({});
      changed = true;
    }
  }
  channel.working = false;
  if (channel.cause) end_moving(channel);
}

void NestedExchange::begin_stage(Channel& channel, Moving& moving) {
  const auto stage = static_cast<TransferStage>(moving.stage);
  ++channel.begun[static_cast<size_t>(moving.stage)];
  std::optional<Operation> part = moving.transfer.begin(stage);
  if (!part) {
    ++moving.stage;
    return;
  }
  part->lane = lane_of(channel.lane, stage);
  const bool across = stage == TransferStage::between;
  moving.under_way = true;
  (across ? *outer_ : inner_)
      .submit(across ? channel.sites.outer : channel.sites.inner, *std::move(part),
              [this, &channel, &moving, stage](const Outcome& outcome) {
                stage_ended(channel, moving, stage, outcome);
              });
}

void NestedExchange::stage_ended(Channel& channel, Moving& moving, TransferStage stage,
                                 const Outcome& outcome) {
  moving.under_way = false;
  ++moving.stage;
  if (channel.cause) return end_moving(channel);
  if (!outcome.result) {
    return fail(channel,
                by_station(outcome.result.error(), stage == TransferStage::between, channel));
  }
  if (const Result<void> ended = moving.transfer.end(stage); !ended) {
    return fail(channel, ended.error());
  }
  work(channel);
}

// The lane ends here, inside and outside. Who was merely told `closed` asks for the cause.
void NestedExchange::fail(Channel& channel, Error cause) {
  if (channel.cause) return;
  if (cause.code != ErrorCode::closed) channel.cause_known = true;
  channel.cause = std::move(cause);
  const Sites& sites = channel.sites;
  inner_.cancel(sites.inner, lane_of(channel.lane, TransferStage::up));
  inner_.cancel(sites.inner, lane_of(channel.lane, TransferStage::down));
  cancel_across(sites, lane_of(channel.lane, TransferStage::between));
  say_farewell(channel);
  end_moving(channel);
}

void NestedExchange::cancel_across(const Sites& sites, Lane lane) {
  if (sites.leads() && sites.count() > 1) outer_->cancel(sites.outer, lane);
}

// To the leader, between leaders, and back to all. Who cannot be reached has a cause of its own.
void NestedExchange::say_farewell(Channel& channel) {
  Farewell& farewell = channel.farewell;
  farewell.under_way = true;
  farewell.own.assign(kFarewellBytes, std::byte{0});
  write_error(*channel.cause, farewell.own.data());
  Operation tell = farewell_operation(channel, Operation::Kind::gather);
  if (channel.sites.leads()) make_rooms(tell, farewell.all, channel.sites.inner.size());
  inner_.submit(channel.sites.inner, std::move(tell), [this, &channel](const Outcome& outcome) {
    const bool leads = channel.sites.leads();
    // Others than the leader are told nothing yet.
    hear(channel, outcome, leads ? Bytes(channel.farewell.all) : Bytes{}, false);
    if (!leads || channel.sites.count() == 1) return farewell_inside(channel);
    farewell_across(channel);
  });
}

void NestedExchange::farewell_across(Channel& channel) {
  write_error(*channel.cause, channel.farewell.own.data());
  Operation tell = farewell_operation(channel, Operation::Kind::all_gather);
  make_rooms(tell, channel.farewell.all, channel.sites.count());
  outer_->submit(channel.sites.outer, std::move(tell), [this, &channel](const Outcome& outcome) {
    hear(channel, outcome, channel.farewell.all, true);
    farewell_inside(channel);
  });
}

void NestedExchange::farewell_inside(Channel& channel) {
  write_error(*channel.cause, channel.farewell.own.data());
  Operation tell = farewell_operation(channel, Operation::Kind::broadcast);
  tell.sent.clear();
  tell.span = channel.farewell.own;
  inner_.submit(channel.sites.inner, std::move(tell), [this, &channel](const Outcome& outcome) {
    hear(channel, outcome, channel.farewell.own, false);
    // A host that still waits in the farewell for others no longer waits for this one.
    const Lane farewell = lane_of(channel.lane, kFarewellLane);
    inner_.cancel(channel.sites.inner, farewell);
    cancel_across(channel.sites, farewell);
    channel.farewell.under_way = false;
    channel.cause_known = true;
    end_moving(channel);
  });
}

Operation NestedExchange::farewell_operation(const Channel& channel, Operation::Kind kind) {
  const bool limited = channel.timeout > Duration::zero();
  return {.kind = kind,
          .lane = lane_of(channel.lane, kFarewellLane),
          .sent = {channel.farewell.own},
          .timeout = limited ? std::min(channel.timeout, kFarewellLimit) : kFarewellLimit};
}

// Of what was told the first that is more than `closed`, in the order of sites. If a host cannot be
// told because it is lost, then its loss is the cause.
void NestedExchange::hear(Channel& channel, const Outcome& outcome, Bytes told, bool of_outer) {
  if (channel.cause->code != ErrorCode::closed) return;
  if (!outcome.result) {
    const Error& error = outcome.result.error();
    if (error.code == ErrorCode::peer_lost) channel.cause = by_station(error, of_outer, channel);
    return;
  }
  for (size_t at = 0; at < told.size() && channel.cause->code == ErrorCode::closed;
       at += kFarewellBytes) {
    Error error = read_error(told.data() + at);
    if (error.code != ErrorCode::closed) channel.cause = std::move(error);
  }
}

// What uses no memory any more is over, once the cause is known.
void NestedExchange::end_moving(Channel& channel) {
  if (channel.working || !channel.cause || !channel.cause_known) return;
  channel.working = true;
  for (size_t i = 0; i < channel.moving.size();) {
    if (channel.moving[i]->under_way) {
      ++i;
      continue;
    }
    const std::unique_ptr<Moving> over = std::move(channel.moving[i]);
    channel.moving.erase(channel.moving.begin() + static_cast<std::ptrdiff_t>(i));
    over->done({.result = *channel.cause});
  }
  channel.working = false;
}

Error NestedExchange::by_station(Error error, bool of_outer, const Channel& channel) const {
  if (error.peer == kNoRank) return error;
  const Rank own_site =
      hosts_[static_cast<size_t>(channel.among.stations[static_cast<size_t>(channel.among.self)])]
          .site;
  for (const Rank station : channel.among.stations) {
    const HostPlace& host = hosts_[static_cast<size_t>(station)];
    const bool same =
        of_outer ? host.outer == error.peer : host.site == own_site && host.inner == error.peer;
    if (!same) continue;
    error.peer = station;
    return error;
  }
  error.peer = kNoRank;
  return error;
}

}  // namespace scant::gradient
