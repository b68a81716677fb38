#include "journal/log.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/little_endian.h"

namespace scant::journal {
namespace {

constexpr uint64_t kLookAhead = 1u << 20;  // sequence numbers behind a missing one that may follow

struct Segment {
  uint64_t sequence = 0;
  std::string name;
};

Result<std::vector<Segment>> list_segments(Disk& disk) {
  auto names = disk.list("");
  if (!names) return names.error();
  std::vector<Segment> segments;
  for (std::string& name : names.value()) {
    if (const auto sequence = segment_sequence(name)) segments.push_back({*sequence, name});
  }
  std::ranges::sort(segments, {}, &Segment::sequence);
  return segments;
}

// Walks over what is no entry, to the next right one whose number is near; `at` is then there.
std::optional<Entry> find_entry(Bytes bytes, size_t& at, uint64_t least) {
  for (; at + kEntryHeaderBytes <= bytes.size(); ++at) {
    const auto sequence = base::load_little<uint64_t>(bytes.data() + at + 16);
    if (sequence < least || sequence - least > kLookAhead) continue;
    if (auto entry = read_entry(bytes.subspan(at))) return entry;
  }
  return std::nullopt;
}

// The log as far as it was read. A base and a restart begin a segment, so those before are not
// looked at.
class Reading {
 public:
  Reading(uint64_t first, uint64_t from)
      : first_(first), begin_(std::max(first, from)), expected_(begin_) {}

  [[nodiscard]] uint64_t begin() const { return begin_; }

  // The segment's entries take the place of those that it does not join; false: it joins nothing.
  bool join(const SegmentHeader& header) {
    auto& entries = log_.entries;
    const bool begins = header.sequence == begin_ && entries.empty();
    const bool follows = std::ranges::binary_search(
        entries, header.joins, {}, [](const LogEntry& entry) { return entry.header.sequence + 1; });
    if (!begins && !follows && header.joins != first_) return false;
    while (!entries.empty() && entries.back().header.sequence >= header.joins) entries.pop_back();
    expected_ = header.sequence;
    log_.end.reset();
    return true;
  }

  void read(const std::string& segment, Bytes bytes) {
    for (size_t at = kSegmentHeaderBytes; at < bytes.size();) {
      const auto entry = read_entry(bytes.subspan(at));
      if (!entry || entry->header.sequence != expected_ || !grows(entry->header)) {
        stop(segment, at, bytes);
        return;
      }
      log_.entries.push_back({entry->header, segment, at});
      ++expected_;
      at += entry->bytes();
    }
  }

  // Nothing from this place on belongs to the log, unless a segment joins what was read.
  void stop(const std::string& segment, size_t at, Bytes bytes) {
    if (!log_.end) log_.end = LogEnd{.segment = segment, .offset = at, .sequence = expected_};
    log_.end->damaged = log_.end->damaged || find_entry(bytes, at, expected_).has_value();
  }

  [[nodiscard]] Log take() && { return std::move(log_); }

 private:
  // An entry whose step does not is of a past that was taken back.
  [[nodiscard]] bool grows(const EntryHeader& header) const {
    return log_.entries.empty() || log_.entries.back().header.step < header.step;
  }

