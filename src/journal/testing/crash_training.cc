#include "journal/testing/crash_training.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/crc.h"
#include "base/little_endian.h"
#include "base/rng.h"

namespace scant::journal::testing {
namespace {

constexpr uint64_t kModel = 77;
constexpr uint64_t kSegmentBytesMax = 6000;  // some entries fill one alone
constexpr size_t kKeepBases = 2;

uint64_t next_state(uint64_t state, uint64_t life, uint64_t step) {
  return base::random_at(state, life, step);
}

// Three numbers, then bytes drawn from them: some entries are shorter than a page, some longer.
std::vector<std::byte> content(uint64_t state, uint64_t life, uint64_t step, uint64_t most) {
  base::Rng rng(state, life ^ step);
  std::vector<std::byte> out(24 + rng.below(most));
  base::store_little(out.data(), state);
  base::store_little(out.data() + 8, life);
  base::store_little(out.data() + 16, step);
  for (size_t i = 24; i < out.size(); ++i) out[i] = static_cast<std::byte>(rng.next());
  return out;
}

constexpr uint64_t kEntryMost = 5000;
constexpr uint64_t kBaseMost = 9000;

struct Numbers {
  uint64_t state = 0;
  uint64_t life = 0;
  uint64_t step = 0;
};
std::optional<Numbers> numbers(Bytes bytes, uint64_t most) {
  if (bytes.size() < 24) return std::nullopt;
  const Numbers found{base::load_little<uint64_t>(bytes.data()),
                      base::load_little<uint64_t>(bytes.data() + 8),
                      base::load_little<uint64_t>(bytes.data() + 16)};
  if (!std::ranges::equal(content(found.state, found.life, found.step, most), bytes)) {
    return std::nullopt;
  }
  return found;
}

Result<FileSum> write_file(Disk& disk, const std::string& name, Bytes bytes) {
  auto file = disk.create(name);
  if (!file) return file.error();
  if (Result<void> wrote = file.value()->append({&bytes, 1}); !wrote) return wrote.error();
  if (Result<void> synced = file.value()->sync(); !synced) return synced.error();
  return FileSum{bytes.size(), base::crc32c(bytes)};
}

std::string replay(Disk& disk, const Truth& truth, const State& state) {
  const auto model = disk.read(state.base.folder + "/model");
  if (!model) return "no model in a base: " + model.error().to_string();
  const auto based = numbers(model.value(), kBaseMost);
  uint64_t step = state.base.index.step;
  if (!based || based->step != step) return "a base of other content";
  uint64_t value = based->state;
  if (step >= truth.states.size() || truth.states[step] != value) {
    return "a base of a past that does not count, step " + std::to_string(step);
  }
  LogReader reader(disk);
  for (const LogEntry& entry : state.log.entries) {
    const auto body = reader.body(entry);
    if (!body) return body.error().to_string();
    const auto found = numbers(body.value(), kEntryMost);
    const std::string which = "entry " + std::to_string(entry.header.sequence) + " of step " +
                              std::to_string(entry.header.step);
    if (!found || found->step != entry.header.step) return which + ": other content";
    if (found->step != ++step || found->state != value) return which + ": another state before it";
    value = next_state(value, found->life, step);
    if (step >= truth.states.size() || truth.states[step] != value) {
      return which + ": of a past that does not count";
    }
  }
  return {};
}

}  // namespace

std::string verify(Disk& disk, const Truth& truth, Restart restart, bool problems) {
  const auto contents = look(disk);
  if (!contents) return contents.error().to_string();
  if (!problems && !contents.value().problems.empty()) {
    return "a problem: " + contents.value().problems.front();
  }
  const auto state = newest_state(disk, contents.value());
  if (!state) return state.error().to_string();
  if (!state.value()) return truth.has_base ? "nothing was found" : "";
  if (std::string wrong = replay(disk, truth, *state.value()); !wrong.empty()) return wrong;
  const uint64_t least =
      restart == Restart::power || !truth.has_base ? truth.durable : truth.appended;
  if (truth.has_base && state.value()->step() < least) {
    return "step " + std::to_string(state.value()->step()) + " was found, not " +
           std::to_string(least);
  }
  return {};
}

Result<void> Training::begin(size_t exact) {
  auto looked = look(disk_);
  if (!looked) return looked.error();
  Contents& contents = looked.value();
  if (Result<void> cleared = clear_begun(disk_, contents); !cleared) return cleared;
  const auto sequence = fresh_sequence(disk_, contents);
  if (!sequence) return sequence.error();
  if (exact > 0 && contents.bases.size() >= exact) {
    contents.bases.erase(contents.bases.begin(),
                         contents.bases.begin() + static_cast<std::ptrdiff_t>(exact - 1));
  }
  auto found = newest_state(disk_, contents);
  if (!found) return found.error();
  if (!found.value()) return begin_empty(contents);
  const State& state = *found.value();
  if (Result<void> synced = sync_state(disk_, state); !synced) return synced;
  identity_ = state.base.index.identity;
  timeline_ =
      std::max(state.base.index.timeline, contents.manifest ? contents.manifest->timeline : 0);
  log_.emplace(disk_, identity_, sequence.value(), kSegmentBytesMax, state.joins(exact > 0));
  if (exact > 0) return take_back(contents, state, sequence.value());
  truth_.states.resize(state.step() + 1);
  truth_.has_base = true;
  truth_.durable = synced_ = truth_.appended = state.step();
  return {};
}

Result<void> Training::begin_empty(const Contents& contents) {
  const auto sequence = fresh_sequence(disk_, contents);
  if (!sequence) return sequence.error();
  identity_ = {.job = life_, .model = kModel};
  truth_.states = {next_state(0, life_, 0)};
  truth_.durable = truth_.appended = 0;
  log_.emplace(disk_, identity_, sequence.value(), kSegmentBytesMax);
  return {};
}

Result<void> Training::take_back(const Contents& contents, const State& state, uint64_t sequence) {
  const uint64_t base = state.base.index.step;
  truth_.has_base = true;
  truth_.durable = synced_ = truth_.appended = base;
  const Manifest manifest{
      .identity = identity_,
      .timeline = ++timeline_,
      .base = base,
      .sequence = sequence,
      .oldest = contents.manifest ? std::min(contents.manifest->oldest, base) : base};
  if (Result<void> wrote = write_manifest_file(disk_, manifest); !wrote) return wrote;
  truth_.states.resize(base + 1);
  return clear_old(disk_, manifest);
}

Result<void> Training::play(const std::string& script) {
  for (const char action : script) {
    Result<void> played;
    if (action == 'e') played = step();
    if (action == 's') played = sync();
    if (action == 'b') played = begin_base();
    if (action == 'z') played = seal();
    if (!played) return played;
  }
  return {};
}

Result<void> Training::step() {
  const uint64_t before = truth_.states.back();
  const uint64_t step = now() + 1;
  const auto body = content(before, life_, step, kEntryMost);
  truth_.states.push_back(next_state(before, life_, step));
  const std::array<Bytes, 2> pieces{Bytes(body).first(9), Bytes(body).subspan(9)};
  const auto appended = log_->append(step, EntryKind::step, pieces);
  if (!appended) return appended.error();
  truth_.appended = step;
  return {};
}

Result<void> Training::sync() {
  if (Result<void> synced = log_->sync(); !synced) return synced;
  synced_ = now();
  if (truth_.has_base) truth_.durable = std::max(truth_.durable, synced_);
  return {};
}

// As BaseWriter of a single rank.
Result<void> Training::begin_base() {
  log_->cut();
  begun_ = BaseIndex{.identity = identity_,
                     .timeline = timeline_,
                     .step = now(),
                     .sequence = log_->next_sequence(),
                     .ranks = 1,
                     .files = {}};
  const std::string part = part_name(now());
  if (Result<void> made = disk_.make_folder(part); !made) return made;
  const auto model =
      write_file(disk_, part + "/model", content(truth_.states.back(), life_, now(), kBaseMost));
  if (!model) return model.error();
  begun_->files = {{"model", model.value().bytes, model.value().crc}};
  const std::string text = write_index(*begun_);
  const std::string name = part + "/rank-0000.files";
  const Bytes bytes(reinterpret_cast<const std::byte*>(text.data()), text.size());
  const auto index = write_file(disk_, name + ".next", bytes);
  if (!index) return index.error();
  begun_->files.push_back({"rank-0000.files", index.value().bytes, index.value().crc});
  return disk_.rename(name + ".next", name);
}

Result<void> Training::seal() {
  if (!std::exchange(looked_, true)) {
    const auto contents = look(disk_, false);
    if (!contents) return contents.error();
    for (const Base& base : contents.value().bases) {
      if (base.problem.empty() && base.index.step < begun_->step) {
        kept_.insert(kept_.begin(), base.index.step);
      }
    }
  }
  kept_.push_back(begun_->step);
  if (kept_.size() > kKeepBases) kept_.erase(kept_.begin(), kept_.end() - kKeepBases);
  if (Result<void> sealed = seal_base(disk_, *begun_, kept_.front()); !sealed) return sealed;
  truth_.has_base = true;
  truth_.durable = std::max({truth_.durable, synced_, begun_->step});
  return clear_old(disk_,
                   {.identity = identity_,
                    .timeline = timeline_,
                    .base = begun_->step,
                    .sequence = begun_->sequence,
                    .oldest = kept_.front()},
                   begun_->step + 1);
}

}  // namespace scant::journal::testing
