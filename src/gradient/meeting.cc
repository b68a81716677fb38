#include "gradient/meeting.h"

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"
#include "base/fault.h"

namespace scant::gradient {
namespace {

constexpr uint64_t kNewcomer = std::numeric_limits<uint64_t>::max();

std::string rank_name(size_t place) { return "rank " + std::to_string(place); }

Error mismatch(size_t place, std::string sentence) {
  return Error{.code = ErrorCode::mismatch,
               .peer = static_cast<Rank>(place),
               .message = "members: " + std::move(sentence)};
}

// By station the place of who has been it.
Result<std::map<Rank, size_t>> who_stays(std::span<const Arrival> by_place) {
  std::map<Rank, size_t> places;
  for (size_t place = 0; place < by_place.size(); ++place) {
    const Arrival& one = by_place[place];
    if (one.layout_ranks != by_place[0].layout_ranks) {
      return mismatch(place, rank_name(place) + " has cut its layout for " +
                                 std::to_string(one.layout_ranks) + " ranks, rank 0 for " +
                                 std::to_string(by_place[0].layout_ranks) +
                                 ": newcomers cut it for as many as the first members did");
    }
    if (one.station == kNoRank) continue;
    const auto [known, is_new] = places.emplace(one.station, place);
    if (!is_new) {
      return mismatch(place, rank_name(known->second) + " and " + rank_name(place) +
                                 " both say that they are station " + std::to_string(one.station));
    }
  }
  return places;
}

}  // namespace

void write_arrival(const Arrival& arrival, MutableBytes out) {
  SCANT_CHECK(out.size() == kArrivalBytes);
  base::ByteWriter writer(out);
  writer.put(arrival.version);
  writer.put(arrival.station == kNoRank ? kNewcomer : static_cast<uint64_t>(arrival.station));
  writer.put(static_cast<uint64_t>(arrival.stations_used));
  writer.put(arrival.epoch);
  writer.put(arrival.steps);
  writer.put(arrival.layout_ranks);
}

Result<Arrival> read_arrival(Bytes bytes) {
  SCANT_CHECK(bytes.size() == kArrivalBytes);
  base::ByteReader reader(bytes);
  const auto version = reader.get<uint64_t>();
  if (version != kArrivalVersion) {
    return Error{.code = ErrorCode::mismatch,
                 .message = "members: an arrival of version " + std::to_string(version) +
                            ", here it is " + std::to_string(kArrivalVersion) +
                            ": install one version of Scant on all ranks"};
  }
  const auto station = reader.get<uint64_t>();
  const auto used = reader.get<uint64_t>();
  Arrival arrival{.epoch = reader.get<uint64_t>(),
                  .steps = reader.get<uint64_t>(),
                  .layout_ranks = reader.get<uint64_t>()};
  constexpr auto kUsedMax = static_cast<uint64_t>(std::numeric_limits<Rank>::max());
  const bool newcomer = station == kNewcomer;
  constexpr uint64_t kMost = uint64_t{1} << 62;
  if (used > kUsedMax || arrival.epoch > kMost || arrival.steps > kMost ||
      (!newcomer && station >= used) || (newcomer == (arrival.epoch > 0))) {
    return base::corrupt("members: an arrival that nobody can have sent");
  }
  arrival.station = newcomer ? kNoRank : static_cast<Rank>(station);
  arrival.stations_used = static_cast<Rank>(used);
  return arrival;
}

Result<Meeting> meet(std::span<const Arrival> by_place, Rank self) {
  SCANT_CHECK(self >= 0 && static_cast<size_t>(self) < by_place.size());
  Result<std::map<Rank, size_t>> stays = who_stays(by_place);
  if (!stays) return stays.error();
  if (stays.value().empty()) {
    return base::invalid("members: all " + std::to_string(by_place.size()) +
                         " ranks are newcomers; one at least must come from the training");
  }
  Meeting meeting;
  uint64_t steps = 0;
  for (const Arrival& one : by_place) {
    meeting.stations_used = std::max(meeting.stations_used, one.stations_used);
    meeting.members.epoch = std::max(meeting.members.epoch, one.epoch);
    steps = std::max(steps, one.steps);
  }
  const auto newcomers = static_cast<Rank>(by_place.size() - stays.value().size());
  if (meeting.stations_used > std::numeric_limits<Rank>::max() - newcomers) {
    return base::invalid("members: there are no more numbers for new stations");
  }
  ++meeting.members.epoch;
  meeting.members.self = self;
  meeting.next_step = steps + 1;
  for (const Arrival& one : by_place) {
    const Rank station = one.station == kNoRank ? meeting.stations_used++ : one.station;
    meeting.members.stations.push_back(station);
  }
  return meeting;
}

}  // namespace scant::gradient
