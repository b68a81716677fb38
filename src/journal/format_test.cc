// The journal's bytes: round trips, other versions, and whatever a byte that is missing or a bit
// that fell over makes of them.
#include "journal/format.h"

#include <algorithm>
#include <gtest/gtest.h>

#include "base/crc.h"
#include "base/little_endian.h"
#include "base/rng.h"

namespace scant::journal {
namespace {

constexpr uint64_t kSeed = 1;
const Identity kIdentity{.job = 0xfedcba9876543210, .model = 7};

std::vector<std::byte> random_bytes(base::Rng& rng, size_t count) {
  std::vector<std::byte> out(count);
  for (std::byte& one : out) one = static_cast<std::byte>(rng.next());
  return out;
}

std::vector<std::byte> entry_of(const EntryHeader& given, Bytes body, size_t cut) {
  EntryHeader header = given;
  header.length = body.size();
  const std::array<Bytes, 2> pieces{body.first(cut), body.subspan(cut)};
  const auto head = write_entry_header(header, pieces);
  std::vector<std::byte> out(head.size() + body.size());
  std::ranges::copy(head, out.begin());
  std::ranges::copy(body, out.begin() + kEntryHeaderBytes);
  return out;
}

TEST(Format, AnEntryIsReadBack) {
  base::Rng rng(kSeed);
  for (const size_t length : {0U, 1U, 39U, 40U, 1000U}) {
    const auto body = random_bytes(rng, length);
    const EntryHeader header{.sequence = rng.next(), .step = rng.next(), .kind = EntryKind::step};
    auto bytes = entry_of(header, body, length / 3);
    bytes.resize(bytes.size() + 5, std::byte{1});  // of what follows
    const auto entry = read_entry(bytes);
    ASSERT_TRUE(entry.has_value()) << length;
    EXPECT_EQ(entry->header.sequence, header.sequence);
    EXPECT_EQ(entry->header.step, header.step);
    EXPECT_EQ(entry->header.kind, EntryKind::step);
    EXPECT_EQ(entry->bytes(), bytes.size() - 5);
    EXPECT_TRUE(std::equal(body.begin(), body.end(), entry->body.begin(), entry->body.end()));
  }
}

TEST(Format, AnEntryCutOffOrChangedIsNone) {
  base::Rng rng(kSeed);
  const auto bytes = entry_of({.sequence = 3, .step = 4}, random_bytes(rng, 61), 10);
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_FALSE(read_entry(Bytes(bytes).first(length)).has_value()) << length;
  }
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    auto changed = bytes;
    changed[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    EXPECT_FALSE(read_entry(changed).has_value()) << bit;
  }
  EXPECT_FALSE(read_entry(std::vector<std::byte>(200)).has_value()) << "zeros";
}

TEST(Format, AnEntryOfImpossibleLengthIsNone) {
  auto bytes = entry_of({.sequence = 3, .step = 4}, {}, 0);
  for (const uint64_t length : {uint64_t{1}, UINT64_MAX, UINT64_MAX - 35, uint64_t{1} << 63}) {
    base::store_little(bytes.data() + 8, length);
    base::store_little(bytes.data(), base::crc32c(Bytes(bytes).subspan(4)));
    EXPECT_FALSE(read_entry(bytes).has_value()) << length;
  }
}

constexpr uint16_t kVersions[] = {kVersionWithoutFactors, kVersion};

SegmentHeader header_of(uint16_t version = kVersionWithoutFactors) {
  return {.identity = kIdentity, .sequence = 12, .joins = 9, .version = version};
}

TEST(Format, ASegmentsHeaderIsReadBack) {
  for (const uint16_t version : kVersions) {
    const auto header = read_segment_header(write_segment_header(header_of(version)), "log-x");
    ASSERT_TRUE(header.ok()) << version;
    EXPECT_EQ(header.value().identity, kIdentity);
    EXPECT_EQ(header.value().sequence, 12U);
    EXPECT_EQ(header.value().joins, 9U);
    EXPECT_EQ(header.value().version, version);
  }
}

TEST(Format, ASegmentsHeaderCutOffOrChangedIsCorrupt) {
  for (const uint16_t version : kVersions) {
    const auto bytes = write_segment_header(header_of(version));
    for (size_t length = 0; length < bytes.size(); ++length) {
      const auto header = read_segment_header(Bytes(bytes).first(length), "log-x");
      ASSERT_FALSE(header.ok()) << length;
      EXPECT_EQ(header.error().code, ErrorCode::corrupt);
    }
    for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
      auto changed = bytes;
      changed[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
      const auto header = read_segment_header(changed, "log-x");
      ASSERT_FALSE(header.ok()) << bit;
      EXPECT_EQ(header.error().code, ErrorCode::corrupt) << "version " << version << ", " << bit;
      EXPECT_NE(header.error().message.find("log-x"), std::string::npos);
    }
  }
}

// A version that was damaged into another known one is no header of that.
TEST(Format, ASegmentWithTheOtherKnownVersionIsCorrupt) {
  for (const uint16_t version : kVersions) {
    auto bytes = write_segment_header(header_of(version));
    base::store_little(bytes.data() + 4, static_cast<uint16_t>(version == 1 ? 2 : 1));
    const auto header = read_segment_header(bytes, "log-x");
    ASSERT_FALSE(header.ok()) << version;
    EXPECT_EQ(header.error().code, ErrorCode::corrupt);
  }
}

TEST(Format, ASegmentOfAnotherVersionIsUnsupported) {
  auto bytes = write_segment_header(header_of());
  base::store_little(bytes.data() + 4, uint16_t{3});
  base::store_little(bytes.data() + 44, base::crc32c(Bytes(bytes).first(44)));
  const auto header = read_segment_header(bytes, "log-x");
  ASSERT_FALSE(header.ok());
  EXPECT_EQ(header.error().code, ErrorCode::unsupported);
  EXPECT_EQ(header.error().message,
            "log-x is of version 3; this scant reads up to 2: upgrade scant");
}

// Its header may be shorter or longer, and have its checksum elsewhere or none.
TEST(Format, ASegmentOfANewerVersionIsNamedWhateverItsHeaderIs) {
  const auto known = write_segment_header(header_of());
  std::vector<std::byte> bytes(known.begin(), known.end());
  base::store_little(bytes.data() + 4, uint16_t{3});
  bytes[20] ^= std::byte{1};
  for (const size_t length : {6U, 12U, 47U, 48U, 100U}) {
    bytes.resize(length);
    const auto header = read_segment_header(bytes, "log-x");
    ASSERT_FALSE(header.ok());
    EXPECT_EQ(header.error().code, ErrorCode::unsupported) << length << " bytes";
    EXPECT_EQ(header.error().message,
              "log-x is of version 3; this scant reads up to 2: upgrade scant");
  }
}

// There was no version 0, so it is no other version's.
TEST(Format, ASegmentOfVersion0WhoseChecksumDoesNotFitIsCorrupt) {
  auto bytes = write_segment_header(header_of());
  base::store_little(bytes.data() + 4, uint16_t{0});
  bytes[20] ^= std::byte{1};
  EXPECT_EQ(read_segment_header(bytes, "log-x").error().code, ErrorCode::corrupt);
}

Manifest a_manifest() {
  return {.identity = kIdentity,
          .timeline = UINT32_MAX,
          .base = UINT64_MAX,
          .sequence = 0,
          .oldest = 3};
}
BaseIndex an_index() {
  return {.identity = kIdentity,
          .timeline = 2,
          .step = 120,
          .sequence = 121,
          .ranks = 2,
          .files = {{"model-0.safetensors", UINT64_MAX, 0}, {"rank-0001.files", 0, UINT32_MAX}}};
}

TEST(Format, ManifestAndIndexAreReadBack) {
  const auto manifest = read_manifest(write_manifest(a_manifest()), "MANIFEST");
  ASSERT_TRUE(manifest.ok());
  EXPECT_EQ(manifest.value(), a_manifest());
  const auto index = read_index(write_index(an_index()), "INDEX");
  ASSERT_TRUE(index.ok());
  EXPECT_EQ(index.value(), an_index());
  BaseIndex no_files = an_index();
  no_files.files.clear();
  const auto empty = read_index(write_index(no_files), "INDEX");
  ASSERT_TRUE(empty.ok());
  EXPECT_EQ(empty.value(), no_files);
}

template <typename Read>
void every_change_is_seen(const std::string& text, Read read) {
  for (size_t length = 0; length < text.size(); ++length) {
    const auto found = read(text.substr(0, length), "NAME");
    ASSERT_FALSE(found.ok()) << length;
    EXPECT_EQ(found.error().code, ErrorCode::corrupt);
    EXPECT_NE(found.error().message.find("NAME"), std::string::npos);
  }
  for (size_t bit = 0; bit < text.size() * 8; ++bit) {
    std::string changed = text;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << (bit % 8)));
    const auto found = read(changed, "NAME");
    // Hexadecimal digits are read in either case.
    const bool of_the_sum = bit / 8 > text.rfind(' ') && bit % 8 == 5;
    if (found.ok()) {
      EXPECT_TRUE(of_the_sum) << bit;
    } else {
      EXPECT_EQ(found.error().code, ErrorCode::corrupt) << bit;
    }
  }
}

