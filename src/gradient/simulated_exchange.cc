#include "gradient/simulated_exchange.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/fault.h"
#include "base/little_endian.h"
#include "base/rng.h"
#include "net/simulated/simulated_transport.h"

namespace scant::gradient {
namespace {

using collective::Call;
using collective::OpKind;

// Of one message to one receiver: bounds what is told about it.
constexpr size_t kLostPiecesMax = 64;
// Receiver, slice, first element, elements.
constexpr size_t kReportEntryBytes = 24;

Error invalid(std::string message) { return base::invalid("exchange: " + std::move(message)); }

void append_report(Rank receiver, const Operation::Piece& piece, std::vector<std::byte>& report) {
  report.resize(report.size() + kReportEntryBytes);
  std::byte* const at = report.data() + report.size() - kReportEntryBytes;
  base::store_little(at, static_cast<uint32_t>(receiver));
  base::store_little(at + 4, piece.slice);
  base::store_little(at + 8, piece.range.first);
  base::store_little(at + 16, piece.range.elements);
}

// A message without some of its pieces, which are in the order of their bytes.
std::vector<std::byte> without(Bytes message, const std::vector<Operation::Piece>& pieces,
                               const std::vector<size_t>& lost) {
  std::vector<std::byte> kept;
  kept.reserve(message.size());
  size_t from = 0;
  for (const size_t piece : lost) {
    kept.insert(kept.end(), message.begin() + static_cast<std::ptrdiff_t>(from),
                message.begin() + static_cast<std::ptrdiff_t>(pieces[piece].begin));
    from = pieces[piece].begin + pieces[piece].bytes;
  }
  kept.insert(kept.end(), message.begin() + static_cast<std::ptrdiff_t>(from), message.end());
  return kept;
}

// The length of a message that is there in full at the deadline.
double bytes_in_time(const LossModel& model, Duration deadline) {
  constexpr double kAll = std::numeric_limits<double>::infinity();
  if (deadline == Duration::zero()) return kAll;
  if (deadline < model.latency) return 0;
  if (model.rate_bytes_per_second == 0) return kAll;
  const auto nanoseconds = static_cast<double>((deadline - model.latency).count());
  return static_cast<double>(model.rate_bytes_per_second) * nanoseconds / 1e9;
}

OpKind kind_of(Operation::Kind kind) {
  switch (kind) {
    case Operation::Kind::all_reduce:
      return OpKind::all_reduce;
    case Operation::Kind::swap:
      return OpKind::exchange;
    case Operation::Kind::all_gather:
      return OpKind::all_gather;
    case Operation::Kind::gather:
      return OpKind::gather;
    case Operation::Kind::broadcast:
      return OpKind::broadcast;
  }
  return OpKind::barrier;
}

}  // namespace

std::vector<size_t> lost_pieces(const LossModel& model, const Operation& operation, Rank sender,
                                Rank receiver) {
  std::vector<size_t> lost;
  const auto to = static_cast<size_t>(receiver);
  if (sender == receiver || to >= operation.pieces.size()) return lost;
  const std::vector<Operation::Piece>& pieces = operation.pieces[to];
  const uint64_t pair =
      static_cast<uint64_t>(sender) << 32 | static_cast<uint64_t>(static_cast<uint32_t>(receiver));
  const uint64_t stream =
      base::random_at(operation.round, static_cast<uint64_t>(operation.lane.leg), pair);
  const double in_time = bytes_in_time(model, operation.delivery.deadline);
  double allowed = 0;
  for (const Operation::Piece& piece : pieces) allowed += static_cast<double>(piece.bytes);
  allowed *= 1 - operation.delivery.share;
  uint64_t unsent = 0;
  for (size_t i = 0; i < pieces.size() && lost.size() < kLostPiecesMax; ++i) {
    const uint64_t bits = base::random_at(model.seed, stream, pieces[i].slice);
    const bool unlucky = static_cast<double>(bits >> 11) * 0x1p-53 < model.chance;
    const uint64_t end = pieces[i].begin + pieces[i].bytes - unsent;
    const bool late = static_cast<double>(end) > in_time;
    const auto cost = static_cast<double>(pieces[i].bytes);
    if (!(unlucky || late) || cost > allowed) continue;
    allowed -= cost;
    unsent += pieces[i].bytes;
    lost.push_back(i);
  }
  return lost;
}

SimulatedExchange::SimulatedExchange(net::SimulatedNetwork& network, Rank station,
                                     const SimulatedExchangeOptions& options)
    : network_(network),
      station_(station),
      loss_(options.loss),
      engine_(
          [&] {
            collective::EngineOptions engine = options.engine;
            engine.rank = station;
            engine.size = network.size();
            return engine;
          }(),
          collective::CostModel{}),
      pump_(engine_, network.endpoint(station)) {}

SimulatedExchange::~SimulatedExchange() = default;

Members SimulatedExchange::members() const {
  Members there{.epoch = engine_.epoch()};
  for (Rank station = 0; station < network_.size(); ++station) {
    if (engine_.rank_of(station) == kNoRank) continue;
    if (station == station_) there.self = there.size();
    there.stations.push_back(station);
  }
  return there;
}

Error SimulatedExchange::by_station(Error error) const {
  if (error.peer == kNoRank) return error;
  for (Rank station = 0; station < network_.size(); ++station) {
    if (engine_.rank_of(station) != error.peer) continue;
    error.peer = station;
    return error;
  }
  return error;
}

Result<SimulatedExchange::Group*> SimulatedExchange::group_of(const Members& among, Lane lane) {
  if (among.self < 0 || among.self >= among.size() ||
      among.stations[static_cast<size_t>(among.self)] != station_) {
    return invalid("station " + std::to_string(station_) + " is not the member that it says");
  }
  if (std::exchange(epoch_, engine_.epoch()) != engine_.epoch()) groups_.clear();
  const auto [found, is_new] = groups_.try_emplace(key_of(among, lane));
  Group& group = found->second;
  if (group.cancelled) {
    return Error{.code = ErrorCode::closed,
                 .peer = station_,
                 .message = "the lane was cancelled; use it again under a later epoch"};
  }
  if (!is_new) return &group;
  std::vector<Rank> ranks;
  for (const Rank station : among.stations) {
    const bool known = station >= 0 && station < network_.size();
    const Rank rank = known ? engine_.rank_of(station) : kNoRank;
    if (rank == kNoRank) {
      groups_.erase(found);
      return Error{.code = ErrorCode::peer_lost,
                   .peer = station,
                   .message = "station " + std::to_string(station) + " is no member of epoch " +
                              std::to_string(engine_.epoch())};
    }
    ranks.push_back(rank);
  }
  // All members come to the same number, whatever other lanes each of them uses.
  const GroupKey& key = found->first;
  const auto drawn_id = static_cast<GroupId>(base::random_at(key.first, 0, key.second));
  group.id = drawn_id == kWorldGroup ? 1 : drawn_id;
  if (Result<void> made = engine_.add_group(group.id, ranks); !made) {
    groups_.erase(found);
    return made.error();
  }
  return &group;
}

Call SimulatedExchange::call_of(Operation& operation, GroupId group) const {
  Call call{.kind = kind_of(operation.kind),
            .dtype = operation.dtype,
            .reduce = operation.op,
            .root = operation.root,
            .group = group,
            .timeout = operation.timeout,
            .priority = operation.delivery.priority};
  if (operation.kind == Operation::Kind::all_reduce ||
      operation.kind == Operation::Kind::broadcast) {
    if (operation.kind == Operation::Kind::all_reduce) call.inputs = {operation.span};
    call.outputs = {operation.span};
    return call;
  }
  call.inputs = std::move(operation.sent);
  call.outputs = std::move(operation.room);
  if (operation.kind == Operation::Kind::swap) call.received = operation.received;
  return call;
}

void SimulatedExchange::submit(const Members& among, Operation operation, Done done) {
  if (operation.lane.slot >= kSlotsMax) {
    return done({.result = invalid("slots are 0 to " + std::to_string(kSlotsMax - 1))});
  }
  const Result<Group*> group = group_of(among, operation.lane);
  if (!group) return done({.result = group.error()});
  const GroupId id = group.value()->id;
  const uint64_t number = next_pending_++;
  Pending& pending = *pending_.emplace(number, std::make_unique<Pending>()).first->second;
  pending.done = std::move(done);
  const bool bounded = operation.kind == Operation::Kind::swap && !operation.delivery.exact;
  if (bounded) {
    pending.calls = 2;
    pending.self = among.self;
    lose(operation, pending);
  }
  Call call = call_of(operation, id);
  Call report{.group = id, .timeout = call.timeout, .priority = call.priority};
  engine_.submit(network_.now(), std::move(call),
                 [this, number](const Result<void>& result, Rank) { call_ended(number, result); });
  if (bounded) submit_report(std::move(report), number);
  network_.make_runnable(station_);
}

// What the link will lose is taken out before it is sent.
void SimulatedExchange::lose(Operation& operation, Pending& pending) const {
  pending.round = operation.round;
  pending.leg = operation.lane.leg;
  const size_t count = operation.sent.size();
  pending.sent.resize(count);
  pending.reports.resize(count);
  for (size_t to = 0; to < count; ++to) {
    const auto receiver = static_cast<Rank>(to);
    const std::vector<size_t> lost = lost_pieces(loss_, operation, pending.self, receiver);
    if (lost.empty()) continue;
    pending.sent[to] = without(operation.sent[to], operation.pieces[to], lost);
    operation.sent[to] = pending.sent[to];
    for (const size_t piece : lost) {
      append_report(receiver, operation.pieces[to][piece], pending.reports[to]);
      append_report(receiver, operation.pieces[to][piece], pending.own);
    }
  }
}

// What is missing of this member's messages goes to whom it concerns: the receiver, or everybody.
void SimulatedExchange::submit_report(Call call, uint64_t number) {
  Pending& pending = *pending_.at(number);
  const bool to_all = is_second(pending.leg);
  const size_t count = pending.reports.size();
  const size_t capacity = kReportEntryBytes * kLostPiecesMax * (to_all ? count : 1);
  pending.rooms.assign(count, std::vector<std::byte>(capacity));
  pending.received.assign(count, 0);
  call.kind = OpKind::exchange;
  call.received = pending.received;
  for (size_t i = 0; i < count; ++i) {
    const bool own = i == static_cast<size_t>(pending.self);
    call.inputs.emplace_back(own ? Bytes{} : to_all ? pending.own : pending.reports[i]);
    call.outputs.emplace_back(pending.rooms[i]);
  }
  engine_.submit(network_.now(), std::move(call),
                 [this, number](const Result<void>& result, Rank) { call_ended(number, result); });
}

void SimulatedExchange::call_ended(uint64_t number, const Result<void>& result) {
  const auto found = pending_.find(number);
  Pending& pending = *found->second;
  if (!result && pending.outcome.result) pending.outcome.result = by_station(result.error());
  if (--pending.calls > 0) return;
  const auto over = std::move(found->second);
  pending_.erase(found);
  if (over->outcome.result && over->self != kNoRank) read_reports(*over);
  over->done(over->outcome);
}

// In the order of senders, so that all who are told of a message are told the same.
void SimulatedExchange::read_reports(Pending& of) {
  for (size_t i = 0; i < of.rooms.size(); ++i) {
    const auto sender = static_cast<Rank>(i);
    const Bytes report =
        sender == of.self ? Bytes(of.own) : Bytes(of.rooms[i]).first(of.received[i]);
    for (size_t at = 0; at < report.size(); at += kReportEntryBytes) {
      const std::byte* const entry = report.data() + at;
      Missing one{.round = of.round, .leg = of.leg, .sender = sender};
      one.receiver = static_cast<Rank>(base::load_little<uint32_t>(entry));
      one.slice = base::load_little<uint32_t>(entry + 4);
      one.elements.push_back(
          {base::load_little<uint64_t>(entry + 8), base::load_little<uint64_t>(entry + 16)});
      of.outcome.missing.push_back(std::move(one));
    }
  }
}

void SimulatedExchange::cancel(const Members& among, Lane lane) {
  // A lane that this member never used is refused too: the others may wait for it there.
  const Result<Group*> group = group_of(among, lane);
  if (!group) return;
  group.value()->cancelled = true;
  const Result<void> released = engine_.release_group(group.value()->id);
  SCANT_CHECK(released.ok());
  network_.make_runnable(station_);
}

void SimulatedExchange::pump() { pump_.step(kNever); }

void SimulatedExchange::shrink(Duration limit, Shrunk done) {
  engine_.begin_shrink(network_.now(), network_.now() + limit,
                       [this, done = std::move(done)](const Result<std::vector<Rank>>& survivors) {
                         if (!survivors) return done(survivors.error());
                         done(members());
                       });
  network_.make_runnable(station_);
}

void SimulatedExchange::close(Duration limit) {
  network_.endpoint(station_).close(network_.now() + limit);
  abandon();
}

void SimulatedExchange::abandon() {
  engine_.on_transport_closed(
      Error{.code = ErrorCode::closed, .message = "the exchange was closed"});
}

}  // namespace scant::gradient
