// Segments written and read: round trips over many of them, ends that are torn or damaged, what
// joins after a restart. Whatever happened to the bytes, what is read was written.
#include "journal/log.h"

#include <algorithm>
#include <gtest/gtest.h>

#include "base/crc.h"
#include "base/little_endian.h"
#include "base/rng.h"
#include "journal/testing/disk_simulated.h"

namespace scant::journal {
namespace {

const Identity kIdentity{.job = 11, .model = 22};
constexpr uint64_t kNoLimit = uint64_t{1} << 30;

std::vector<std::byte> body_of(uint64_t past, uint64_t step) {
  base::Rng rng(past, step);
  std::vector<std::byte> out(rng.below(90));
  for (std::byte& one : out) one = static_cast<std::byte>(rng.next());
  return out;
}

void append_as(LogWriter& log, uint16_t version, uint64_t past, uint64_t step) {
  const auto body = body_of(past, step);
  const Bytes piece(body);
  const uint64_t expected = log.next_sequence();
  const auto appended = log.append(step, EntryKind::step, {&piece, 1}, version);
  ASSERT_TRUE(appended.ok()) << appended.error().to_string();
  ASSERT_EQ(appended.value(), expected);
}

void append(LogWriter& log, uint64_t past, uint64_t step) {
  append_as(log, kVersionWithoutFactors, past, step);
}

void append(LogWriter& log, uint64_t past, uint64_t first_step, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) append(log, past, first_step + i);
}

// What was read, as "past:step" of each entry; a body that is none of the pasts' fails.
std::vector<std::pair<uint64_t, uint64_t>> found(Disk& disk, const Log& log) {
  std::vector<std::pair<uint64_t, uint64_t>> all;
  LogReader reader(disk);
  for (const LogEntry& entry : log.entries) {
    const auto body = reader.body(entry);
    EXPECT_TRUE(body.ok());
    if (!body) continue;
    uint64_t past = 0;
    while (past < 5 && !std::ranges::equal(body.value(), body_of(past, entry.header.step))) ++past;
    EXPECT_LT(past, 5U) << "a body that nobody wrote, sequence " << entry.header.sequence;
    all.emplace_back(past, entry.header.step);
  }
  return all;
}

std::vector<std::pair<uint64_t, uint64_t>> steps(uint64_t past, uint64_t first, uint64_t count) {
  std::vector<std::pair<uint64_t, uint64_t>> all;
  for (uint64_t i = 0; i < count; ++i) all.emplace_back(past, first + i);
  return all;
}

Log read(Disk& disk, uint64_t first, uint64_t from = 0) {
  auto log = read_log(disk, kIdentity, first, from);
  EXPECT_TRUE(log.ok()) << log.error().to_string();
  return log ? std::move(log).value() : Log{};
}

size_t segments(Disk& disk) {
  const auto names = disk.list("");
  return static_cast<size_t>(
      std::ranges::count_if(names.value(), [](const auto& n) { return !!segment_sequence(n); }));
}

TEST(Log, IsReadBackFromAnySegmentOn) {
  SimulatedDisk disk;
  EXPECT_TRUE(read(disk, 0).entries.empty());
  LogWriter log(disk, kIdentity, 5, 300);
  for (uint64_t step = 1; step <= 40; ++step) {
    if (step == 21) {
      log.cut();
      log.cut();
    }
    append(log, 0, step);
  }
  EXPECT_GT(segments(disk), 8U);
  const Log all = read(disk, 5);
  EXPECT_FALSE(all.end.has_value());
  EXPECT_EQ(found(disk, all), steps(0, 1, 40));
  EXPECT_EQ(all.entries.back().header.sequence, 44U);
  EXPECT_EQ(found(disk, read(disk, 25)), steps(0, 21, 20));
  EXPECT_TRUE(read(disk, 45).entries.empty());
  EXPECT_FALSE(read(disk, 45).end.has_value());
}

TEST(Log, ASyncSaysWhatIsDurable) {
  SimulatedDisk disk;
  LogWriter log(disk, kIdentity, 0, 300);
  EXPECT_TRUE(log.take_unsynced().empty());
  append(log, 0, 1, 10);
  LogWriter::Unsynced unsynced = log.take_unsynced();
  EXPECT_EQ(unsynced.sequence, 10U);
  EXPECT_FALSE(unsynced.empty());
  append(log, 0, 11, 10);  // beside the sync
  ASSERT_TRUE(LogWriter::sync(disk, unsynced).ok());
  LogWriter::Unsynced second = log.take_unsynced();
  EXPECT_EQ(second.sequence, 20U);
  base::Rng rng(3);
  disk.restart(rng);
  EXPECT_GE(read(disk, 0).entries.size(), 10U);
}

TEST(Log, ASegmentThatWasSyncedAndThenCutIsNotForgotten) {
  SimulatedDisk disk;
  LogWriter log(disk, kIdentity, 0, kNoLimit);
  append(log, 0, 1, 2);
  ASSERT_TRUE(log.sync().ok());
  append(log, 0, 3, 2);
  log.cut();
  ASSERT_TRUE(log.sync().ok());
  EXPECT_TRUE(log.take_unsynced().empty());
  base::Rng rng(4);
  disk.restart(rng);
  EXPECT_EQ(found(disk, read(disk, 0)), steps(0, 1, 4));
}

TEST(Log, CutOffAtAnyByteIsTornThere) {
  SimulatedDisk whole;
  LogWriter writer(whole, kIdentity, 0, kNoLimit);
  append(writer, 0, 1, 6);
  const Log all = read(whole, 0);
  const std::string name = segment_name(0);
  const uint64_t size = whole.sum(name).value().bytes;
  for (uint64_t length = 0; length < size; ++length) {
    SCOPED_TRACE(length);
    SimulatedDisk disk;
    LogWriter log(disk, kIdentity, 0, kNoLimit);
    append(log, 0, 1, 6);
    ASSERT_TRUE(disk.truncate(name, length));
    const Log left = read(disk, 0);
    const auto count =
        static_cast<uint64_t>(std::ranges::count_if(all.entries, [&](const LogEntry& entry) {
          return entry.offset + kEntryHeaderBytes + entry.header.length <= length;
        }));
    EXPECT_EQ(found(disk, left), steps(0, 1, count));
    const bool at_an_end =
        length == kSegmentHeaderBytes || (count > 0 && all.entries[count].offset == length);
    ASSERT_EQ(left.end.has_value(), !at_an_end);
    if (at_an_end) continue;
    EXPECT_FALSE(left.end->damaged);
    EXPECT_EQ(left.end->segment, name);
    EXPECT_EQ(left.end->sequence, count);
    EXPECT_EQ(left.end->offset, length < kSegmentHeaderBytes ? 0 : all.entries[count].offset);
  }
}

TEST(Log, AFlippedBitEndsItThereAndIsDamageWhereRightEntriesFollow) {
  SimulatedDisk disk;
  LogWriter log(disk, kIdentity, 0, kNoLimit);
  append(log, 0, 1, 3);
  log.cut();
  append(log, 0, 4, 3);
  const Log all = read(disk, 0);
  for (const std::string& name : {segment_name(0), segment_name(3)}) {
    const uint64_t size = disk.sum(name).value().bytes;
    for (uint64_t bit = 0; bit < size * 8; ++bit) {
      SCOPED_TRACE(name + ", bit " + std::to_string(bit));
      ASSERT_TRUE(disk.flip_bit(name, bit));
      const Log left = read(disk, 0);
      // The first entry that the byte is of, or that its segment's header makes unreadable.
      const auto hit = static_cast<uint64_t>(
          std::ranges::find_if(all.entries,
                               [&](const LogEntry& entry) {
                                 return entry.segment == name &&
                                        entry.offset + kEntryHeaderBytes + entry.header.length >
                                            bit / 8;
                               }) -
          all.entries.begin());
      EXPECT_EQ(found(disk, left), steps(0, 1, hit));
      ASSERT_TRUE(left.end.has_value());
      const bool header = bit / 8 < kSegmentHeaderBytes;
      EXPECT_EQ(left.end->damaged, header || hit != 5);
      EXPECT_EQ(left.end->segment, name);
      EXPECT_EQ(left.end->sequence, hit);
      EXPECT_EQ(left.end->offset, header ? 0 : all.entries[hit].offset);
      ASSERT_TRUE(disk.flip_bit(name, bit));
    }
  }
  EXPECT_EQ(found(disk, read(disk, 0)), steps(0, 1, 6));
}

TEST(Log, AMissingSegmentIsDamageOnlyIfEntriesFollow) {
  SimulatedDisk disk;
  LogWriter log(disk, kIdentity, 0, kNoLimit);
  append(log, 0, 1, 2);
  log.cut();
  append(log, 0, 3, 2);
  log.cut();
  append(log, 0, 5, 2);
  ASSERT_TRUE(disk.remove(segment_name(2)).ok());
  Log left = read(disk, 0);
  EXPECT_EQ(found(disk, left), steps(0, 1, 2));
  ASSERT_TRUE(left.end.has_value());
  EXPECT_TRUE(left.end->damaged);
  EXPECT_EQ(left.end->segment, segment_name(4));
  EXPECT_EQ(left.end->sequence, 2U);
  // A power cut leaves such a name without its entries.
  ASSERT_TRUE(disk.truncate(segment_name(4), kSegmentHeaderBytes + 3));
  left = read(disk, 0);
  EXPECT_EQ(left.entries.size(), 2U);
  ASSERT_TRUE(left.end.has_value());
  EXPECT_FALSE(left.end->damaged);
}

TEST(Log, AnotherJobIsRefusedFromTheBaseOnAndOverlookedBefore) {
  SimulatedDisk disk;
  LogWriter other(disk, {.job = 12, .model = 22}, 0, kNoLimit);
  append(other, 0, 1, 3);
  EXPECT_TRUE(read(disk, 3).entries.empty());
  const auto refused = read_log(disk, kIdentity, 0);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::refused);
  EXPECT_NE(refused.error().message.find(segment_name(0)), std::string::npos);
}

