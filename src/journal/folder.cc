#include "journal/folder.h"

#include <algorithm>
#include <utility>

namespace scant::journal {
namespace {

std::string_view text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Result<void> write_text(Disk& disk, const std::string& name, const std::string& text) {
  auto file = disk.create(name);
  if (!file) return file.error();
  const Bytes piece(reinterpret_cast<const std::byte*>(text.data()), text.size());
  if (Result<void> wrote = file.value()->append({&piece, 1}); !wrote) return wrote;
  return file.value()->sync();
}

std::string check_files(Disk& disk, const Base& base) {
  for (const BaseFile& file : base.index.files) {
    const auto sum = disk.sum(base.folder + "/" + file.name);
    if (!sum) return sum.error().to_string();
    if (sum.value().bytes != file.bytes) {
      return file.name + " has " + std::to_string(sum.value().bytes) + " bytes, not " +
             std::to_string(file.bytes);
    }
    if (sum.value().crc != file.crc) return "the checksum of " + file.name + " does not fit";
  }
  return {};
}

// Of a base whose index cannot be read only the folder's name tells the step.
Base look_at_base(Disk& disk, const std::string& folder, uint64_t step, bool check) {
  Base base{.folder = folder};
  base.index.step = step;
  const std::string name = folder + "/" + kIndexName;
  const auto bytes = disk.read(name);
  if (!bytes) {
    base.problem = bytes.error().to_string();
    return base;
  }
  auto index = read_index(text_of(bytes.value()), name);
  if (!index) {
    base.problem = index.error().to_string();
    return base;
  }
  base.index = std::move(index).value();
  if (base.index.step != step) {
    base.problem = name + ": of step " + std::to_string(base.index.step);
  } else if (check) {
    base.problem = check_files(disk, base);
  }
  return base;
}

bool is_part(const std::string& name) {
  return name.starts_with("base-") && name.ends_with(".part");
}

// Steps that were taken back do not count.
bool counts(const Base& base, const std::optional<Manifest>& manifest, uint32_t newest) {
  if (!base.problem.empty()) return true;  // to be told of
  if (manifest) {
    return base.index.timeline >= manifest->timeline || base.index.step <= manifest->base;
  }
  return base.index.timeline == newest;
}

}  // namespace

Result<Contents> look(Disk& disk, bool check) {
  Contents contents;
  const auto names = disk.list("");
  if (!names) return names.error();
  const auto bytes = disk.read(kManifestName);
  if (bytes) {
    auto manifest = read_manifest(text_of(bytes.value()), kManifestName);
    if (manifest) {
      contents.manifest = manifest.value();
    } else if (manifest.error().code == ErrorCode::unsupported) {
      return manifest.error();
    } else {
      contents.problems.push_back(manifest.error().to_string());
    }
  } else if (!is_missing(bytes.error())) {
    contents.problems.push_back(bytes.error().to_string());
  }
  uint32_t newest = 0;
  std::vector<Base> found;
  for (const std::string& name : names.value()) {
    const auto step = base_step(name);
    if (!step) continue;
    found.push_back(look_at_base(disk, name, *step, check));
    newest = std::max(newest, found.back().index.timeline);
  }
  for (Base& base : found) {
    if (!counts(base, contents.manifest, newest)) continue;
    if (!base.problem.empty()) {
      contents.problems.push_back(base.folder + ": " + base.problem);
    }
    contents.bases.push_back(std::move(base));
  }
  std::ranges::sort(contents.bases, std::ranges::greater{},
                    [](const Base& base) { return base.index.step; });
  if (contents.manifest && std::ranges::none_of(contents.bases, [&](const Base& base) {
        return base.index.step == contents.manifest->base;
      })) {
    contents.problems.push_back(base_name(contents.manifest->base) +
                                ": named by the manifest, and missing");
  }
  return contents;
}

Result<std::optional<State>> newest_state(Disk& disk, const Contents& contents) {
  const std::optional<Manifest>& manifest = contents.manifest;
  for (const Base& base : contents.bases) {
    if (!base.problem.empty()) continue;
    const bool named = manifest && manifest->base == base.index.step;
    const uint64_t first = named ? manifest->sequence : base.index.sequence;
    auto log = read_log(disk, base.index.identity, first);
    if (!log) return log.error();
    // A step that could not be logged leaves a hole, until the next base.
    auto& entries = log.value().entries;
    uint64_t step = base.index.step;
    entries.erase(std::ranges::find_if(
                      entries, [&](const LogEntry& one) { return one.header.step != ++step; }),
                  entries.end());
    return std::optional<State>(State{.base = base, .log = std::move(log).value()});
  }
  if (contents.empty()) return std::optional<State>();
  std::string text = disk.path() + ": no base is whole";
  for (const std::string& problem : contents.problems) text += "; " + problem;
  return Error{.code = ErrorCode::corrupt, .message = std::move(text)};
}

Result<uint64_t> fresh_sequence(Disk& disk, const Contents& contents) {
  uint64_t next = contents.manifest ? contents.manifest->sequence : 0;
  for (const Base& base : contents.bases) next = std::max(next, base.index.sequence);
  const auto names = disk.list("");
  if (!names) return names.error();
  for (const std::string& name : names.value()) {
    const auto sequence = segment_sequence(name);
    if (!sequence) continue;
    next = std::max(next, *sequence + 1);
    const auto bytes = disk.read(name);
    if (!bytes) return bytes.error();
    for (size_t at = kSegmentHeaderBytes; at < bytes.value().size();) {
      const auto entry = read_entry(Bytes(bytes.value()).subspan(at));
      if (!entry) break;
      next = std::max(next, entry->header.sequence + 1);
      at += entry->bytes();
    }
  }
  return next;
}

Result<void> write_manifest_file(Disk& disk, const Manifest& manifest) {
  if (Result<void> wrote = write_text(disk, kManifestNext, write_manifest(manifest)); !wrote) {
    return wrote;
  }
  if (Result<void> named = disk.rename(kManifestNext, kManifestName); !named) return named;
  return disk.sync_folder("");
}

Result<void> seal_base(Disk& disk, const BaseIndex& index, uint64_t oldest) {
  const std::string part = part_name(index.step);
  const std::string name = base_name(index.step);
  if (Result<void> wrote = write_text(disk, part + "/" + kIndexName, write_index(index)); !wrote) {
    return wrote;
  }
  if (Result<void> synced = disk.sync_folder(part); !synced) return synced;
  // A damaged one of the same step, or the same one, may stand there.
  if (disk.list(name)) {
    if (Result<void> removed = disk.remove(name); !removed) return removed;
  }
  if (Result<void> named = disk.rename(part, name); !named) return named;
  if (Result<void> synced = disk.sync_folder(""); !synced) return synced;
  return write_manifest_file(disk, {.identity = index.identity,
                                    .timeline = index.timeline,
                                    .base = index.step,
                                    .sequence = index.sequence,
                                    .oldest = std::min(oldest, index.step)});
}

Result<void> clear_old(Disk& disk, const Manifest& manifest, bool nobody_writes) {
  const auto names = disk.list("");
  if (!names) return names.error();
  // The log of the oldest base that is kept begins here; of one that cannot be read all of it
  // stays.
  uint64_t first = manifest.sequence;
  std::vector<std::string> gone;
  std::vector<std::pair<uint64_t, std::string>> segments;
  for (const std::string& name : names.value()) {
    if (const auto sequence = segment_sequence(name)) {
      segments.emplace_back(*sequence, name);
    } else if (const auto step = base_step(name)) {
      const Base base = look_at_base(disk, name, *step, false);
      const bool taken_back =
          base.problem.empty() && *step > manifest.base && base.index.timeline < manifest.timeline;
      if (*step < manifest.oldest || taken_back) {
        gone.push_back(name);
      } else {
        first = std::min(first, base.index.sequence);
      }
    } else if (name == kManifestNext ||
               (is_part(name) && (nobody_writes || name <= part_name(manifest.base)))) {
      gone.push_back(name);
    }
  }
  std::ranges::sort(segments);
  for (size_t i = 0; i + 1 < segments.size(); ++i) {
    if (segments[i + 1].first <= first) gone.push_back(segments[i].second);
  }
  for (const std::string& name : gone) {
    if (Result<void> removed = disk.remove(name); !removed) return removed;
  }
  return {};
}

}  // namespace scant::journal
