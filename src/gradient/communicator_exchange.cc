#include "gradient/communicator_exchange.h"

#include <algorithm>
#include <array>
#include <chrono>
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
};

void on_done(void* context) {
  const std::unique_ptr<Pending> pending(static_cast<Pending*>(context));
  pending->done(Outcome{.result = pending->work.wait()});
}

}  // namespace

Result<std::unique_ptr<CommunicatorExchange>> CommunicatorExchange::create(
    Communicator& communicator, const Options& options) {
  std::vector<Rank> ranks = options.ranks;
  if (ranks.empty()) {
    ranks.resize(static_cast<size_t>(communicator.size()));
    std::iota(ranks.begin(), ranks.end(), 0);
  }
  const auto self = std::ranges::find(ranks, communicator.rank());
  if (self == ranks.end()) {
    return invalid("members: rank " + std::to_string(communicator.rank()) +
                   ", this one, is not of the " + std::to_string(ranks.size()) + " that take part");
  }
  const auto station = static_cast<Rank>(self - ranks.begin());
  return std::unique_ptr<CommunicatorExchange>(
      new CommunicatorExchange(communicator, options.key, std::move(ranks), station));
}

CommunicatorExchange::CommunicatorExchange(Communicator& communicator, std::string key,
                                           std::vector<Rank> ranks, Rank self)
    : communicator_(communicator), key_(std::move(key)), ranks_(std::move(ranks)), self_(self) {}

CommunicatorExchange::~CommunicatorExchange() {
  for (const auto& [key, group] : groups_) {
    if (!group.closed) static_cast<void>(communicator_.release_group(group.id));
  }
}

Time CommunicatorExchange::now() const { return std::chrono::steady_clock::now(); }

Members CommunicatorExchange::members() const {
  return everyone(static_cast<int>(ranks_.size()), self_);
}

// Lanes of the first members keep the names that the groups of one round always had.
std::string CommunicatorExchange::name_of(const Members& among, Lane lane) const {
  std::string name = key_ + kSuffixes[static_cast<size_t>(lane.leg)];
  if (lane.slot > 0) name.append(".").append(std::to_string(lane.slot));
  if (among.epoch > 1) name.append("@").append(std::to_string(among.epoch));
  return name;
}

Result<GroupId> CommunicatorExchange::group_of(const Members& among, Lane lane) {
  if (among.self < 0 || among.self >= among.size() ||
      among.stations[static_cast<size_t>(among.self)] != self_) {
    return invalid("members: station " + std::to_string(self_) +
                   ", this one, is not the member that it says");
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
    if (station < 0 || static_cast<size_t>(station) >= ranks_.size()) {
      return invalid("members: there is no station " + std::to_string(station));
    }
    ranks.push_back(ranks_[static_cast<size_t>(station)]);
  }
  Result<GroupId> made = communicator_.make_group(ranks, name_of(among, lane));
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
  pending->work = call(operation, group.value());
  const Work work = pending->work;
  work.on_done(&on_done, pending.release());
}

Work CommunicatorExchange::call(Operation& operation, GroupId group) {
  const CallOptions how{
      .group = group, .timeout = operation.timeout, .priority = operation.delivery.priority};
  switch (operation.kind) {
    case Operation::Kind::all_reduce:
      return communicator_.all_reduce(operation.span, operation.span, operation.dtype, operation.op,
                                      how);
    case Operation::Kind::swap:
      return communicator_.exchange(std::move(operation.sent), std::move(operation.room),
                                    operation.received, how);
    case Operation::Kind::all_gather:
      SCANT_CHECK(operation.sent.size() == 1, "an all_gather sends one message");
      return communicator_.all_gather(operation.sent[0], std::move(operation.room), operation.dtype,
                                      how);
    case Operation::Kind::gather:
      SCANT_CHECK(operation.sent.size() == 1, "a gather sends one message");
      return communicator_.gather(operation.sent[0], std::move(operation.room), operation.dtype,
                                  operation.root, how);
    case Operation::Kind::broadcast:
      return communicator_.broadcast(operation.span, operation.dtype, operation.root, how);
  }
  SCANT_CHECK(false, "an operation has one of five kinds");
  return {};
}

void CommunicatorExchange::cancel(const Members& among, Lane lane) {
  // A lane that this member never used is refused too: the others may wait for it there.
  const Result<GroupId> group = group_of(among, lane);
  if (!group) return;
  groups_[{among.hash(), lane.slot, lane.leg}].closed = true;
  static_cast<void>(communicator_.release_group(group.value()));
}

}  // namespace scant::gradient
