#include "gradient/communicator_exchange.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <new>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/fault.h"

namespace scant::gradient {
namespace {

constexpr std::array<const char*, kLegCount> kSuffixes = {
    ".first", ".second", ".verdict", ".plans", ".owners", ".basis", ".basis2"};

using base::invalid;

// Lives as long as its operation; the callback is the last to use it.
struct Pending {
  Work work;
  Done done;
  std::vector<Rank> station_of_rank;  // empty: the error's peer stays as it is
};

// On the communicator's own thread: whatever it finds no memory for, somebody waits for the end.
Result<void> result_of(const Pending& pending) try {
  Result<void> result = pending.work.wait();
  const Rank peer = result ? kNoRank : result.error().peer;
  if (peer < 0 || static_cast<size_t>(peer) >= pending.station_of_rank.size()) return result;
  Error error = result.error();
  error.peer = pending.station_of_rank[static_cast<size_t>(peer)];
  return error;
} catch (const std::bad_alloc&) {
  return Error{.code = ErrorCode::resource, .message = {}};
}

void on_done(void* context) {
  const std::unique_ptr<Pending> pending(static_cast<Pending*>(context));
  pending->done(Outcome{.result = result_of(*pending)});
}

// Those given, or all of the communicator; refused where this rank is none of them.
Result<std::vector<Rank>> ranks_of(const Communicator& communicator, std::vector<Rank> given) {
  if (given.empty()) {
    given.resize(static_cast<size_t>(communicator.size()));
    std::iota(given.begin(), given.end(), 0);
  }
  if (std::ranges::find(given, communicator.rank()) == given.end()) {
    return invalid("members: rank " + std::to_string(communicator.rank()) +
                   ", this one, is not of the " + std::to_string(given.size()) + " that take part");
  }
  return given;
}

Rank place_of(const Communicator& communicator, const std::vector<Rank>& ranks) {
  return static_cast<Rank>(std::ranges::find(ranks, communicator.rank()) - ranks.begin());
}

}  // namespace

Result<std::unique_ptr<CommunicatorExchange>> CommunicatorExchange::create(
    Communicator& communicator, const Options& options) {
  Result<std::vector<Rank>> ranks = ranks_of(communicator, options.ranks);
  if (!ranks) return ranks.error();
  const Rank self = place_of(communicator, ranks.value());
  std::unique_ptr<CommunicatorExchange> made = newcomer(options.key);
  const auto size = static_cast<int>(ranks.value().size());
  made->stations_used_ = size;
  made->attach(communicator, std::move(ranks).value(), everyone(size, self));
  return made;
}

std::unique_ptr<CommunicatorExchange> CommunicatorExchange::newcomer(std::string key) {
  return std::unique_ptr<CommunicatorExchange>(new CommunicatorExchange(std::move(key)));
}

CommunicatorExchange::~CommunicatorExchange() { release_groups(); }

// A shrink has ended those of earlier epochs.
void CommunicatorExchange::release_groups() {
  for (const auto& [key, group] : groups_) {
    if (group.closed || communicator_->epoch() != communicator_epoch_) continue;
    static_cast<void>(communicator_->release_group(group.id));
  }
  groups_.clear();
}

void CommunicatorExchange::attach(Communicator& to, std::vector<Rank> ranks, Members members) {
  communicator_ = &to;
  communicator_epoch_ = to.epoch();
  members_ = std::move(members);
  rank_of_.clear();
  for (size_t place = 0; place < ranks.size(); ++place) {
    rank_of_[members_.stations[place]] = ranks[place];
  }
}

Time CommunicatorExchange::now() const { return std::chrono::steady_clock::now(); }

Rank CommunicatorExchange::station() const {
  return members_.self == kNoRank ? kNoRank : members_.stations[static_cast<size_t>(members_.self)];
}

Result<Meeting> CommunicatorExchange::continue_on(Communicator& next,
                                                  const ContinueOptions& options) {
  Result<std::vector<Rank>> ranks = ranks_of(next, options.ranks);
  if (!ranks) return ranks.error();
  const Result<std::vector<Arrival>> all = tell_all(next, ranks.value(), options);
  if (!all) return all.error();
  Result<Meeting> meeting = meet(all.value(), place_of(next, ranks.value()));
  if (!meeting) return meeting;
  release_groups();
  stations_used_ = meeting.value().stations_used;
  station_of_rank_.assign(static_cast<size_t>(next.size()), kNoRank);
  for (size_t place = 0; place < ranks.value().size(); ++place) {
    station_of_rank_[static_cast<size_t>(ranks.value()[place])] =
        meeting.value().members.stations[place];
  }
  attach(next, std::move(ranks).value(), meeting.value().members);
  return meeting;
}

// In a group of its own, so that no other operation of the communicator comes between.
Result<std::vector<Arrival>> CommunicatorExchange::tell_all(Communicator& next,
                                                            const std::vector<Rank>& ranks,
                                                            const ContinueOptions& options) const {
  const Arrival arrival{.station = station(),
                        .stations_used = stations_used_,
                        .epoch = members_.epoch,
                        .steps = options.steps,
                        .layout_ranks = static_cast<uint64_t>(options.layout_ranks)};
  std::vector<std::byte> own(kArrivalBytes);
  write_arrival(arrival, own);
  std::vector<std::byte> told(kArrivalBytes * ranks.size());
  std::vector<MutableBytes> rooms;
  for (size_t at = 0; at < told.size(); at += kArrivalBytes) {
    rooms.push_back(MutableBytes(told).subspan(at, kArrivalBytes));
  }
  Result<GroupId> group = next.make_group(ranks, key_ + ".members");
  if (!group) return group.error();
  const Work work = next.all_gather(own, std::move(rooms), DType::u8,
                                    {.group = group.value(), .timeout = options.timeout});
  const Result<void> done = work.wait();
  static_cast<void>(next.release_group(group.value()));
  if (!done) return done.error();
  std::vector<Arrival> all;
  for (size_t at = 0; at < told.size(); at += kArrivalBytes) {
    Result<Arrival> one = read_arrival(Bytes(told).subspan(at, kArrivalBytes));
    if (!one) {
      Error error = one.error();
      error.peer = static_cast<Rank>(at / kArrivalBytes);
      return error;
    }
    all.push_back(one.value());
  }
  return all;
}

// Lanes of the first members keep the names that the groups of one round always had.
std::string CommunicatorExchange::name_of(const Members& among, Lane lane) const {
  std::string name = key_ + kSuffixes[static_cast<size_t>(lane.leg)];
  if (lane.slot > 0) name.append(".").append(std::to_string(lane.slot));
  if (among.epoch > 1) name.append("@").append(std::to_string(among.epoch));
  return name;
}

Result<GroupId> CommunicatorExchange::group_of(const Members& among, Lane lane) {
  if (station() == kNoRank || among.self < 0 || among.self >= among.size() ||
      among.stations[static_cast<size_t>(among.self)] != station()) {
    return invalid("members: station " + std::to_string(station()) +
                   ", this one, is not the member that it says");
  }
  if (communicator_->epoch() != communicator_epoch_) {
    return base::closed("the communicator has other ranks since its shrink(): continue_on() it");
  }
  const Key key{among.hash(), lane.slot, lane.leg};
  if (const auto known = groups_.find(key); known != groups_.end()) {
    if (!known->second.closed) return known->second.id;
    return Error{.code = ErrorCode::closed,
                 .message = "the lane was cancelled: members of a later epoch can use it again"};
  }
  if (lane.slot >= kSlotsMax) {
    return invalid("slot " + std::to_string(lane.slot) + ": there are " +
                   std::to_string(kSlotsMax));
  }
  std::vector<Rank> ranks;
  for (const Rank station : among.stations) {
    const auto known = rank_of_.find(station);
    if (known == rank_of_.end()) {
      return Error{.code = ErrorCode::peer_lost,
                   .peer = station,
                   .message = "members: station " + std::to_string(station) +
                              " is not there in epoch " + std::to_string(members_.epoch)};
    }
    ranks.push_back(known->second);
  }
  Result<GroupId> made = communicator_->make_group(ranks, name_of(among, lane));
  if (made) groups_[key] = Group{.id = made.value()};
  return made;
}

Result<void> CommunicatorExchange::make(const Members& among, Lane lane) {
  Result<GroupId> made = group_of(among, lane);
  return made ? Result<void>() : Result<void>(made.error());
}

void CommunicatorExchange::submit(const Members& among, Operation operation, Done done) {
  const Result<GroupId> group = group_of(among, operation.lane);
  if (!group) return done(Outcome{.result = group.error()});
  auto pending = std::make_unique<Pending>();
  pending->done = std::move(done);
  pending->station_of_rank = station_of_rank_;
  pending->work = call(operation, group.value());
  const Work work = pending->work;
  work.on_done(&on_done, pending.release());
}

Work CommunicatorExchange::call(Operation& operation, GroupId group) {
  const CallOptions how{
      .group = group, .timeout = operation.timeout, .priority = operation.delivery.priority};
  switch (operation.kind) {
    case Operation::Kind::all_reduce:
      return communicator_->all_reduce(operation.span, operation.span, operation.dtype,
                                       operation.op, how);
    case Operation::Kind::swap:
      return communicator_->exchange(std::move(operation.sent), std::move(operation.room),
                                     operation.received, how);
    case Operation::Kind::all_gather:
      SCANT_CHECK(operation.sent.size() == 1, "an all_gather sends one message");
      return communicator_->all_gather(operation.sent[0], std::move(operation.room),
                                       operation.dtype, how);
    case Operation::Kind::gather:
      SCANT_CHECK(operation.sent.size() == 1, "a gather sends one message");
      return communicator_->gather(operation.sent[0], std::move(operation.room), operation.dtype,
                                   operation.root, how);
    case Operation::Kind::broadcast:
      return communicator_->broadcast(operation.span, operation.dtype, operation.root, how);
  }
  SCANT_CHECK(false, "an operation has one of five kinds");
  return {};
}

void CommunicatorExchange::cancel(const Members& among, Lane lane) {
  // A lane that this member never used is refused too: the others may wait for it there.
  const Result<GroupId> group = group_of(among, lane);
  if (!group) return;
  groups_[{among.hash(), lane.slot, lane.leg}].closed = true;
  static_cast<void>(communicator_->release_group(group.value()));
}

}  // namespace scant::gradient
