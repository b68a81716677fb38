#include "journal/format.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>

#include "base/crc.h"
#include "base/fault.h"
#include "base/little_endian.h"
#include "base/version.h"

namespace scant::journal {
namespace {

constexpr size_t kCrcBytes = 4;
constexpr size_t kNumberDigits = 12;
constexpr std::string_view kBasePrefix = "base-";
constexpr std::string_view kPartSuffix = ".part";
constexpr std::string_view kSegmentPrefix = "log-";
constexpr std::string_view kSegmentSuffix = ".scj";
constexpr std::string_view kCrcKey = "crc32c ";

Error corrupt(const std::string& name, const std::string& what) {
  return base::corrupt(name + ": " + what);
}

uint32_t crc_of(std::string_view text) {
  return base::crc32c({reinterpret_cast<const std::byte*>(text.data()), text.size()});
}

std::string hex(uint64_t value, int digits) {
  std::array<char, 24> room{};
  const int length = std::snprintf(room.data(), room.size(), "%0*llx", digits,
                                   static_cast<unsigned long long>(value));
  return {room.data(), static_cast<size_t>(length)};
}

std::string padded(uint64_t value) {
  const std::string digits = std::to_string(value);
  return std::string(kNumberDigits - std::min(kNumberDigits, digits.size()), '0') + digits;
}

template <typename T>
std::optional<T> number(std::string_view text, int base = 10) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{} || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

// Takes the text apart, word by word of each line; what is not as expected is remembered.
class Lines {
 public:
  Lines(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  // Checks the last line and takes it off.
  Result<void> check(std::string_view first_line) {
    const size_t at = text_.rfind(kCrcKey);
    if (at == std::string_view::npos || text_.empty() || text_.back() != '\n') {
      return corrupt(name_, "cut off, no checksum at its end");
    }
    std::string_view sum = text_.substr(at + kCrcKey.size());
    sum.remove_suffix(1);
    const auto known = number<uint32_t>(sum, 16);
    if (!known || sum.size() != 8) return corrupt(name_, "no checksum at its end");
    if (*known != crc_of(text_.substr(0, at))) return corrupt(name_, "the checksum does not fit");
    text_ = text_.substr(0, at);
    const std::string_view begun = line();
    if (begun == first_line) return {};
    const std::string_view kind = first_line.substr(0, first_line.rfind(' ') + 1);
    if (begun.starts_with(kind)) {
      const auto version = number<uint32_t>(begun.substr(kind.size()), 10);
      if (version) return base::other_version(name_, *version, kTextVersion);
    }
    return corrupt(name_, "not begun by '" + std::string(first_line) + "'");
  }

  // The words of the next line behind this key.
  std::vector<std::string_view> words(std::string_view key) {
    std::string_view rest = line();
    std::vector<std::string_view> all;
    while (!rest.empty()) {
      const size_t blank = std::min(rest.find(' '), rest.size());
      all.push_back(rest.substr(0, blank));
      rest.remove_prefix(std::min(blank + 1, rest.size()));
    }
    if (all.empty() || all.front() != key) {
      wrong_ = true;
      return {};
    }
    all.erase(all.begin());
    return all;
  }
  template <typename T = uint64_t>
  T value(std::string_view key, int base = 10) {
    const auto found = words(key);
    const auto value = found.size() == 1 ? number<T>(found[0], base) : std::nullopt;
    wrong_ = wrong_ || !value;
    return value.value_or(0);
  }
  [[nodiscard]] bool over() const { return text_.empty(); }
  [[nodiscard]] bool wrong() const { return wrong_; }
  [[nodiscard]] Error bad_line() const { return corrupt(name_, "a line is not of the grammar"); }

 private:
  std::string_view line() {
    const size_t end = text_.find('\n');
    const std::string_view found = text_.substr(0, end);
    text_.remove_prefix(end == std::string_view::npos ? text_.size() : end + 1);
    return found;
  }
  std::string_view text_;
  const std::string& name_;
  bool wrong_ = false;
};

std::string with_crc(std::string text) {
  const uint32_t crc = crc_of(text);
  text.append(kCrcKey).append(hex(crc, 8)).append("\n");
  return text;
}

std::string identity_lines(const Identity& identity) {
  return "job " + hex(identity.job, 16) + "\nmodel " + hex(identity.model, 16) + "\n";
}

Identity read_identity(Lines& lines) {
  const uint64_t job = lines.value("job", 16);
  return {.job = job, .model = lines.value("model", 16)};
}

constexpr std::string_view kManifestLine = "scant-journal 1";
constexpr std::string_view kIndexLine = "scant-base 1";

// Magic and version, which headers of every version begin with.
constexpr size_t kSegmentVersionEnd = 6;

// Whether the checksum is that of this header with this version in it.
bool fits(Bytes bytes, uint16_t version) {
  if (bytes.size() < kSegmentHeaderBytes) return false;
  std::array<std::byte, kSegmentHeaderBytes - kCrcBytes> covered{};
  std::copy_n(bytes.begin(), covered.size(), covered.begin());
  base::store_little(covered.data() + 4, version);
  return base::load_little<uint32_t>(bytes.data() + covered.size()) == base::crc32c(covered);
}

// Whether it is a header of a known version once it has that in place of the version it has.
bool fits_another(Bytes bytes, uint16_t version) {
  for (uint16_t known = kVersionWithoutFactors; known <= kVersion; ++known) {
    if (known != version && fits(bytes, known)) return true;
  }
  return false;
}

// A file of a base lies in its folder.
bool is_plain_name(std::string_view name) {
  return !name.empty() && name.front() != '.' && name.find('/') == std::string_view::npos;
}

}  // namespace

std::array<std::byte, kSegmentHeaderBytes> write_segment_header(const SegmentHeader& header) {
  std::array<std::byte, kSegmentHeaderBytes> out{};
  base::store_little(out.data(), kSegmentMagic);
  base::store_little(out.data() + 4, header.version);
  base::store_little(out.data() + 8, header.identity.job);
  base::store_little(out.data() + 16, header.identity.model);
  base::store_little(out.data() + 24, header.sequence);
  base::store_little(out.data() + 32, header.joins);
  base::store_little(out.data() + kSegmentHeaderBytes - kCrcBytes,
                     base::crc32c(Bytes(out).first(kSegmentHeaderBytes - kCrcBytes)));
  return out;
}

// Where a newer version has its checksum this one cannot know, so the version decides first. What
// fits once the version is a known one is a header of that version whose version was damaged.
Result<SegmentHeader> read_segment_header(Bytes bytes, const std::string& name) {
  if (bytes.size() < kSegmentVersionEnd) return corrupt(name, "shorter than a segment's header");
  if (base::load_little<uint32_t>(bytes.data()) != kSegmentMagic) {
    return corrupt(name, "not begun by SCJS");
  }
  const auto version = base::load_little<uint16_t>(bytes.data() + 4);
  if (version > kVersion && !fits_another(bytes, version)) {
    return base::other_version(name, version, kVersion);
  }
  if (bytes.size() < kSegmentHeaderBytes) return corrupt(name, "shorter than a segment's header");
  if (!fits(bytes, version)) {
    return corrupt(name, "the checksum of the segment's header does not fit");
  }
  if (version < kVersionWithoutFactors || version > kVersion) {
    return base::other_version(name, version, kVersion);
  }
  return SegmentHeader{.identity = {.job = base::load_little<uint64_t>(bytes.data() + 8),
                                    .model = base::load_little<uint64_t>(bytes.data() + 16)},
                       .sequence = base::load_little<uint64_t>(bytes.data() + 24),
                       .joins = base::load_little<uint64_t>(bytes.data() + 32),
                       .version = version};
}

std::array<std::byte, kEntryHeaderBytes> write_entry_header(const EntryHeader& header,
                                                            std::span<const Bytes> pieces) {
  std::array<std::byte, kEntryHeaderBytes> out{};
  base::store_little(out.data() + 8, header.length);
  base::store_little(out.data() + 16, header.sequence);
  base::store_little(out.data() + 24, header.step);
  out[32] = static_cast<std::byte>(header.kind);
  uint32_t crc = base::crc32c(Bytes(out).subspan(kCrcBytes));
  for (const Bytes piece : pieces) crc = base::crc32c(piece, crc);
  base::store_little(out.data(), crc);
  return out;
}

std::optional<Entry> read_entry(Bytes bytes) {
  if (bytes.size() < kEntryHeaderBytes) return std::nullopt;
  Entry entry;
  entry.header = {.length = base::load_little<uint64_t>(bytes.data() + 8),
                  .sequence = base::load_little<uint64_t>(bytes.data() + 16),
                  .step = base::load_little<uint64_t>(bytes.data() + 24),
                  .kind = static_cast<EntryKind>(bytes[32])};
  if (entry.header.length > bytes.size() - kEntryHeaderBytes) return std::nullopt;
  const Bytes covered = bytes.subspan(
      kCrcBytes, kEntryHeaderBytes - kCrcBytes + static_cast<size_t>(entry.header.length));
  if (base::load_little<uint32_t>(bytes.data()) != base::crc32c(covered)) return std::nullopt;
  entry.body = bytes.subspan(kEntryHeaderBytes, static_cast<size_t>(entry.header.length));
  return entry;
}

std::string write_manifest(const Manifest& manifest) {
  return with_crc(std::string(kManifestLine) + "\n" + identity_lines(manifest.identity) +
                  "timeline " + std::to_string(manifest.timeline) + "\nbase " +
                  std::to_string(manifest.base) + "\nsequence " +
                  std::to_string(manifest.sequence) + "\noldest " +
                  std::to_string(manifest.oldest) + "\n");
}

Result<Manifest> read_manifest(std::string_view text, const std::string& name) {
  Lines lines(text, name);
  if (Result<void> checked = lines.check(kManifestLine); !checked) return checked.error();
  Manifest manifest;
  manifest.identity = read_identity(lines);
  manifest.timeline = lines.value<uint32_t>("timeline");
  manifest.base = lines.value("base");
  manifest.sequence = lines.value("sequence");
  manifest.oldest = lines.value("oldest");
  if (lines.wrong() || !lines.over()) return lines.bad_line();
  return manifest;
}

std::string write_index(const BaseIndex& index) {
  std::string text = std::string(kIndexLine) + "\n" + identity_lines(index.identity) + "timeline " +
                     std::to_string(index.timeline) + "\nstep " + std::to_string(index.step) +
                     "\nsequence " + std::to_string(index.sequence) + "\nranks " +
                     std::to_string(index.ranks) + "\n";
  for (const BaseFile& file : index.files) {
    text += "file " + file.name + " " + std::to_string(file.bytes) + " " + hex(file.crc, 8) + "\n";
  }
  return with_crc(std::move(text));
}

Result<BaseIndex> read_index(std::string_view text, const std::string& name) {
  Lines lines(text, name);
  if (Result<void> checked = lines.check(kIndexLine); !checked) return checked.error();
  BaseIndex index;
  index.identity = read_identity(lines);
  index.timeline = lines.value<uint32_t>("timeline");
  index.step = lines.value("step");
  index.sequence = lines.value("sequence");
  index.ranks = lines.value<uint32_t>("ranks");
  while (!lines.wrong() && !lines.over()) {
    const auto words = lines.words("file");
    const auto bytes = words.size() == 3 ? number<uint64_t>(words[1]) : std::nullopt;
    const auto crc = words.size() == 3 ? number<uint32_t>(words[2], 16) : std::nullopt;
    if (!bytes || !crc || !is_plain_name(words[0])) return lines.bad_line();
    index.files.push_back({std::string(words[0]), *bytes, *crc});
  }
  if (lines.wrong()) return lines.bad_line();
  return index;
}

std::string base_name(uint64_t step) { return std::string(kBasePrefix) + padded(step); }
std::string part_name(uint64_t step) { return base_name(step) + std::string(kPartSuffix); }
std::string segment_name(uint64_t sequence) {
  return std::string(kSegmentPrefix) + padded(sequence) + std::string(kSegmentSuffix);
}

std::optional<uint64_t> base_step(std::string_view name) {
  if (!name.starts_with(kBasePrefix)) return std::nullopt;
  const auto step = number<uint64_t>(name.substr(kBasePrefix.size()));
  return step && base_name(*step) == name ? step : std::nullopt;
}

std::optional<uint64_t> part_step(std::string_view name) {
  if (!name.ends_with(kPartSuffix)) return std::nullopt;
  return base_step(name.substr(0, name.size() - kPartSuffix.size()));
}

std::optional<uint64_t> segment_sequence(std::string_view name) {
  if (!name.starts_with(kSegmentPrefix) || !name.ends_with(kSegmentSuffix) ||
      name.size() < kSegmentPrefix.size() + kSegmentSuffix.size()) {
    return std::nullopt;
  }
  std::string_view digits = name;
  digits.remove_prefix(kSegmentPrefix.size());
  digits.remove_suffix(kSegmentSuffix.size());
  const auto sequence = number<uint64_t>(digits);
  return sequence && segment_name(*sequence) == name ? sequence : std::nullopt;
}

}  // namespace scant::journal