  const uint64_t first_;
  const uint64_t begin_;
  uint64_t expected_;
  Log log_;
};

}  // namespace

Result<void> LogWriter::open_segment(uint16_t version) {
  const std::string name = segment_name(next_);
  auto made = disk_.create(name);
  if (!made) return made.error();
  names_ = true;
  const auto header = write_segment_header({.identity = identity_,
                                            .sequence = next_,
                                            .joins = joins_.value_or(next_),
                                            .version = version});
  const Bytes piece(header);
  if (Result<void> wrote = made.value()->append({&piece, 1}); !wrote) return wrote;
  open_ = std::move(made).value();
  open_bytes_ = header.size();
  open_version_ = version;
  return {};
}

Result<uint64_t> LogWriter::append(uint64_t step, EntryKind kind, std::span<const Bytes> body,
                                   uint16_t version) {
  if (open_bytes_ >= segment_bytes_max_ || (open_ && open_version_ < version)) cut();
  if (!open_) {
    if (Result<void> opened = open_segment(version); !opened) return opened.error();
  }
  EntryHeader header{.sequence = next_, .step = step, .kind = kind};
  for (const Bytes piece : body) header.length += piece.size();
  const auto bytes = write_entry_header(header, body);
  std::vector<Bytes> pieces{Bytes(bytes)};
  pieces.insert(pieces.end(), body.begin(), body.end());
  if (Result<void> wrote = open_->append(pieces); !wrote) {
    cut();  // should half of it stay, the next segment begins at its number
    return wrote.error();
  }
  joins_.reset();
  open_bytes_ += bytes.size() + header.length;
  open_written_ = true;
  return next_++;
}

void LogWriter::cut() {
  if (open_) closed_.push_back(std::move(open_));
  open_bytes_ = 0;
  open_written_ = false;
}

void LogWriter::skip() {
  cut();
  joins_.reset();
  ++next_;
}

LogWriter::Unsynced LogWriter::take_unsynced() {
  Unsynced unsynced{.closed = std::exchange(closed_, {}),
                    .open = std::exchange(open_written_, false) ? open_.get() : nullptr,
                    .names = std::exchange(names_, false),
                    .sequence = next_};
  return unsynced;
}

Result<void> LogWriter::sync(Disk& disk, Unsynced& unsynced) {
  for (const auto& file : unsynced.closed) {
    if (Result<void> synced = file->sync(); !synced) return synced;
  }
  unsynced.closed.clear();
  if (unsynced.open != nullptr) {
    if (Result<void> synced = unsynced.open->sync(); !synced) return synced;
  }
  return unsynced.names ? disk.sync_folder("") : Result<void>{};
}

Result<void> LogWriter::sync() {
  Unsynced unsynced = take_unsynced();
  return sync(disk_, unsynced);
}

Result<Log> read_log(Disk& disk, const Identity& identity, uint64_t first, uint64_t from) {
  auto segments = list_segments(disk);
  if (!segments) return segments.error();
  Reading reading(first, from);
  for (const Segment& segment : segments.value()) {
    if (segment.sequence < reading.begin()) continue;
    auto read = disk.read(segment.name);
    if (!read) return read.error();
    const Bytes bytes = read.value();
    const auto header = read_segment_header(bytes, segment.name);
    if (!header && header.error().code == ErrorCode::unsupported) return header.error();
    if (header && header.value().identity != identity) {
      return Error{.code = ErrorCode::refused,
                   .message = disk.path() + "/" + segment.name + " is of another job or model"};
    }
    const bool right = header && header.value().sequence == segment.sequence;
    if (right && reading.join(header.value())) {
      reading.read(segment.name, bytes);
    } else {
      reading.stop(segment.name, 0, bytes);
    }
  }
  return std::move(reading).take();
}

std::optional<uint64_t> highest_sequence(const std::string& name, Bytes segment) {
  const uint64_t least = segment_sequence(name).value_or(0);
  std::optional<uint64_t> highest;
  for (size_t at = 0;;) {
    const auto entry = find_entry(segment, at, least);
    if (!entry) return highest;
    highest = std::max(highest.value_or(0), entry->header.sequence);
    at += entry->bytes();
  }
}

Result<Bytes> LogReader::body(const LogEntry& entry) {
  if (segment_ != entry.segment) {
    auto bytes = disk_.read(entry.segment);
    if (!bytes) return bytes.error();
    bytes_ = std::move(bytes).value();
    segment_ = entry.segment;
  }
  const auto read = entry.offset <= bytes_.size() ? read_entry(Bytes(bytes_).subspan(entry.offset))
                                                  : std::nullopt;
  if (!read || read->header.sequence != entry.header.sequence) {
    return Error{.code = ErrorCode::corrupt,
                 .message = disk_.path() + "/" + entry.segment + ": entry " +
                            std::to_string(entry.header.sequence) + " changed since it was read"};
  }
  return read->body;
}

}  // namespace scant::journal
