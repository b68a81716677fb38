// Journals: every file of a folder that the writers of log and bases leave, and what a job's whole
// life leaves on a disk. Nothing in them holds a time; a lock is the Python module's.
#include <gtest/gtest.h>

#include "codec/accumulate.h"
#include "codec/encoder.h"
#include "collective/testing/threads_as_ranks.h"
#include "golden.h"
#include "journal/base_writer.h"
#include "journal/format.h"
#include "journal/testing/crash_training.h"
#include "journal/testing/factored.h"
#include "journal/writer.h"

namespace scant::golden {
namespace {

using codec::Point;
using codec::ValueKind;
using journal::PartKind;

constexpr journal::Identity kIdentity{.job = 0x1234567890abcdef, .model = 0xfedcba0987654321};
constexpr codec::Shape kShape{3, 1700};
constexpr uint64_t kRawBytes = 400;
constexpr uint32_t kRanks = 3;
constexpr Duration kLimit = std::chrono::seconds(60);  // a limit, not a measure

// One file after the other; bases are folders.
void add_files(Lines& lines, const std::string& name, journal::Disk& disk,
               const std::string& folder = {}) {
  const auto names = disk.list(folder);
  ASSERT_TRUE(names.ok()) << names.error().to_string();
  ASSERT_FALSE(names.value().empty()) << folder;
  for (const std::string& one : names.value()) {
    if (journal::base_step(one) || journal::part_step(one)) {
      add_files(lines, name, disk, one);
      continue;
    }
    const std::string path = folder.empty() ? one : folder + "/" + one;
    const auto bytes = disk.read(path);
    ASSERT_TRUE(bytes.ok()) << bytes.error().to_string();
    lines.add("journal/" + name + "/" + path, digest_of(bytes.value()));
  }
}

// What one step gave: tensor 0 from records, tensor 1 as it is, tensor 2 without a gradient.
struct Given {
  std::vector<std::vector<std::byte>> records;
  std::vector<float> gradient = std::vector<float>(kShape.elements());
  std::vector<float> raw;
  PartKind kind = PartKind::averages;