// Versions of the segments, by number of their first entry.
std::vector<std::pair<uint64_t, uint16_t>> versions(Disk& disk) {
  std::vector<std::pair<uint64_t, uint16_t>> all;
  const auto names = disk.list("");
  for (const std::string& name : names.value()) {
    const auto header = read_segment_header(disk.read(name).value(), name);
    EXPECT_TRUE(header.ok()) << name;
    all.emplace_back(header.value().sequence, header.value().version);
  }
  std::ranges::sort(all);
  return all;
}

TEST(Log, FactorsBeginASegmentOfVersion2WhereTheLastIsNone) {
  constexpr uint16_t kOld = kVersionWithoutFactors;
  SimulatedDisk disk;
  LogWriter log(disk, kIdentity, 0, kNoLimit);
  append(log, 0, 1, 3);
  append_as(log, kVersion, 0, 4);
  append(log, 0, 5, 2);  // without factors, in the same segment
  append_as(log, kVersion, 0, 7);
  log.cut();
  append(log, 0, 8, 2);
  append_as(log, kVersion, 0, 10);
  using Versions = std::vector<std::pair<uint64_t, uint16_t>>;
  EXPECT_EQ(versions(disk), (Versions{{0, kOld}, {3, kVersion}, {7, kOld}, {9, kVersion}}));
  EXPECT_EQ(found(disk, read(disk, 0)), steps(0, 1, 10));
  ASSERT_TRUE(log.sync().ok());
  // Taken up again behind step 4 by a step with factors.
  LogWriter again(disk, kIdentity, 20, kNoLimit, 4);
  append_as(again, kVersion, 1, 5);
  append(again, 1, 6, 1);
  auto expected = steps(0, 1, 4);
  const auto more = steps(1, 5, 2);
  expected.insert(expected.end(), more.begin(), more.end());
  EXPECT_EQ(found(disk, read(disk, 0)), expected);
}