TEST(Format, ManifestAndIndexCutOffOrChangedAreCorrupt) {
  every_change_is_seen(write_manifest(a_manifest()), read_manifest);
  every_change_is_seen(write_index(an_index()), read_index);
}

// As an honest writer of other lines would: with a checksum that fits.
std::string sealed(const std::string& lines) {
  const uint32_t crc =
      base::crc32c({reinterpret_cast<const std::byte*>(lines.data()), lines.size()});
  std::array<char, 9> hex{};
  std::snprintf(hex.data(), hex.size(), "%08x", crc);
  return lines + "crc32c " + hex.data() + "\n";
}

TEST(Format, AnotherVersionIsUnsupportedAndNoGrammarIsCorrupt) {
  const auto manifest = read_manifest(sealed("scant-journal 2\nnew 1\n"), "MANIFEST");
  ASSERT_FALSE(manifest.ok());
  EXPECT_EQ(manifest.error().code, ErrorCode::unsupported);
  EXPECT_EQ(manifest.error().message,
            "MANIFEST is of version 2; this scant reads up to 1: upgrade scant");
  const auto index = read_index(sealed("scant-base 10\n"), "INDEX");
  ASSERT_FALSE(index.ok());
  EXPECT_EQ(index.error().code, ErrorCode::unsupported);
  const std::string head =
      "scant-base 1\njob 1\nmodel 1\ntimeline 0\nstep 1\nsequence 1\nranks 1\n";
  ASSERT_TRUE(read_index(sealed(head), "INDEX").ok());
  for (const std::string& lines :
       {std::string(), std::string("scant-base\n"), std::string("other 1\n"),
        head + "file ../escape 1 00000000\n", head + "file .hidden 1 00000000\n",
        head + "file a/b 1 00000000\n", head + "file a -1 00000000\n", head + "file a 1\n",
        head + "file a 99999999999999999999 00000000\n", head + "folder a\n", head + "\n",
        std::string("scant-base 1\njob 1\n")}) {
    const auto read = read_index(sealed(lines), "INDEX");
    ASSERT_FALSE(read.ok()) << lines;
    EXPECT_EQ(read.error().code, ErrorCode::corrupt) << lines;
  }
  EXPECT_FALSE(read_manifest(sealed(head), "MANIFEST").ok());
}

