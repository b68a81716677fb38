// The log: entries appended to segments, and found again. docs/journal.md, "Folder". LogWriter: one
// owner thread, but for sync() of what take_unsynced() gave, which may run beside append().
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "journal/disk.h"
#include "journal/format.h"

namespace scant::journal {

class LogWriter {
 public:
  // `joins`: of the first segment, where the log was taken up again.
  LogWriter(Disk& disk, Identity identity, uint64_t next_sequence, uint64_t segment_bytes_max,
            std::optional<uint64_t> joins = std::nullopt)
      : disk_(disk),
        identity_(identity),
        next_(next_sequence),
        joins_(joins),
        segment_bytes_max_(segment_bytes_max) {}

  // Handed to the operating system when it returns. After an error the entry is not there.
  // `version`: the least that the entry's segment must have.
  Result<uint64_t> append(uint64_t step, EntryKind kind, std::span<const Bytes> body,
                          uint16_t version = kVersionWithoutFactors);
  // The next entry begins a segment, as each does that follows a base.
  void cut();
  // A step was not logged: nothing behind it can be reached but from a base that comes after it.
  void skip();
  [[nodiscard]] uint64_t next_sequence() const { return next_; }

  // What has to be synced for all entries so far to be durable.
  struct Unsynced {
    std::vector<std::unique_ptr<File>> closed;
    File* open = nullptr;   // may be synced until the next take_unsynced() has been synced too
    bool names = false;     // there are new segments
    uint64_t sequence = 0;  // durable: entries before this
    [[nodiscard]] bool empty() const { return closed.empty() && open == nullptr && !names; }
  };
  Unsynced take_unsynced();
  static Result<void> sync(Disk& disk, Unsynced& unsynced);
  Result<void> sync();  // all in one

 private:
  Result<void> open_segment(uint16_t version);

  Disk& disk_;
  Identity identity_;
  uint64_t next_;
  std::optional<uint64_t> joins_;  // of the next segment
  uint64_t segment_bytes_max_;
  std::unique_ptr<File> open_;
  uint64_t open_bytes_ = 0;
  uint16_t open_version_ = 0;
  bool open_written_ = false;  // since the last take_unsynced()
  bool names_ = false;
  std::vector<std::unique_ptr<File>> closed_;
};

struct LogEntry {
  EntryHeader header;
  std::string segment;
  uint64_t offset = 0;
};

// Why a log ends where it does, when it was not simply written so far.
struct LogEnd {
  bool damaged = false;  // right entries follow that do not join; else: torn, a write not finished
  std::string segment;
  uint64_t offset = 0;
  uint64_t sequence = 0;  // of the entry that is missing there
};

struct Log {
  std::vector<LogEntry> entries;  // each follows the one before it
  std::optional<LogEnd> end;
};

// Entries from `first` on that follow each other, and the state that a base of this sequence holds;
// those before `from` were taken back. ErrorCode::refused: a segment of another job or model.
Result<Log> read_log(Disk& disk, const Identity& identity, uint64_t first, uint64_t from = 0);

// The highest number of an entry in the segment, whatever stands between them.
std::optional<uint64_t> highest_sequence(const std::string& name, Bytes segment);

// Bodies of entries, one segment in memory at a time.
class LogReader {
 public:
  explicit LogReader(Disk& disk) : disk_(disk) {}
  Result<Bytes> body(const LogEntry& entry);  // valid until the next call

 private:
  Disk& disk_;
  std::string segment_;
  std::vector<std::byte> bytes_;
};

}  // namespace scant::journal