TEST(Log, AnotherVersionIsUnsupported) {
  SimulatedDisk disk;
  auto header = write_segment_header({.identity = kIdentity, .sequence = 0, .joins = 0});
  base::store_little(header.data() + 4, uint16_t{9});
  base::store_little(header.data() + 44, base::crc32c(Bytes(header).first(44)));
  auto file = disk.create(segment_name(0));
  const Bytes piece(header);
  ASSERT_TRUE(file.value()->append({&piece, 1}).ok());
  const auto log = read_log(disk, kIdentity, 0);
  ASSERT_FALSE(log.ok());
  EXPECT_EQ(log.error().code, ErrorCode::unsupported);
}

// Behind segments of this version too: it is not the end of what can be read.
TEST(Log, ANewerVersionWithoutThisOnesChecksumIsUnsupported) {
  SimulatedDisk disk;
  LogWriter known(disk, kIdentity, 0, kNoLimit);
  append(known, 0, 1, 2);
  std::vector<std::byte> header(20);
  base::store_little(header.data(), kSegmentMagic);
  base::store_little(header.data() + 4, uint16_t{3});
  auto file = disk.create(segment_name(2));
  const Bytes piece(header);
  ASSERT_TRUE(file.value()->append({&piece, 1}).ok());
  const auto log = read_log(disk, kIdentity, 0);
  ASSERT_FALSE(log.ok());
  EXPECT_EQ(log.error().code, ErrorCode::unsupported);
  EXPECT_NE(log.error().message.find(segment_name(2) + " is of version 3"), std::string::npos);
}

