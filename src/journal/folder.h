// What a journal's folder holds: which states can be restored, how a base gets its name, and what
// may go. docs/journal.md, "A base becomes durable". One owner thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "journal/disk.h"
#include "journal/format.h"
#include "journal/log.h"

namespace scant::journal {

struct Base {
  BaseIndex index{};
  std::string folder{};
  std::string problem{};  // empty: whole
};

struct Contents {
  std::optional<Manifest> manifest;   // none: there is none, or it is damaged
  std::vector<Base> bases;            // of this timeline, newest first, damaged ones too
  std::vector<std::string> problems;  // a sentence each
  [[nodiscard]] bool empty() const { return !manifest && bases.empty() && problems.empty(); }
};

// Checks the files of each base by their sums, unless told not to.
Result<Contents> look(Disk& disk, bool check_files = true);

// A base and the entries behind it: the newest state, or the newest up to a step.
struct State {
  Base base;
  Log log;
  // Where a log goes on: behind this state, or behind its base alone.
  [[nodiscard]] uint64_t joins(bool base_alone = false) const {
    const bool entries = !base_alone && !log.entries.empty();
    return entries ? log.entries.back().header.sequence + 1 : base.index.sequence;
  }
  [[nodiscard]] uint64_t step() const {
    return log.entries.empty() ? base.index.step : log.entries.back().header.step;
  }
};
// ErrorCode::corrupt: there are bases, none of them whole. Nothing: an empty journal.
Result<std::optional<State>> newest_state(Disk& disk, const Contents& contents);

// One above every sequence number that was ever written there: a log is taken up with it, and its
// first segment says what it joins.
Result<uint64_t> fresh_sequence(Disk& disk, const Contents& contents);

// Makes durable what a process left that was killed, before a log goes on behind it.
Result<void> sync_state(Disk& disk, const State& state);

Result<void> write_manifest_file(Disk& disk, const Manifest& manifest);

// Names the base that a folder's newest state begins with, and goes by it: what is older than
// `manifest.oldest` is removed.
Result<void> replace_manifest(Disk& disk, const Manifest& manifest);

// Before a job goes on there: removes what was begun and has no name. Where the manifest is missing
// all bases and segments stay.
Result<void> clear_begun(Disk& disk, const Contents& contents);

// The newest state, or the newest that begins with the base of this step.
Result<std::optional<State>> state_from(Disk& disk, std::optional<uint64_t> base_step,
                                        bool check_files = true);

// What a base says of itself, as the manifest that names it and keeps bases from `oldest` on.
[[nodiscard]] Manifest manifest_of(const BaseIndex& index, uint64_t oldest);

// All files of the part lie there, synced. Afterwards the base has its name and the manifest's. A
// damaged base of the name gives way; a whole one stays, and the part goes.
Result<void> seal_base(Disk& disk, const BaseIndex& index, uint64_t oldest);

// Removes bases before the oldest that is kept, segments before its log, and what was begun. Parts
// of step `kept_parts` and later are being written.
Result<void> clear_old(Disk& disk, const Manifest& manifest,
                       std::optional<uint64_t> kept_parts = std::nullopt);

}  // namespace scant::journal
