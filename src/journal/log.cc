#include "journal/log.h"

#include <algorithm>
#include <array>
#include <utility>

#include "codec/little_endian.h"

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

// Whether a right entry with a number above `missing` stands anywhere behind `offset`.
bool entry_follows(Bytes bytes, size_t offset, uint64_t missing) {
  for (size_t at = offset + 1; at + kEntryHeaderBytes <= bytes.size(); ++at) {
    const auto sequence = codec::load_little<uint64_t>(bytes.data() + at + 16);
    if (sequence <= missing || sequence > missing + kLookAhead) continue;
    if (read_entry(bytes.subspan(at))) return true;
  }
  return false;
}

// Reads one segment; true: to its end, all right.
bool read_segment(const Segment& segment, Bytes bytes, uint64_t& expected, Log& log) {
  for (size_t at = kSegmentHeaderBytes; at < bytes.size();) {
    const auto entry = read_entry(bytes.subspan(at));
    if (!entry || entry->header.sequence > expected) {
      log.end = LogEnd{.damaged = entry.has_value() || entry_follows(bytes, at, expected),
                       .segment = segment.name,
                       .offset = at,
                       .sequence = expected};
      return false;
    }
    if (entry->header.sequence == expected) {
      log.entries.push_back({entry->header, segment.name, at});
      ++expected;
    }
    at += entry->bytes();
  }
  return true;
}

}  // namespace

Result<void> LogWriter::open_segment() {
  const std::string name = segment_name(next_);
  auto made = disk_.create(name);
  if (!made) return made.error();
  names_ = true;
  const auto header = write_segment_header({.identity = identity_, .sequence = next_});
  const Bytes piece(header);
  if (Result<void> wrote = made.value()->append({&piece, 1}); !wrote) return wrote;
  open_ = std::move(made).value();
  open_bytes_ = header.size();
  return {};
}

Result<uint64_t> LogWriter::append(uint64_t step, EntryKind kind, std::span<const Bytes> body) {
  if (open_bytes_ >= segment_bytes_max_) cut();
  if (!open_) {
    if (Result<void> opened = open_segment(); !opened) return opened.error();
  }
  EntryHeader header{.sequence = next_, .step = step, .kind = kind};
  for (const Bytes piece : body) header.length += piece.size();
  const auto bytes = write_entry_header(header, body);
  std::vector<Bytes> pieces{Bytes(bytes)};
  pieces.insert(pieces.end(), body.begin(), body.end());
  if (Result<void> wrote = open_->append(pieces); !wrote) return wrote.error();
  open_bytes_ += bytes.size() + header.length;
  open_written_ = true;
  return next_++;
}

void LogWriter::cut() {
  if (open_) closed_.push_back(std::move(open_));
  open_bytes_ = 0;
  open_written_ = false;
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

Result<Log> read_log(Disk& disk, const Identity& identity, uint64_t first) {
  auto segments = list_segments(disk);
  if (!segments) return segments.error();
  Log log;
  uint64_t expected = first;
  const auto& all = segments.value();
  for (size_t i = 0; i < all.size(); ++i) {
    // Those wholly before the first entry; where the next one begins too early, entries were
    // written again after a restart.
    if (i + 1 < all.size() && all[i + 1].sequence <= expected) continue;
    if (all[i].sequence > expected) {
      if (!log.end) log.end = LogEnd{.segment = all[i].name, .sequence = expected};
      log.end->damaged = true;  // what is missing was there once
      return log;
    }
    auto bytes = disk.read(all[i].name);
    if (!bytes) return bytes.error();
    const auto header = read_segment_header(bytes.value(), all[i].name);
    if (!header) {
      // The last one may be torn in its header.
      log.end = LogEnd{.damaged = i + 1 < all.size() || bytes.value().size() > kSegmentHeaderBytes,
                       .segment = all[i].name,
                       .sequence = expected};
      continue;
    }
    if (header.value().identity != identity) {
      return Error{.code = ErrorCode::refused,
                   .message = disk.path() + "/" + all[i].name + " is of another job or model"};
    }
    if (read_segment(all[i], bytes.value(), expected, log)) log.end.reset();
  }
  return log;
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
