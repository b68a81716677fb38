// The bytes of a journal: segments of entries, the index of a base, the manifest. docs/journal.md
// is the grammar; the names here are those of the document. Plain values, no disk, no thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::journal {

inline constexpr uint32_t kSegmentMagic = 0x534a4353;  // "SCJS" in memory
inline constexpr uint16_t kVersion = 2;
// Segments whose first entry has no factors are written as version 1, as they always were.
inline constexpr uint16_t kVersionWithoutFactors = 1;
inline constexpr uint32_t kTextVersion = 1;  // of manifest and index
inline constexpr size_t kSegmentHeaderBytes = 48;
inline constexpr size_t kEntryHeaderBytes = 40;
inline constexpr uint64_t kEntryBytesMax = uint64_t{1} << 40;

// Which job a journal belongs to: drawn when it is made; and a hash of the model's names and
// shapes.
struct Identity {
  uint64_t job = 0;
  uint64_t model = 0;
  bool operator==(const Identity&) const = default;
};

struct SegmentHeader {
  Identity identity;
  uint64_t sequence = 0;  // of its first entry
  // Of what earlier segments hold, entries before this number count: the sequence, but behind a
  // restart, which took back the others or never saw them.
  uint64_t joins = 0;
  uint16_t version = kVersionWithoutFactors;
};

enum class EntryKind : uint8_t { step = 1 };

struct EntryHeader {
  uint64_t length = 0;  // of the body
  uint64_t sequence = 0;
  uint64_t step = 0;
  EntryKind kind = EntryKind::step;
};

[[nodiscard]] std::array<std::byte, kSegmentHeaderBytes> write_segment_header(
    const SegmentHeader& header);
[[nodiscard]] Result<SegmentHeader> read_segment_header(Bytes bytes, const std::string& name);

// `pieces` are the body.
[[nodiscard]] std::array<std::byte, kEntryHeaderBytes> write_entry_header(
    const EntryHeader& header, std::span<const Bytes> pieces);
// The entry at the front of `bytes`, checked to its end; none: too short, or what stands there is
// none.
struct Entry {
  EntryHeader header;
  Bytes body;
  [[nodiscard]] size_t bytes() const { return kEntryHeaderBytes + body.size(); }
};
[[nodiscard]] std::optional<Entry> read_entry(Bytes bytes);

// MANIFEST and INDEX: lines "key value ...", the last one "crc32c HEX" of all before it.
struct Manifest {
  Identity identity{};
  uint32_t timeline = 0;  // counts how often steps were taken back
  uint64_t base = 0;      // step of the newest base
  uint64_t sequence = 0;  // of the first entry behind that base
  uint64_t oldest = 0;    // step of the oldest base that is kept
  bool operator==(const Manifest&) const = default;
};

struct BaseFile {
  std::string name;
  uint64_t bytes = 0;
  uint32_t crc = 0;
  bool operator==(const BaseFile&) const = default;
};

struct BaseIndex {
  Identity identity;
  uint32_t timeline = 0;
  uint64_t step = 0;
  uint64_t sequence = 0;  // of the first entry behind it
  uint32_t ranks = 0;
  std::vector<BaseFile> files;
  bool operator==(const BaseIndex&) const = default;
};

[[nodiscard]] std::string write_manifest(const Manifest& manifest);
[[nodiscard]] Result<Manifest> read_manifest(std::string_view text, const std::string& name);
[[nodiscard]] std::string write_index(const BaseIndex& index);
[[nodiscard]] Result<BaseIndex> read_index(std::string_view text, const std::string& name);

// Names in the folder.
inline constexpr const char* kManifestName = "MANIFEST";
inline constexpr const char* kManifestNext = "MANIFEST.next";
inline constexpr const char* kIndexName = "INDEX";
[[nodiscard]] std::string base_name(uint64_t step);         // "base-000000000120"
[[nodiscard]] std::string part_name(uint64_t step);         // "base-000000000120.part"
[[nodiscard]] std::string segment_name(uint64_t sequence);  // "log-000000000121.scj"
[[nodiscard]] std::optional<uint64_t> base_step(std::string_view name);
[[nodiscard]] std::optional<uint64_t> part_step(std::string_view name);
[[nodiscard]] std::optional<uint64_t> segment_sequence(std::string_view name);

}  // namespace scant::journal