TEST(Log, ASegmentUnderAnothersNameIsNotRead) {
  SimulatedDisk disk;
  LogWriter log(disk, kIdentity, 0, kNoLimit);
  append(log, 0, 1, 2);
  log.cut();
  append(log, 0, 3, 2);
  ASSERT_TRUE(disk.remove(segment_name(0)).ok());
  ASSERT_TRUE(disk.rename(segment_name(2), segment_name(0)).ok());
  const Log left = read(disk, 0);
  EXPECT_TRUE(left.entries.empty());
  ASSERT_TRUE(left.end.has_value());
  EXPECT_TRUE(left.end->damaged);
}

TEST(Log, ATornEndIsTakenUpAtTheMissingNumber) {
  SimulatedDisk disk;
  LogWriter log(disk, kIdentity, 0, kNoLimit);
  append(log, 0, 1, 4);
  const uint64_t size = disk.sum(segment_name(0)).value().bytes;
  ASSERT_TRUE(disk.truncate(segment_name(0), size - 1));
  ASSERT_EQ(read(disk, 0).entries.size(), 3U);
  LogWriter again(disk, kIdentity, 3, kNoLimit);
  append(again, 1, 4, 3);
  const Log all = read(disk, 0);
  EXPECT_FALSE(all.end.has_value());
  auto expected = steps(0, 1, 3);
  for (const auto& one : steps(1, 4, 3)) expected.push_back(one);
  EXPECT_EQ(found(disk, all), expected);
}

// Numbers 0 to 5 in two segments, of which 2 is damaged: the log is taken up behind 1 with a number
// that nobody used.
TEST(Log, DamageIsTakenUpWithAFreshNumber) {
  SimulatedDisk disk;
  LogWriter log(disk, kIdentity, 0, kNoLimit);
  append(log, 0, 1, 4);
  log.cut();
  append(log, 0, 5, 2);
  ASSERT_TRUE(disk.flip_bit(segment_name(0), read(disk, 0).entries[2].offset * 8));
  ASSERT_EQ(read(disk, 0).entries.size(), 2U);
  LogWriter again(disk, kIdentity, 6, kNoLimit, 2);
  append(again, 1, 3, 2);
  again.cut();
  append(again, 1, 5, 1);
  const Log all = read(disk, 0);
  EXPECT_FALSE(all.end.has_value());
  auto expected = steps(0, 1, 2);
  for (const auto& one : steps(1, 3, 3)) expected.push_back(one);
  EXPECT_EQ(found(disk, all), expected);
}

