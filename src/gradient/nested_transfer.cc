#include "gradient/nested_transfer.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/fault.h"
#include "base/little_endian.h"
#include "collective/reduce/reduce.h"

namespace scant::gradient {
namespace {

using Kind = Operation::Kind;

constexpr size_t kSizeBytes = 8;  // before each message of a bundle

Error invalid(std::string message) { return base::invalid("exchange: " + std::move(message)); }

size_t at(Rank place) { return static_cast<size_t>(place); }

void copy(Bytes from, MutableBytes to) {
  // A member's own message may lie in its room already.
  if (!from.empty()) std::memmove(to.data(), from.data(), from.size());
}

}  // namespace

Sites sites_of(const Members& among, const std::vector<HostPlace>& hosts) {
  Sites sites;
  sites.self = among.self;
  sites.inner.epoch = sites.outer.epoch = among.epoch;
  std::vector<Rank> known;  // by site of ours: the number that its hosts carry
  for (Rank place = 0; place < among.size(); ++place) {
    const HostPlace& host = hosts[at(among.stations[at(place)])];
    const auto found = std::ranges::find(known, host.site);
    const auto site = static_cast<Rank>(found - known.begin());
    if (found == known.end()) {
      known.push_back(host.site);
      sites.places.emplace_back();
      if (place == among.self) sites.outer.self = site;
      sites.outer.stations.push_back(host.outer);
    }
    sites.place_inside.push_back(static_cast<Rank>(sites.places[at(site)].size()));
    sites.places[at(site)].push_back(place);
    sites.site_of.push_back(site);
  }
  sites.own = sites.site_of[at(among.self)];
  sites.inner.self = sites.place_inside[at(among.self)];
  for (const Rank place : sites.own_places()) {
    sites.inner.stations.push_back(hosts[at(among.stations[at(place)])].inner);
  }
  return sites;
}

void Transfer::Room::reserve(size_t bytes) {
  memory = std::make_unique_for_overwrite<std::byte[]>(bytes);
  size = bytes;
}

Transfer::Transfer(const Sites& sites, Operation operation)
    : sites_(sites),
      operation_(std::move(operation)),
      size_(static_cast<int>(sites.site_of.size())) {}

Result<void> Transfer::check() const {
  const Operation& given = operation_;
  const auto count = static_cast<size_t>(size_);
  const bool rooted = given.kind == Kind::gather || given.kind == Kind::broadcast;
  if (rooted && (given.root < 0 || given.root >= size_)) return invalid("no member is the root");
  switch (given.kind) {
    case Kind::all_reduce:
    case Kind::broadcast:
      return {};
    case Kind::swap:
      if (given.sent.size() != count || given.room.size() != count ||
          given.received.size() != count) {
        return invalid("swap wants a message, a room and a size for each member");
      }
      for (const Bytes message : given.sent) {
        if (message.size() > part_bytes()) return invalid("a message is larger than its room");
      }
      return {};
    case Kind::all_gather:
    case Kind::gather: {
      const bool takes = given.kind == Kind::all_gather || given.root == sites_.self;
      if (given.sent.size() != 1 || (takes && given.room.size() != count)) {
        return invalid("a gather wants one message, and a room for each member");
      }
      const auto unequal = [&](MutableBytes room) { return room.size() != given.sent[0].size(); };
      if (takes && std::ranges::any_of(given.room, unequal)) {
        return invalid("a room has not the size of the message");
      }
      return {};
    }
  }
  return {};
}

size_t Transfer::part_bytes() const {
  const size_t other = sites_.self == 0 && size_ > 1 ? 1 : 0;
  return operation_.room[other].size();
}

Operation Transfer::ask(Kind kind) const {
  return {.kind = kind,
          .round = operation_.round,
          .dtype = operation_.dtype,
          .op = operation_.op,
          .delivery = {.priority = operation_.delivery.priority},
          .timeout = operation_.timeout};
}

std::optional<Operation> Transfer::begin(TransferStage stage) {
  switch (stage) {
    case TransferStage::up:
      return begin_up();
    case TransferStage::between:
      if (sites_.count() == 1 || !sites_.leads()) return std::nullopt;
      return begin_between();
    case TransferStage::down:
      if (sites_.count() == 1 && operation_.kind != Kind::gather &&
          operation_.kind != Kind::all_gather) {
        return std::nullopt;
      }
      return begin_down();
  }
  return std::nullopt;
}

std::optional<Operation> Transfer::begin_up() {
  switch (operation_.kind) {
    case Kind::all_reduce: {
      Operation sum = ask(Kind::all_reduce);
      sum.span = operation_.span;
      if (sum.op == ReduceOp::average) sum.op = ReduceOp::sum;
      return sum;
    }
    case Kind::swap:
      return swap_up();
    case Kind::all_gather:
    case Kind::gather: {
      Operation gather = ask(Kind::gather);
      const size_t each = operation_.sent[0].size();
      gather.sent = operation_.sent;
      if (sites_.leads()) {
        all_.resize(each * static_cast<size_t>(size_));
        for (const Rank place : sites_.own_places()) {
          gather.room.push_back(MutableBytes(all_).subspan(at(place) * each, each));
        }
      }
      return gather;
    }
    case Kind::broadcast: {
      if (sites_.site_of[at(operation_.root)] != sites_.own) return std::nullopt;
      Operation inside = ask(Kind::broadcast);
      inside.span = operation_.span;
      inside.root = sites_.place_inside[at(operation_.root)];
      return inside;
    }
  }
  return std::nullopt;
}

std::optional<Operation> Transfer::begin_between() {
  switch (operation_.kind) {
    case Kind::all_reduce: {
      Operation sum = ask(Kind::all_reduce);
      sum.span = operation_.span;
      if (sum.op == ReduceOp::average) sum.op = ReduceOp::sum;
      return sum;
    }
    case Kind::swap:
      return swap_between();
    case Kind::all_gather:
    case Kind::gather:
      return gather_between();
    case Kind::broadcast: {
      Operation across = ask(Kind::broadcast);
      across.span = operation_.span;
      across.root = sites_.site_of[at(operation_.root)];
      return across;
    }
  }
  return std::nullopt;
}

std::optional<Operation> Transfer::begin_down() {
  const bool roots_site = sites_.site_of[at(operation_.root)] == sites_.own;
  switch (operation_.kind) {
    case Kind::swap:
      return swap_down();
    case Kind::broadcast:
      if (roots_site) return std::nullopt;
      break;
    case Kind::gather:
      if (!roots_site) return std::nullopt;
      break;
    case Kind::all_reduce:
    case Kind::all_gather:
      break;
  }
  Operation inside = ask(Kind::broadcast);
  inside.span = operation_.span;
  if (operation_.kind == Kind::gather || operation_.kind == Kind::all_gather) {
    all_.resize(operation_.sent[0].size() * static_cast<size_t>(size_));
    inside.span = all_;
  }
  return inside;
}

Result<void> Transfer::end(TransferStage stage) {
  switch (operation_.kind) {
    case Kind::all_reduce: {
      // Once, at the end of the sum: at the leaders, or at everybody of a single site.
      const TransferStage last = sites_.count() == 1 ? TransferStage::up : TransferStage::between;
      if (stage == last && operation_.op == ReduceOp::average && !operation_.span.empty()) {
        collective::scale(operation_.dtype, operation_.span.data(), operation_.span.size(), size_);
      }
      return {};
    }
    case Kind::swap:
      if (stage == TransferStage::up) return end_swap_up();
      return stage == TransferStage::between ? end_swap_between() : end_swap_down();
    case Kind::all_gather:
    case Kind::gather:
      if (stage == TransferStage::between) return end_gather_between();
      if (stage == TransferStage::down) place_all();
      return {};
    case Kind::broadcast:
      return {};
  }
  return {};
}

// swap ----------------------------------------------------------------------------------------

std::vector<Transfer::Part> Transfer::parts_up(Rank from) const {
  std::vector<Part> parts{{from, sites_.own_places().front()}};
  for (Rank to = 0; to < size_; ++to) {
    if (sites_.site_of[at(to)] != sites_.own) parts.push_back({from, to});
  }
  return parts;
}

std::vector<Transfer::Part> Transfer::parts_between(Rank from_site, Rank to_site) const {
  std::vector<Part> parts;
  for (const Rank from : sites_.places[at(from_site)]) {
    for (const Rank to : sites_.places[at(to_site)]) parts.push_back({from, to});
  }
  return parts;
}

std::vector<Transfer::Part> Transfer::parts_down(Rank to) const {
  std::vector<Part> parts;
  for (Rank from = 0; from < size_; ++from) {
    if (sites_.site_of[at(from)] != sites_.own) parts.push_back({from, to});
  }
  return parts;
}

void Transfer::bundle(std::vector<std::byte>& out, const std::vector<Part>& parts) const {
  size_t bytes = 0;
  for (const Part& part : parts) bytes += kSizeBytes + held(part).size();
  out.resize(bytes);
  size_t end = 0;
  for (const Part& part : parts) {
    const Bytes message = held(part);
    base::store_little(out.data() + end, static_cast<uint64_t>(message.size()));
    copy(message, MutableBytes(out).subspan(end + kSizeBytes));
    end += kSizeBytes + message.size();
  }
}

// Parts for this host go to its rooms, others wait for the next stage. Both ends count alike.
Result<void> Transfer::unbundle(Bytes bundle, const std::vector<Part>& parts) {
  const Error cut_short{.code = ErrorCode::corrupt,
                        .message = "exchange: a bundle of messages is cut short"};
  for (const Part& part : parts) {
    if (bundle.size() < kSizeBytes) return cut_short;
    const uint64_t bytes = base::load_little<uint64_t>(bundle.data());
    bundle = bundle.subspan(kSizeBytes);
    if (bytes > bundle.size() || bytes > part_bytes()) return cut_short;
    const Bytes message = bundle.first(bytes);
    bundle = bundle.subspan(bytes);
    held(part) = message;
    const bool from_own_site = sites_.site_of[at(part.from)] == sites_.own;
    if (part.to == sites_.self && (from_own_site || !sites_.leads())) deliver(part.from, message);
  }
  return {};
}

void Transfer::deliver(Rank from, Bytes message) {
  copy(message, operation_.room[at(from)]);
  operation_.received[at(from)] = message.size();
}

Operation Transfer::swap_among(size_t members) {
  Operation swap = ask(Kind::swap);
  swap.sent.resize(members);
  received_.assign(members, 0);
  swap.received = received_;
  return swap;
}

Operation Transfer::swap_up() {
  const std::vector<Rank>& own = sites_.own_places();
  const size_t away = static_cast<size_t>(size_) - own.size();
  const size_t capacity = (away + 1) * (kSizeBytes + part_bytes());
  Operation swap = swap_among(own.size());
  held_.resize(static_cast<size_t>(size_) * static_cast<size_t>(size_));
  for (Rank to = 0; to < size_; ++to) held({sites_.self, to}) = operation_.sent[at(to)];
  up_.resize(own.size());
  bundles_.resize(1);
  for (size_t i = 0; i < own.size(); ++i) {
    if (own[i] != sites_.self) up_[i].reserve(capacity);
    swap.room.push_back(up_[i].view());
    if (own[i] == sites_.self) continue;
    swap.sent[i] = operation_.sent[at(own[i])];
    if (i > 0) continue;
    bundle(bundles_[0], parts_up(sites_.self));
    swap.sent[0] = bundles_[0];
  }
  return swap;
}

Result<void> Transfer::end_swap_up() {
  deliver(sites_.self, operation_.sent[at(sites_.self)]);
  const std::vector<Rank>& own = sites_.own_places();
  for (size_t i = 0; i < own.size(); ++i) {
    if (own[i] == sites_.self) continue;
    const Bytes message = up_[i].view().first(received_[i]);
    if (!sites_.leads()) {
      deliver(own[i], message);
    } else if (Result<void> taken = unbundle(message, parts_up(own[i])); !taken) {
      return taken;
    }
  }
  return {};
}

Result<void> Transfer::end_swap_between() {
  for (Rank site = 0; site < sites_.count(); ++site) {
    if (site == sites_.own) continue;
    Result<void> taken = unbundle(between_[at(site)].view().first(received_[at(site)]),
                                  parts_between(site, sites_.own));
    if (!taken) return taken;
  }
  return {};
}

Result<void> Transfer::end_swap_down() {
  const std::vector<Part> parts = parts_down(sites_.self);
  if (!sites_.leads()) return unbundle(down_[0].view().first(received_[0]), parts);
  for (const Part& part : parts) deliver(part.from, held(part));
  return {};
}

Operation Transfer::swap_between() {
  size_t pairs = 0;
  for (Rank from = 0; from < sites_.count(); ++from) {
    for (Rank to = 0; to < sites_.count(); ++to) {
      if (from == to) continue;
      pairs = std::max(pairs, sites_.places[at(from)].size() * sites_.places[at(to)].size());
    }
  }
  const size_t capacity = pairs * (kSizeBytes + part_bytes());
  const auto count = static_cast<size_t>(sites_.count());
  Operation swap = swap_among(count);
  between_.resize(count);
  bundles_.resize(count);
  for (Rank site = 0; site < sites_.count(); ++site) {
    if (site != sites_.own) {
      between_[at(site)].reserve(capacity);
      bundle(bundles_[at(site)], parts_between(sites_.own, site));
      swap.sent[at(site)] = bundles_[at(site)];
    }
    swap.room.push_back(between_[at(site)].view());
  }
  return swap;
}

Operation Transfer::swap_down() {
  const std::vector<Rank>& own = sites_.own_places();
  const size_t away = static_cast<size_t>(size_) - own.size();
  const size_t capacity = away * (kSizeBytes + part_bytes());
  Operation swap = swap_among(own.size());
  down_.resize(own.size());
  bundles_.resize(std::max(bundles_.size(), own.size()));
  for (size_t i = 0; i < own.size(); ++i) {
    if (own[i] != sites_.self) down_[i].reserve(capacity);
    swap.room.push_back(down_[i].view());
    if (own[i] == sites_.self || !sites_.leads()) continue;
    bundle(bundles_[i], parts_down(own[i]));
    swap.sent[i] = bundles_[i];
  }
  return swap;
}

// gathers -------------------------------------------------------------------------------------

Operation Transfer::gather_between() {
  const size_t each = operation_.sent[0].size();
  size_t largest = 0;
  for (const auto& places : sites_.places) largest = std::max(largest, places.size());
  const size_t capacity = largest * each;
  const auto count = static_cast<size_t>(sites_.count());
  Operation swap = swap_among(count);
  bundles_.resize(1);
  for (const Rank place : sites_.own_places()) {
    const auto from = all_.begin() + static_cast<std::ptrdiff_t>(at(place) * each);
    bundles_[0].insert(bundles_[0].end(), from, from + static_cast<std::ptrdiff_t>(each));
  }
  between_.resize(count);
  const Rank to = operation_.kind == Kind::gather ? sites_.site_of[at(operation_.root)] : kNoRank;
  for (Rank site = 0; site < sites_.count(); ++site) {
    if (site != sites_.own) {
      between_[at(site)].reserve(capacity);
      if (to == kNoRank || to == site) swap.sent[at(site)] = bundles_[0];
    }
    swap.room.push_back(between_[at(site)].view());
  }
  return swap;
}

Result<void> Transfer::end_gather_between() {
  const size_t each = operation_.sent[0].size();
  const bool wanted =
      operation_.kind == Kind::all_gather || sites_.site_of[at(operation_.root)] == sites_.own;
  for (Rank site = 0; wanted && site < sites_.count(); ++site) {
    const std::vector<Rank>& places = sites_.places[at(site)];
    if (site == sites_.own) continue;
    if (received_[at(site)] != places.size() * each) {
      return Error{.code = ErrorCode::mismatch,
                   .message = "exchange: the messages of a gather have not one size"};
    }
    for (size_t i = 0; i < places.size(); ++i) {
      copy(between_[at(site)].view().subspan(i * each, each),
           MutableBytes(all_).subspan(at(places[i]) * each, each));
    }
  }
  return {};
}

void Transfer::place_all() {
  if (operation_.kind == Kind::gather && operation_.root != sites_.self) return;
  const size_t each = operation_.sent[0].size();
  for (Rank place = 0; place < size_; ++place) {
    copy(Bytes(all_).subspan(at(place) * each, each), operation_.room[at(place)]);
  }
}

}  // namespace scant::gradient
