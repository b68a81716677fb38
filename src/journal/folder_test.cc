// A journal's folder: which state is found when bases, manifest or log are missing, damaged or
// taken back, and what may be removed. Bases here are small files whose content tells their step.
#include "journal/folder.h"

#include <algorithm>
#include <gtest/gtest.h>

#include "base/crc.h"
#include "journal/testing/disk_simulated.h"

namespace scant::journal {
namespace {

const Identity kIdentity{.job = 11, .model = 22};

Bytes bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void write(Disk& disk, const std::string& name, const std::string& text) {
  auto file = disk.create(name);
  ASSERT_TRUE(file.ok()) << file.error().to_string();
  const Bytes piece = bytes_of(text);
  ASSERT_TRUE(file.value()->append({&piece, 1}).ok());
  ASSERT_TRUE(file.value()->sync().ok());
}

std::string model_of(uint64_t step) { return "the model of step " + std::to_string(step); }

BaseIndex index_of(uint64_t step, uint64_t sequence, uint32_t timeline) {
  const std::string model = model_of(step);
  return {.identity = kIdentity,
          .timeline = timeline,
          .step = step,
          .sequence = sequence,
          .ranks = 1,
          .files = {{"model", model.size(), base::crc32c(bytes_of(model))}}};
}

void begin_base(Disk& disk, uint64_t step) {
  ASSERT_TRUE(disk.make_folder(part_name(step)).ok());
  write(disk, part_name(step) + "/model", model_of(step));
}

void seal(Disk& disk, uint64_t step, uint64_t sequence, uint64_t oldest, uint32_t timeline = 0) {
  begin_base(disk, step);
  const Result<void> sealed = seal_base(disk, index_of(step, sequence, timeline), oldest);
  ASSERT_TRUE(sealed.ok()) << sealed.error().to_string();
}

void log_steps(Disk& disk, uint64_t first_step, uint64_t count, uint64_t sequence,
               std::optional<uint64_t> joins = std::nullopt) {
  LogWriter log(disk, kIdentity, sequence, 1 << 20, joins);
  for (uint64_t i = 0; i < count; ++i) {
    const std::string text = "step " + std::to_string(first_step + i);
    const Bytes piece = bytes_of(text);
    ASSERT_TRUE(log.append(first_step + i, EntryKind::step, {&piece, 1}).ok());
  }
  ASSERT_TRUE(log.sync().ok());
}

// Bases of steps 0, 10 and 20, and three steps behind: one entry a step, numbered from 0.
void write_journal(Disk& disk) {
  for (const uint64_t step : {0U, 10U, 20U}) {
    seal(disk, step, step, 0);
    log_steps(disk, step + 1, step == 20 ? 3 : 10, step);
  }
}

Contents looked(Disk& disk) {
  auto contents = look(disk);
  EXPECT_TRUE(contents.ok()) << contents.error().to_string();
  return contents ? std::move(contents).value() : Contents{};
}

std::optional<State> newest(Disk& disk) {
  auto state = newest_state(disk, looked(disk));
  EXPECT_TRUE(state.ok()) << state.error().to_string();
  return state ? std::move(state).value() : std::nullopt;
}

// Steps follow each other from the base on, and each body is of its step.
void expect_right(Disk& disk, const State& state) {
  const auto model = disk.read(state.base.folder + "/model");
  ASSERT_TRUE(model.ok());
  EXPECT_EQ(text_of(model.value()), model_of(state.base.index.step));
  uint64_t step = state.base.index.step;
  LogReader reader(disk);
  for (const LogEntry& entry : state.log.entries) {
    EXPECT_EQ(entry.header.step, ++step);
    const auto body = reader.body(entry);
    ASSERT_TRUE(body.ok());
    EXPECT_TRUE(std::ranges::equal(body.value(), bytes_of("step " + std::to_string(step))));
  }
}

void expect_state(Disk& disk, uint64_t base, uint64_t step) {
  const auto state = newest(disk);
  ASSERT_TRUE(state.has_value());
  EXPECT_EQ(state->base.index.step, base);
  EXPECT_EQ(state->step(), step);
  expect_right(disk, *state);
}

bool has(Disk& disk, const std::string& name) {
  return std::ranges::binary_search(disk.list("").value(), name);
}

TEST(Folder, AnEmptyOneHasNoState) {
  SimulatedDisk disk;
  EXPECT_TRUE(looked(disk).empty());
  EXPECT_FALSE(newest(disk).has_value());
  EXPECT_EQ(fresh_sequence(disk, {}).value(), 0U);
  begin_base(disk, 0);  // a job that ended before its first base
  log_steps(disk, 1, 2, 0);
  EXPECT_FALSE(newest(disk).has_value());
  EXPECT_EQ(fresh_sequence(disk, {}).value(), 2U);
}

TEST(Folder, TheNewestBaseAndTheLogBehindItAreTheState) {
  SimulatedDisk disk;
  write_journal(disk);
  const Contents contents = looked(disk);
  EXPECT_TRUE(contents.problems.empty());
  EXPECT_EQ(contents.bases.size(), 3U);
  const Manifest expected{.identity = kIdentity, .base = 20, .sequence = 20, .oldest = 0};
  EXPECT_EQ(contents.manifest, expected);
  expect_state(disk, 20, 23);
  EXPECT_FALSE(newest(disk)->log.end.has_value());
  EXPECT_EQ(newest(disk)->joins(), 23U);
  EXPECT_EQ(newest(disk)->joins(true), 20U);
}

TEST(Folder, ADamagedBaseGivesWayToTheOneBeforeAndItsLog) {
  for (const char* file : {"model", "INDEX"}) {
    SimulatedDisk disk;
    write_journal(disk);
    const std::string name = base_name(20) + "/" + file;
    const uint64_t bytes = disk.sum(name).value().bytes;
    for (uint64_t bit = 0; bit < bytes * 8; ++bit) {
      SCOPED_TRACE(name + ", bit " + std::to_string(bit));
      ASSERT_TRUE(disk.flip_bit(name, bit));
      const Contents contents = looked(disk);
      // Of a checksum in hexadecimal either case is right.
      if (contents.problems.empty()) {
        EXPECT_TRUE(file == std::string("INDEX") && bit % 8 == 5) << bit;
        expect_state(disk, 20, 23);
      } else {
        EXPECT_NE(contents.problems[0].find(base_name(20)), std::string::npos);
        EXPECT_NE(contents.problems[0].find(file), std::string::npos);
        expect_state(disk, 10, 23);
      }
      ASSERT_TRUE(disk.flip_bit(name, bit));
    }
    for (uint64_t length = 0; length < bytes; ++length) {
      SCOPED_TRACE(name + ", length " + std::to_string(length));
      SimulatedDisk cut;
      write_journal(cut);
      ASSERT_TRUE(cut.truncate(name, length));
      EXPECT_EQ(looked(cut).problems.size(), 1U);
      expect_state(cut, 10, 23);
    }
    ASSERT_TRUE(disk.remove(name).ok());
    EXPECT_EQ(looked(disk).problems.size(), 1U);
    expect_state(disk, 10, 23);
  }
}

TEST(Folder, ADamagedManifestIsToldOfAndNotNeeded) {
  SimulatedDisk disk;
  write_journal(disk);
  const uint64_t bytes = disk.sum(kManifestName).value().bytes;
  for (uint64_t bit = 0; bit < bytes * 8; ++bit) {
    SCOPED_TRACE(bit);
    ASSERT_TRUE(disk.flip_bit(kManifestName, bit));
    const Contents contents = looked(disk);
    EXPECT_EQ(contents.problems.size(), contents.manifest ? 0U : 1U);
    expect_state(disk, 20, 23);
    ASSERT_TRUE(disk.flip_bit(kManifestName, bit));
  }
  ASSERT_TRUE(disk.remove(kManifestName).ok());
  EXPECT_TRUE(looked(disk).problems.empty());
  expect_state(disk, 20, 23);
}

TEST(Folder, WithoutAWholeBaseTheErrorTellsOfEach) {
  SimulatedDisk disk;
  seal(disk, 0, 0, 0);
  seal(disk, 10, 10, 0);
  ASSERT_TRUE(disk.flip_bit(base_name(0) + "/model", 1));
  ASSERT_TRUE(disk.truncate(base_name(10) + "/model", 3));
  const auto state = newest_state(disk, looked(disk));
  ASSERT_FALSE(state.ok());
  EXPECT_EQ(state.error().code, ErrorCode::corrupt);
  EXPECT_NE(state.error().message.find(base_name(0)), std::string::npos);
  EXPECT_NE(state.error().message.find("model has 3 bytes"), std::string::npos);
  EXPECT_TRUE(look(disk, false).value().problems.empty()) << "files were not to be checked";
}

TEST(Folder, AMissingBaseThatTheManifestNamesIsAProblem) {
  SimulatedDisk disk;
  write_journal(disk);
  ASSERT_TRUE(disk.remove(base_name(20)).ok());
  ASSERT_EQ(looked(disk).problems.size(), 1U);
  EXPECT_NE(looked(disk).problems[0].find(base_name(20)), std::string::npos);
  expect_state(disk, 10, 23);
}

TEST(Folder, AnotherVersionIsUnsupported) {
  for (const std::string& name : {std::string(kManifestName), base_name(20) + "/" + kIndexName}) {
    SimulatedDisk disk;
    write_journal(disk);
    const std::string lines = name == kManifestName ? "scant-journal 2\n" : "scant-base 2\n";
    std::array<char, 9> hex{};
    std::snprintf(hex.data(), hex.size(), "%08x", base::crc32c(bytes_of(lines)));
    write(disk, name, lines + "crc32c " + hex.data() + "\n");
    const auto contents = look(disk);
    ASSERT_FALSE(contents.ok()) << name;
    EXPECT_EQ(contents.error().code, ErrorCode::unsupported);
    EXPECT_NE(contents.error().message.find(name), std::string::npos);
  }
}

// Steps behind 10 are taken back: what remains of them is neither found nor kept.
TEST(Folder, WhatWasTakenBackDoesNotCount) {
  SimulatedDisk disk;
  write_journal(disk);
  const uint64_t fresh = fresh_sequence(disk, looked(disk)).value();
  EXPECT_EQ(fresh, 23U);
  const Manifest manifest{.identity = kIdentity, .timeline = 1, .base = 10, .sequence = fresh};
  ASSERT_TRUE(write_manifest_file(disk, manifest).ok());
  EXPECT_EQ(looked(disk).bases.size(), 2U);
  expect_state(disk, 10, 10);
  ASSERT_TRUE(clear_old(disk, manifest).ok());
  EXPECT_FALSE(has(disk, base_name(20)));
  EXPECT_FALSE(has(disk, part_name(20)));
  EXPECT_TRUE(has(disk, base_name(0)));
  log_steps(disk, 11, 5, fresh, 10);
  expect_state(disk, 10, 15);
  seal(disk, 15, fresh + 5, 0, 1);
  log_steps(disk, 16, 2, fresh + 5);
  expect_state(disk, 15, 17);
  // Without the newest bases the way leads through the first segments, not those taken back.
  ASSERT_TRUE(disk.flip_bit(base_name(15) + "/model", 0));
  expect_state(disk, 10, 17);
  ASSERT_TRUE(disk.flip_bit(base_name(10) + "/model", 0));
  expect_state(disk, 0, 17);
  ASSERT_TRUE(disk.flip_bit(kManifestName, 0));
  EXPECT_FALSE(newest_state(disk, looked(disk)).ok()) << "steps of timeline 0 do not come back";
}

TEST(Folder, ClearingKeepsWhatTheOldestBaseNeeds) {
  SimulatedDisk disk;
  write_journal(disk);
  begin_base(disk, 30);
  begin_base(disk, 40);
  write(disk, kManifestNext, "half");
  write(disk, "notes.txt", "somebody else's");
  const Manifest manifest{.identity = kIdentity, .base = 20, .sequence = 20, .oldest = 10};
  ASSERT_TRUE(clear_old(disk, manifest, 40).ok());
  const std::vector<std::string> expected{kManifestName, base_name(10),    base_name(20),
                                          part_name(40), segment_name(10), segment_name(20),
                                          "notes.txt"};
  EXPECT_EQ(disk.list("").value(), expected);
  expect_state(disk, 20, 23);
  ASSERT_TRUE(clear_old(disk, manifest).ok());
  EXPECT_FALSE(has(disk, part_name(40)));
  const uint64_t operations = disk.operations();
  ASSERT_TRUE(clear_old(disk, manifest).ok());
  EXPECT_EQ(disk.operations(), operations) << "nothing to do, nothing done";
}

TEST(Folder, AStateMayBeginWithABaseOfItsStep) {
  SimulatedDisk disk;
  write_journal(disk);
  const auto newest_of_all = state_from(disk, std::nullopt);
  ASSERT_TRUE(newest_of_all.ok() && newest_of_all.value().has_value());
  EXPECT_EQ(newest_of_all.value()->base.index.step, 20U);
  const auto of_ten = state_from(disk, 10);
  ASSERT_TRUE(of_ten.ok() && of_ten.value().has_value());
  EXPECT_EQ(of_ten.value()->base.index.step, 10U);
  const auto of_none = state_from(disk, 15);
  ASSERT_FALSE(of_none.ok());
  EXPECT_EQ(of_none.error().code, ErrorCode::corrupt);
}

TEST(Folder, AnotherManifestTakesWhatItLeavesOut) {
  SimulatedDisk disk;
  write_journal(disk);
  const Manifest manifest = manifest_of(index_of(20, 20, 0), 30);
  EXPECT_EQ(manifest.oldest, 20U) << "a base keeps itself";
  ASSERT_TRUE(replace_manifest(disk, manifest).ok());
  EXPECT_EQ(looked(disk).manifest, manifest);
  EXPECT_EQ(looked(disk).bases.size(), 1U);
  EXPECT_FALSE(has(disk, base_name(10)));
  expect_state(disk, 20, 23);
}

TEST(Folder, ClearingKeepsAllSegmentsWhereABaseCannotBeRead) {
  SimulatedDisk disk;
  write_journal(disk);
  ASSERT_TRUE(disk.truncate(base_name(10) + "/" + kIndexName, 5));
  ASSERT_TRUE(
      clear_old(disk, {.identity = kIdentity, .base = 20, .sequence = 20, .oldest = 10}).ok());
  EXPECT_FALSE(has(disk, base_name(0)));
  EXPECT_TRUE(has(disk, base_name(10)));
  EXPECT_TRUE(has(disk, segment_name(0)));
}

TEST(Folder, ClearingWithoutAManifestRemovesOnlyWhatWasBegun) {
  SimulatedDisk disk;
  write_journal(disk);
  ASSERT_TRUE(disk.remove(kManifestName).ok());
  begin_base(disk, 30);
  const auto contents = look(disk);
  ASSERT_TRUE(contents.ok());
  ASSERT_FALSE(contents.value().manifest.has_value());
  ASSERT_TRUE(clear_begun(disk, contents.value()).ok());
  EXPECT_FALSE(has(disk, part_name(30)));
  EXPECT_EQ(looked(disk).bases.size(), 3U);
  for (const uint64_t step : {0U, 10U, 20U}) EXPECT_TRUE(has(disk, segment_name(step)));
}

TEST(Folder, AFreshNumberIsAboveEverything) {
  SimulatedDisk disk;
  write_journal(disk);
  // Behind damage there may be more.
  ASSERT_TRUE(disk.flip_bit(segment_name(20), (kSegmentHeaderBytes + 3) * 8));
  EXPECT_EQ(fresh_sequence(disk, looked(disk)).value(), 23U);
  write(disk, segment_name(30), "");
  EXPECT_EQ(fresh_sequence(disk, looked(disk)).value(), 31U);
  const Manifest manifest{.identity = kIdentity, .timeline = 1, .base = 20, .sequence = 50};
  ASSERT_TRUE(write_manifest_file(disk, manifest).ok());
  EXPECT_EQ(fresh_sequence(disk, looked(disk)).value(), 50U);
}

TEST(Folder, ADamagedBaseGivesWayToANewOneOfItsStep) {
  SimulatedDisk disk;
  write_journal(disk);
  ASSERT_TRUE(disk.truncate(base_name(20) + "/model", 3));
  seal(disk, 20, 23, 0);
  EXPECT_TRUE(looked(disk).problems.empty());
  expect_state(disk, 20, 20);
}

TEST(Folder, AWholeBaseStaysAndIsNamedAnew) {
  SimulatedDisk disk;
  seal(disk, 0, 0, 0);
  log_steps(disk, 1, 0, 0);
  ASSERT_TRUE(disk.make_folder(part_name(0)).ok());
  write(disk, part_name(0) + "/other", "of the same step");
  ASSERT_TRUE(seal_base(disk, index_of(0, 7, 0), 0).ok());
  EXPECT_EQ(looked(disk).manifest->sequence, 7U);
  EXPECT_TRUE(looked(disk).problems.empty());
  EXPECT_FALSE(has(disk, part_name(0)));
  log_steps(disk, 1, 2, 7, 0);
  expect_state(disk, 0, 2);
}

TEST(Folder, ABaseThatIsBeingRemovedIsNoProblem) {
  SimulatedDisk disk;
  write_journal(disk);
  const Manifest manifest{.identity = kIdentity, .base = 20, .sequence = 20, .oldest = 10};
  ASSERT_TRUE(write_manifest_file(disk, manifest).ok());
  ASSERT_TRUE(disk.remove(base_name(0) + "/" + kIndexName).ok());
  EXPECT_TRUE(looked(disk).problems.empty());
}

TEST(Folder, WhatAKilledProcessLeftIsDurableAfterASync) {
  SimulatedDisk disk;
  write_journal(disk);
  LogWriter log(disk, kIdentity, 23, 100);
  for (uint64_t step = 24; step < 34; ++step) {
    const std::string text = "step " + std::to_string(step);
    const Bytes piece = bytes_of(text);
    ASSERT_TRUE(log.append(step, EntryKind::step, {&piece, 1}).ok());
  }
  disk.restart_process();
  ASSERT_TRUE(sync_state(disk, *newest(disk)).ok());
  base::Rng rng(1);
  disk.restart(rng);
  expect_state(disk, 20, 33);
}

}  // namespace
}  // namespace scant::journal