TEST(Log, StepsThatWereTakenBackDoNotCount) {
  SimulatedDisk disk;
  LogWriter log(disk, kIdentity, 0, kNoLimit);
  append(log, 0, 1, 3);
  log.cut();  // a base of step 3, sequence 3
  append(log, 0, 4, 4);
  LogWriter second(disk, kIdentity, 7, kNoLimit, 3);  // took back to that base
  append(second, 1, 4, 1);
  LogWriter third(disk, kIdentity, 8, kNoLimit, 3);  // and again
  append(third, 2, 4, 2);
  EXPECT_EQ(found(disk, read(disk, 3)), steps(2, 4, 2));
  EXPECT_EQ(found(disk, read(disk, 3, 8)), steps(2, 4, 2));
  EXPECT_EQ(found(disk, read(disk, 3, 10)), steps(0, 0, 0));
  auto expected = steps(0, 1, 3);
  for (const auto& one : steps(2, 4, 2)) expected.push_back(one);
  EXPECT_EQ(found(disk, read(disk, 0)), expected);
  // A base of the past that was taken back: its own log is all that it has.
  LogWriter fourth(disk, kIdentity, 10, kNoLimit, 0);
  append(fourth, 3, 1, 1);
  const Log stale = read(disk, 8);
  EXPECT_EQ(found(disk, stale), steps(2, 4, 2));
  ASSERT_TRUE(stale.end.has_value());
  EXPECT_TRUE(stale.end->damaged);
}

TEST(Log, AStepThatDoesNotGrowIsOfAnotherPast) {
  SimulatedDisk disk;
  LogWriter log(disk, kIdentity, 0, kNoLimit);
  append(log, 0, 1, 4);
  LogWriter careless(disk, kIdentity, 4, kNoLimit);  // does not say what it joins
  append(careless, 1, 3, 3);
  const Log left = read(disk, 0);
  EXPECT_EQ(found(disk, left), steps(0, 1, 4));
  ASSERT_TRUE(left.end.has_value());
  EXPECT_TRUE(left.end->damaged);
  EXPECT_EQ(left.end->segment, segment_name(4));
}

TEST(Log, BehindAStepThatWasSkippedNothingIsReached) {
  SimulatedDisk disk;
  LogWriter log(disk, kIdentity, 0, kNoLimit);
  append(log, 0, 1, 2);
  log.skip();
  append(log, 0, 4, 2);
  EXPECT_EQ(log.next_sequence(), 5U);
  EXPECT_EQ(found(disk, read(disk, 0)), steps(0, 1, 2));
  log.cut();  // a base of step 5, sequence 5
  append(log, 0, 6, 1);
  EXPECT_EQ(found(disk, read(disk, 5)), steps(0, 6, 1));
  LogWriter joining(disk, kIdentity, 6, kNoLimit, 6);
  joining.skip();  // the first after a restart
  append(joining, 1, 8, 1);
  EXPECT_EQ(found(disk, read(disk, 5)), steps(0, 6, 1));
}

TEST(Log, TheHighestNumberIsFoundBehindDamage) {
  SimulatedDisk disk;
  LogWriter log(disk, kIdentity, 4, kNoLimit);
  const std::string name = segment_name(4);
  append(log, 0, 1, 5);
  const uint64_t second = read(disk, 4).entries[1].offset;
  const auto highest = [&] { return highest_sequence(name, disk.read(name).value()); };
  EXPECT_EQ(highest(), 8U);
  ASSERT_TRUE(disk.flip_bit(name, 3));
  ASSERT_TRUE(disk.flip_bit(name, second * 8 + 64));
  EXPECT_EQ(highest(), 8U);
  ASSERT_TRUE(disk.truncate(name, second + 10));
  EXPECT_EQ(highest(), 4U);
  ASSERT_TRUE(disk.truncate(name, 30));
  EXPECT_FALSE(highest().has_value());
}

TEST(Log, AReaderNoticesWhatChangedSince) {
  SimulatedDisk disk;
  LogWriter log(disk, kIdentity, 0, kNoLimit);
  append(log, 0, 1, 2);
  const Log all = read(disk, 0);
  ASSERT_TRUE(disk.flip_bit(segment_name(0), all.entries[1].offset * 8 + 1));
  LogReader reader(disk);
  EXPECT_TRUE(reader.body(all.entries[0]).ok());
  const auto changed = reader.body(all.entries[1]);
  ASSERT_FALSE(changed.ok());
  EXPECT_EQ(changed.error().code, ErrorCode::corrupt);
  LogEntry beyond = all.entries[0];
  beyond.offset = 1 << 20;
  EXPECT_FALSE(reader.body(beyond).ok());
}

}  // namespace
}  // namespace scant::journal