  [[nodiscard]] std::vector<Bytes> found() const {
    return {std::as_bytes(std::span(gradient)), std::as_bytes(std::span(raw)), {}};
  }
  [[nodiscard]] std::vector<journal::Part> parts() const {
    std::vector<journal::Part> all;
    for (const auto& record : records) all.push_back({.kind = kind, .where = 0, .bytes = record});
    all.push_back({.kind = PartKind::raw, .where = 1, .bytes = std::as_bytes(std::span(raw))});
    return all;
  }
};

// By turns: averages, records of all ranks, clipped, changed by who knows what, values of bf16.
Given give(uint64_t step, codec::Workspace& workspace) {
  constexpr Point kPoints[] = {{0.1, ValueKind::q4}, {1.0, ValueKind::q3}, {0.05, ValueKind::bf16}};
  Given given;
  const bool gathered = step % 2 == 1;
  given.kind = gathered ? PartKind::gathered : PartKind::averages;
  std::vector<std::byte> all;
  for (uint32_t rank = 0; rank < (gathered ? kRanks : 1); ++rank) {
    auto encoder = codec::Encoder::create(0, kShape, {});
    codec::RecordBuffer buffer;
    const auto values = draw_values(Family::normal, kShape.elements(), 10 * step + rank);
    EXPECT_TRUE(encoder.value().encode(values, kPoints[step % 3], workspace, buffer).ok());
    given.records.emplace_back(buffer.view().begin(), buffer.view().end());
    all.insert(all.end(), buffer.view().begin(), buffer.view().end());
  }
  const auto views = codec::parse_all(all);
  EXPECT_TRUE(codec::accumulate(views.value(), 0, kShape, 0, given.gradient,
                                gathered ? 1.0f / kRanks : 1.0f, workspace)
                  .ok());
  if (step % 5 == 2)
    for (float& value : given.gradient) value *= 0.37f;
  if (step % 5 == 3) given.gradient[77] += 1.0f;
  given.raw = draw_values(step % 5 == 4 ? Family::zero : Family::normal, kRawBytes / 4, step);
  return given;
}

std::string settings_of(uint64_t step) {
  return step % 4 == 0 ? R"({"lr": 0.)" + std::to_string(step) + "}" : std::string();
}

Digest log_steps(journal::Writer& writer, uint64_t first, uint64_t count) {
  codec::Workspace workspace;
  Digest digest;
  for (uint64_t step = first; step < first + count; ++step) {
    const Given given = give(step, workspace);
    const Result<void> begun =
        writer.begin(step, given.found(), given.parts(), kRanks, settings_of(step));
    EXPECT_TRUE(begun.ok()) << begun.error().to_string();
    const auto logged = writer.end();
    EXPECT_TRUE(logged.ok()) << logged.error().to_string();
    if (!logged) return digest;
    digest.add_number(logged.value().sequence);
    digest.add_number(logged.value().bytes);
    digest.add_number(uint64_t{logged.value().proven} << 1 | uint64_t{logged.value().as_is});
  }
  return digest;
}

void write_base(journal::BaseWriter& writer, uint64_t step, uint64_t sequence) {
  const auto model = draw_values(Family::normal, 20000, step);
  const auto moments = draw_values(Family::heavy, 3001, step + 1);
  std::vector<journal::BaseSource> files(3);
  files[0].name = "model-0000.safetensors";
  files[0].head = std::vector<std::byte>(17, std::byte{9});
  files[0].copied = {std::as_bytes(std::span(model)), std::as_bytes(std::span(moments))};
  files[1].name = "optimizer-0000.safetensors";
  files[1].copied = {std::as_bytes(std::span(moments))};
  files[2].name = "residuals-0000.safetensors";
  files[2].made = [] { return std::vector<std::byte>(333, std::byte{5}); };
  files[2].tensor = "residuals";
  ASSERT_TRUE(writer
                  .start({.identity = kIdentity,
                          .timeline = 0,
                          .step = step,
                          .sequence = sequence,
                          .ranks = 1,
                          .files = {}},
                         std::move(files))
                  .ok());
  const std::string state = R"({"cursor": )" + std::to_string(step) + "}";
  const auto* bytes = reinterpret_cast<const std::byte*>(state.data());
  ASSERT_TRUE(writer.finish_copying("state-0000.json", {bytes, bytes + state.size()}).ok());
  const auto done = writer.poll(kLimit);
  ASSERT_TRUE(done.ok()) << done.error().to_string();
  ASSERT_TRUE(done.value().has_value());
  EXPECT_TRUE(done.value()->sealed);
}

// A base, steps, a base, steps in several segments; then taken up again.
void write_training(Lines& lines, journal::Disk& disk) {
  const journal::WriterOptions small{.segment_bytes_max = 30'000};
  const std::vector<uint64_t> sizes{kShape.elements() * sizeof(float), kRawBytes, 12};
  auto bases = journal::BaseWriter::create(disk, {});
  ASSERT_TRUE(bases.ok());
  write_base(*bases.value(), 0, 0);
  {
    auto writer = journal::Writer::create(disk, kIdentity, 0, sizes, small);
    ASSERT_TRUE(writer.ok());
    lines.add("journal/training/logged", log_steps(*writer.value(), 1, 10));
    const auto sequence = writer.value()->cut();
    ASSERT_TRUE(sequence.ok());
    write_base(*bases.value(), 10, sequence.value());
    lines.add("journal/training/logged_then", log_steps(*writer.value(), 11, 12));
    ASSERT_TRUE(writer.value()->sync().ok());
  }
  const auto contents = journal::look(disk);
  ASSERT_TRUE(contents.ok());
  const auto state = journal::newest_state(disk, contents.value());
  ASSERT_TRUE(state.ok() && state.value().has_value());
  EXPECT_EQ(state.value()->step(), 22u);
  const auto sequence = journal::fresh_sequence(disk, contents.value());
  ASSERT_TRUE(sequence.ok());
  journal::WriterOptions again = small;
  again.joins = state.value()->joins();
  auto writer = journal::Writer::create(disk, kIdentity, sequence.value(), sizes, again);
  ASSERT_TRUE(writer.ok());
  lines.add("journal/training/logged_again", log_steps(*writer.value(), 23, 3));
}

void add_training(Lines& lines) {
  const collective::TemporaryDirectory directory;
  auto disk = journal::open_disk(directory.path() + "/journal", true);
  ASSERT_TRUE(disk.ok()) << disk.error().to_string();
  write_training(lines, *disk.value());
  add_files(lines, "training", *disk.value());
}

// Steps with factors between some without: segments of both versions.
void add_factors(Lines& lines) {
  using journal::testing::Factored;
  journal::SimulatedDisk disk;
  auto writer = journal::Writer::create(disk, kIdentity, 0, Factored::bytes(), {});
  ASSERT_TRUE(writer.ok());
  for (uint64_t step = 1; step <= 6; ++step) {
    const bool gathered = step % 2 == 0;
    const Factored given(step, gathered ? PartKind::gathered : PartKind::averages,
                         gathered ? kRanks : 1);
    const float factor = step == 3 ? 0.37f : 1.0f;
    auto averages = given.averages;
    for (std::vector<float>& tensor : averages)
      for (float& value : tensor) value *= factor;
    const std::vector<Bytes> found{std::as_bytes(std::span(averages[0])),
                                   std::as_bytes(std::span(averages[1]))};
    const bool records = step != 1 && step != 5;
    const Result<void> begun =
        writer.value()->begin(step, found, records ? given.parts() : std::vector<journal::Part>(),
                              kRanks, settings_of(step));
    ASSERT_TRUE(begun.ok()) << begun.error().to_string();
    const auto logged = writer.value()->end();
    ASSERT_TRUE(logged.ok()) << logged.error().to_string();
    EXPECT_EQ(logged.value().as_is, !records);
    if (step == 5) {
      EXPECT_TRUE(writer.value()->cut().ok());
    }
  }
  ASSERT_TRUE(writer.value()->sync().ok());
  add_files(lines, "factors", disk);
}

// Bases named at once and while steps go on, a restart that goes on, and two that take steps back.
void add_lives(Lines& lines) {
  struct Life {
    size_t exact;
    const char* script;
  };
  journal::SimulatedDisk disk;
  journal::testing::Truth truth;
  int number = 0;
  for (const Life& life : {Life{0, "bzeeseeeesebeseezeesbz"}, Life{0, "eeseeebzeese"},
                           Life{1, "eesbezes"}, Life{2, "eesees"}, Life{1, "eebzees"}}) {
    journal::testing::Training training(disk, truth);
    ASSERT_TRUE(training.begin(life.exact).ok());
    ASSERT_TRUE(training.play(life.script).ok());
    add_files(lines, "life_" + std::to_string(++number), disk);
  }
}

void add_texts(Lines& lines) {
  const auto add = [&lines](const std::string& name, const std::string& text) {
    Digest digest;
    digest.add(std::as_bytes(std::span(text)));
    lines.add("journal/text/" + name, digest);
  };
  add("manifest",
      journal::write_manifest(
          {.identity = kIdentity, .timeline = 3, .base = 120, .sequence = 121, .oldest = 80}));
  add("index", journal::write_index({.identity = kIdentity,
                                     .timeline = 3,
                                     .step = 120,
                                     .sequence = 121,
                                     .ranks = 2,
                                     .files = {{"model-0000.safetensors", 1u << 20, 0xdeadbeef},
                                               {"rank-0001.files", 0, 0}}}));
  Digest header;
  header.add(journal::write_segment_header(
      {.identity = kIdentity, .sequence = 121, .joins = uint64_t{119}}));
  lines.add("journal/segment_header", header);
}

}  // namespace

void add_journals(Lines& lines) {
  add_texts(lines);
  add_training(lines);
  add_factors(lines);
  add_lives(lines);
}

}  // namespace scant::golden
