#include "journal/folder.h"

#include <algorithm>
#include <utility>

namespace scant::journal {
namespace {

constexpr int kLooks = 5;

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

// Of a base whose index cannot be read only the folder's name tells the step. An error: another
// version wrote it.
Result<Base> look_at_base(Disk& disk, const std::string& folder, uint64_t step, bool check) {
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
    if (index.error().code == ErrorCode::unsupported) return index.error();
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

// Steps that were taken back do not count.
bool counts(const Base& base, const std::optional<Manifest>& manifest, uint32_t newest) {
  // To be told of, unless it is being removed.
  if (!base.problem.empty()) return !manifest || base.index.step >= manifest->oldest;
  if (manifest) {
    return base.index.timeline >= manifest->timeline || base.index.step <= manifest->base;
  }
  return base.index.timeline == newest;
}

}  // namespace

namespace {

Result<Contents> look_once(Disk& disk, bool check) {
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
    auto base = look_at_base(disk, name, *step, check);
    if (!base) return base.error();
    found.push_back(std::move(base).value());
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

}  // namespace

// Its writer may name a base and remove another meanwhile: what looks wrong is looked at again.
Result<Contents> look(Disk& disk, bool check) {
  for (int left = kLooks;; --left) {
    auto contents = look_once(disk, check);
    const bool odd = !contents || !contents.value().problems.empty();
    if (!odd || left == 0) return contents;
    const auto now = disk.read(kManifestName);
    const auto same = now ? read_manifest(text_of(now.value()), kManifestName) : Error{};
    if (contents && same && contents.value().manifest == same.value()) return contents;
    if (!now) return contents;
  }
}

Result<std::optional<State>> newest_state(Disk& disk, const Contents& contents) {
  const std::optional<Manifest>& manifest = contents.manifest;
  for (const Base& base : contents.bases) {
    if (!base.problem.empty()) continue;
    const bool named = manifest && manifest->base == base.index.step;
    auto log =
        read_log(disk, base.index.identity, base.index.sequence, named ? manifest->sequence : 0);
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
    const auto highest = highest_sequence(name, bytes.value());
    if (highest) next = std::max(next, *highest + 1);
  }
  return next;
}

Result<void> sync_state(Disk& disk, const State& state) {
  const std::string* last = nullptr;
  for (const LogEntry& entry : state.log.entries) {
    if (last != nullptr && *last == entry.segment) continue;
    last = &entry.segment;
    if (Result<void> synced = disk.sync_file(*last); !synced) return synced;
  }
  return disk.sync_folder("");
}

Result<void> write_manifest_file(Disk& disk, const Manifest& manifest) {
  if (Result<void> wrote = write_text(disk, kManifestNext, write_manifest(manifest)); !wrote) {
    return wrote;
  }
  if (Result<void> named = disk.rename(kManifestNext, kManifestName); !named) return named;
  return disk.sync_folder("");
}

Result<void> replace_manifest(Disk& disk, const Manifest& manifest) {
  Result<void> wrote = write_manifest_file(disk, manifest);
  return wrote ? clear_old(disk, manifest) : wrote;
}

Result<void> clear_begun(Disk& disk, const Contents& contents) {
  return clear_old(disk, contents.manifest.value_or(Manifest{.base = UINT64_MAX, .sequence = 0}));
}

Result<std::optional<State>> state_from(Disk& disk, std::optional<uint64_t> base_step,
                                        bool check_files) {
  auto contents = look(disk, check_files);
  if (!contents) return contents.error();
  if (base_step) {
    std::erase_if(contents.value().bases,
                  [&](const Base& base) { return base.index.step != *base_step; });
  }
  return newest_state(disk, contents.value());
}

Manifest manifest_of(const BaseIndex& index, uint64_t oldest) {
  return {.identity = index.identity,
          .timeline = index.timeline,
          .base = index.step,
          .sequence = index.sequence,
          .oldest = std::min(oldest, index.step)};
}

namespace {

// Whether a base of this name is there, whole, and of a past that counts.
Result<bool> is_whole(Disk& disk, const std::string& name) {
  const auto contents = look(disk, false);
  if (!contents) return contents.error();
  return std::ranges::any_of(contents.value().bases, [&](const Base& base) {
    return base.folder == name && base.problem.empty() && check_files(disk, base).empty();
  });
}

}  // namespace

Result<void> seal_base(Disk& disk, const BaseIndex& index, uint64_t oldest) {
  const std::string part = part_name(index.step);
  const std::string name = base_name(index.step);
  if (Result<void> wrote = write_text(disk, part + "/" + kIndexName, write_index(index)); !wrote) {
    return wrote;
  }
  if (Result<void> synced = disk.sync_folder(part); !synced) return synced;
  const auto whole = is_whole(disk, name);
  if (!whole) return whole.error();
  if (Result<void> removed = disk.remove(whole.value() ? part : name); !removed) return removed;
  if (!whole.value()) {
    if (Result<void> named = disk.rename(part, name); !named) return named;
  }
  if (Result<void> synced = disk.sync_folder(""); !synced) return synced;
  return write_manifest_file(disk, manifest_of(index, oldest));
}

namespace {

// What clear_old() removes. Bases first lose their name, so that none is found half removed.
struct Old {
  std::vector<uint64_t> bases;
  std::vector<std::string> others;
};

Result<Old> find_old(Disk& disk, const Manifest& manifest, std::optional<uint64_t> kept_parts) {
  const auto names = disk.list("");
  if (!names) return names.error();
  // The log of the oldest base that is kept begins here; of one that cannot be read all of it
  // stays.
  uint64_t first = manifest.sequence;
  Old old;
  std::vector<std::pair<uint64_t, std::string>> segments;
  for (const std::string& name : names.value()) {
    if (const auto sequence = segment_sequence(name)) {
      segments.emplace_back(*sequence, name);
    } else if (const auto step = base_step(name)) {
      const auto found = look_at_base(disk, name, *step, false);
      if (!found) return found.error();
      const Base& base = found.value();
      const bool taken_back =
          base.problem.empty() && *step > manifest.base && base.index.timeline < manifest.timeline;
      if (*step < manifest.oldest || taken_back) {
        old.bases.push_back(*step);
      } else {
        first = std::min(first, base.index.sequence);
      }
    } else if (const auto part = part_step(name)) {
      if (!kept_parts || *part < *kept_parts) old.others.push_back(name);
    } else if (name == kManifestNext) {
      old.others.push_back(name);
    }
  }
  std::ranges::sort(segments);
  for (size_t i = 0; i + 1 < segments.size(); ++i) {
    if (segments[i + 1].first <= first) old.others.push_back(segments[i].second);
  }
  return old;
}

}  // namespace

Result<void> clear_old(Disk& disk, const Manifest& manifest, std::optional<uint64_t> kept_parts) {
  auto old = find_old(disk, manifest, kept_parts);
  if (!old) return old.error();
  auto& [bases, others] = old.value();
  if (bases.empty() && others.empty()) return {};
  // The manifest may be one that a killed process left.
  if (Result<void> synced = disk.sync_folder(""); !synced) return synced;
  for (const std::string& name : others) {
    if (Result<void> removed = disk.remove(name); !removed) return removed;
  }
  if (bases.empty()) return {};
  for (const uint64_t step : bases) {
    if (Result<void> named = disk.rename(base_name(step), part_name(step)); !named) return named;
  }
  if (Result<void> synced = disk.sync_folder(""); !synced) return synced;
  for (const uint64_t step : bases) {
    if (Result<void> removed = disk.remove(part_name(step)); !removed) return removed;
  }
  return {};
}

}  // namespace scant::journal