TEST(Format, NamesAreReadBackAndOthersAreNone) {
  for (const uint64_t number :
       {uint64_t{0}, uint64_t{120}, uint64_t{999999999999}, uint64_t{1000000000000}, UINT64_MAX}) {
    EXPECT_EQ(base_step(base_name(number)), number);
    EXPECT_EQ(part_step(part_name(number)), number);
    EXPECT_EQ(segment_sequence(segment_name(number)), number);
    EXPECT_FALSE(base_step(part_name(number)).has_value());
    EXPECT_FALSE(part_step(base_name(number)).has_value());
  }
  EXPECT_EQ(base_name(120), "base-000000000120");
  EXPECT_EQ(part_name(120), "base-000000000120.part");
  EXPECT_EQ(segment_name(121), "log-000000000121.scj");
  for (const char* name : {"", "base-", "base-12", "base-0000000000012", "base-00000000012x",
                           "base-99999999999999999999", "log-000000000121", "log-.scj", "log.scj",
                           "log-121.scj", "log-00000000012-.scj", "log-000000000121.scj.part"}) {
    EXPECT_FALSE(base_step(name).has_value()) << name;
    EXPECT_FALSE(segment_sequence(name).has_value()) << name;
  }
}

}  // namespace
}  // namespace scant::journal
