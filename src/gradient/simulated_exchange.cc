#include "gradient/simulated_exchange.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/little_endian.h"
#include "base/rng.h"

namespace scant::gradient {
namespace {

using collective::Call;
using collective::OpKind;

// Of one message to one receiver: bounds what is told about it.
constexpr size_t kLostPiecesMax = 64;
// Receiver, slice, first element, elements.
constexpr size_t kReportEntryBytes = 24;

Error invalid(std::string message) {
  return Error{.code = ErrorCode::invalid_argument, .message = "exchange: " + std::move(message)};
}

// Every draw of one piece has a number of its own.
double drawn(const LossModel& model, uint64_t stream, uint32_t slice, uint64_t draw) {
  const uint64_t bits = base::random_at(model.seed, stream, uint64_t{slice} << 2 | draw);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

// A whole piece, or a stretch of it.
codec::Range lost_range(const LossModel& model, uint64_t stream, const Operation::Piece& piece) {
  if (drawn(model, stream, piece.slice, 1) < 0.5) return piece.range;
  const auto elements = static_cast<double>(piece.range.elements);
  const auto from = static_cast<uint64_t>(elements * drawn(model, stream, piece.slice, 2));
  const uint64_t left = piece.range.elements - from;
  const auto count = 1 + static_cast<uint64_t>(static_cast<double>(left - 1) *
                                               drawn(model, stream, piece.slice, 3));
  return {piece.range.first + from, count};
}

void append_report(const std::vector<Missing>& missing, std::vector<std::byte>& report) {
  for (const Missing& one : missing) {
    for (const codec::Range& range : one.elements) {
      report.resize(report.size() + kReportEntryBytes);
      std::byte* const at = report.data() + report.size() - kReportEntryBytes;
      base::store_little(at, static_cast<uint32_t>(one.receiver));
      base::store_little(at + 4, one.slice);
      base::store_little(at + 8, range.first);
      base::store_little(at + 16, range.elements);
    }
  }
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

std::vector<Missing> lost_pieces(const LossModel& model, const Operation& operation, Rank sender,
                                 Rank receiver) {
  std::vector<Missing> missing;
  const auto to = static_cast<size_t>(receiver);
  if (model.chance <= 0 || sender == receiver || to >= operation.pieces.size()) return missing;
  const uint64_t stream = base::random_at(
      operation.round, static_cast<uint64_t>(operation.lane.leg),
      static_cast<uint64_t>(sender) << 32 | static_cast<uint64_t>(receiver));
  uint64_t bytes = 0;
  for (const Operation::Piece& piece : operation.pieces[to]) bytes += piece.bytes;
  double allowed = (1 - operation.delivery.share) * static_cast<double>(bytes);
  for (const Operation::Piece& piece : operation.pieces[to]) {
    if (piece.range.elements == 0 || missing.size() == kLostPiecesMax) continue;
    if (drawn(model, stream, piece.slice, 0) >= model.chance) continue;
    const codec::Range range = lost_range(model, stream, piece);
    const double cost = static_cast<double>(piece.bytes) * static_cast<double>(range.elements) /
                        static_cast<double>(piece.range.elements);
    if (cost > allowed) continue;
    allowed -= cost;
    missing.push_back({operation.round, operation.lane.leg, sender, receiver, piece.slice, {range}});
  }
  return missing;
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
  const Result<Group*> group = group_of(among, operation.lane);
  if (!group) return done({.result = group.error()});
  const GroupId id = group.value()->id;
  const uint64_t number = next_pending_++;
  auto& pending = pending_.emplace(number, std::make_unique<Pending>()).first->second;
  pending->done = std::move(done);
  const bool bounded = operation.kind == Operation::Kind::swap && !operation.delivery.exact;
  if (bounded) pending->calls = 2;
  Call call = call_of(operation, id);
  const auto ended = [this, number](const Result<void>& result, Rank) {
    call_ended(number, result);
  };
  engine_.submit(network_.now(), std::move(call), ended);
  if (bounded) submit_report(among, operation, id, number);
  network_.make_runnable(station_);
}

// What is missing of this member's messages goes to whom it concerns: the receiver, or everybody.
void SimulatedExchange::submit_report(const Members& among, const Operation& operation,
                                      GroupId group, uint64_t number) {
  Pending& pending = *pending_.at(number);
  pending.round = operation.round;
  pending.leg = operation.lane.leg;
  pending.self = among.self;
  const bool to_all = operation.lane.leg != Leg::first;
  const auto count = static_cast<size_t>(among.size());
  pending.reports.resize(count);
  for (Rank receiver = 0; receiver < among.size(); ++receiver) {
    const std::vector<Missing> lost = lost_pieces(loss_, operation, among.self, receiver);
    append_report(lost, pending.own);
    append_report(lost, pending.reports[static_cast<size_t>(receiver)]);
  }
  const size_t capacity = kReportEntryBytes * kLostPiecesMax * (to_all ? count : 1);
  pending.rooms.assign(count, std::vector<std::byte>(capacity));
  pending.received.assign(count, 0);
  Call call{.kind = OpKind::exchange,
            .group = group,
            .timeout = operation.timeout,
            .priority = operation.delivery.priority,
            .received = pending.received};
  for (size_t i = 0; i < count; ++i) {
    const bool own = i == static_cast<size_t>(among.self);
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
  engine_.on_transport_closed(
      Error{.code = ErrorCode::closed, .message = "the exchange was closed"});
}

}  // namespace scant::gradient
