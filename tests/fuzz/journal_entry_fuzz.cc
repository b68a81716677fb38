// Segments. Whatever stands in them, the log that is read is a chain: numbers grow, by one within a
// segment, steps grow, and each body is found again where the log says; an end lies within its
// segment. Input: mode, then two lengths and the bytes of up to three segments, of numbers 0, 2, 4.
#include <memory>
#include <string>
#include <vector>

#include "base/crc.h"
#include "base/little_endian.h"
#include "fuzz_input.h"
#include "journal/log.h"

using namespace scant;
using namespace scant::journal;

namespace {

constexpr uint8_t kSealed =
    1;                        // headers and entries get checksums that fit, and lengths that can be
constexpr uint8_t kFrom = 2;  // entries before number 2 were taken back
constexpr uint8_t kFactors = 4;  // what is sealed after the first segment is of version 2
constexpr Identity kIdentity{.job = 1, .model = 2};

// Segments in memory, and nothing else.
class Segments final : public Disk {
 public:
  std::vector<std::pair<std::string, std::vector<std::byte>>> files;

  [[nodiscard]] std::string path() const override { return "(segments)"; }
  Result<std::unique_ptr<File>> create(const std::string&) override { return refused(); }
  Result<std::vector<std::byte>> read(const std::string& name) override {
    for (const auto& [known, bytes] : files) {
      if (known == name) return bytes;
    }
    return refused();
  }
  Result<FileSum> sum(const std::string&) override { return refused(); }
  Result<std::vector<std::string>> list(const std::string&) override {
    std::vector<std::string> names;
    for (const auto& [name, bytes] : files) names.push_back(name);
    return names;
  }
  Result<void> make_folder(const std::string&) override { return refused(); }
  Result<void> rename(const std::string&, const std::string&) override { return refused(); }
  Result<void> remove(const std::string&) override { return refused(); }
  Result<void> sync_file(const std::string&) override { return refused(); }
  Result<void> sync_folder(const std::string&) override { return refused(); }

 private:
  static Error refused() { return {.code = ErrorCode::unsupported, .message = "only read"}; }
};

void seal(std::vector<std::byte>& bytes, uint64_t sequence, uint16_t version) {
  if (bytes.size() < kSegmentHeaderBytes) return;
  base::store_little(bytes.data(), kSegmentMagic);
  base::store_little(bytes.data() + 4, version);
  base::store_little(bytes.data() + 8, kIdentity.job);
  base::store_little(bytes.data() + 16, kIdentity.model);
  base::store_little(bytes.data() + 24, sequence);
  const size_t covered = kSegmentHeaderBytes - 4;
  base::store_little(bytes.data() + covered, base::crc32c(Bytes(bytes).first(covered)));
  for (size_t at = kSegmentHeaderBytes; bytes.size() - at >= kEntryHeaderBytes;) {
    const size_t room = bytes.size() - at - kEntryHeaderBytes;
    const uint64_t length =
        std::min<uint64_t>(base::load_little<uint64_t>(bytes.data() + at + 8) & 0xFF, room);
    base::store_little(bytes.data() + at + 8, length);
    const auto entry = Bytes(bytes).subspan(at, kEntryHeaderBytes + length);
    base::store_little(bytes.data() + at, base::crc32c(entry.subspan(4)));
    at += entry.size();
  }
}

void check(Segments& disk, const Log& log, uint64_t begin) {
  LogReader reader(disk);
  const LogEntry* before = nullptr;
  for (const LogEntry& entry : log.entries) {
    SCANT_CHECK(entry.header.sequence >= begin);
    if (before != nullptr) {
      SCANT_CHECK(entry.header.step > before->header.step);
      SCANT_CHECK(entry.header.sequence > before->header.sequence);
      SCANT_CHECK(entry.segment != before->segment ||
                  entry.header.sequence == before->header.sequence + 1);
    }
    before = &entry;
    const auto body = reader.body(entry);
    SCANT_CHECK(body.ok() && body.value().size() == entry.header.length);
  }
  if (!log.end) return;
  const auto bytes = disk.read(log.end->segment);
  SCANT_CHECK(bytes.ok() && log.end->offset <= bytes.value().size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t mode = input.byte();
  const size_t lengths[2] = {input.half(), input.half()};
  Bytes rest = input.rest();
  Segments disk;
  for (uint64_t i = 0; i < 3 && !rest.empty(); ++i) {
    const size_t length = i < 2 ? std::min(lengths[i], rest.size()) : rest.size();
    std::vector<std::byte> bytes(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(length));
    const bool factors = (mode & kFactors) != 0 && i > 0;
    if ((mode & kSealed) != 0) seal(bytes, 2 * i, factors ? kVersion : kVersionWithoutFactors);
    disk.files.emplace_back(segment_name(2 * i), std::move(bytes));
    rest = rest.subspan(length);
  }
  const uint64_t from = (mode & kFrom) != 0 ? 2 : 0;
  const auto log = read_log(disk, kIdentity, 0, from);
  if (!log) {
    SCANT_CHECK(log.error().code == ErrorCode::refused ||
                log.error().code == ErrorCode::unsupported);
    return 0;
  }
  check(disk, log.value(), from);
  for (const auto& [name, bytes] : disk.files) {
    const auto highest = highest_sequence(name, bytes);
    for (const LogEntry& entry : log.value().entries) {
      SCANT_CHECK(entry.segment != name || (highest && *highest >= entry.header.sequence));
    }
  }
  return 0;
}
