// Two folders with the same content: what is done to the first is done to the second. Reading asks
// the first alone.
#include <algorithm>
#include <utility>

#include "journal/disk.h"
#include "journal/folder.h"
#include "journal/format.h"

namespace scant::journal {
namespace {

class MirrorFile final : public File {
 public:
  MirrorFile(std::unique_ptr<File> first, std::unique_ptr<File> second)
      : first_(std::move(first)), second_(std::move(second)) {}
  Result<void> append(std::span<const Bytes> pieces) override {
    Result<void> done = first_->append(pieces);
    return done ? second_->append(pieces) : done;
  }
  Result<void> sync() override {
    Result<void> done = first_->sync();
    return done ? second_->sync() : done;
  }

 private:
  std::unique_ptr<File> first_;
  std::unique_ptr<File> second_;
};

class MirrorDisk final : public Disk {
 public:
  MirrorDisk(std::unique_ptr<Disk> first, std::unique_ptr<Disk> second)
      : first_(std::move(first)), second_(std::move(second)) {}

  [[nodiscard]] std::string path() const override { return first_->path(); }
  Result<std::unique_ptr<File>> create(const std::string& name) override {
    auto first = first_->create(name);
    if (!first) return first;
    auto second = second_->create(name);
    if (!second) return second;
    return std::unique_ptr<File>(
        std::make_unique<MirrorFile>(std::move(first).value(), std::move(second).value()));
  }
  Result<std::vector<std::byte>> read(const std::string& name) override {
    return first_->read(name);
  }
  Result<FileSum> sum(const std::string& name) override { return first_->sum(name); }
  Result<std::vector<std::string>> list(const std::string& folder) override {
    return first_->list(folder);
  }
  Result<void> make_folder(const std::string& name) override {
    return both([&](Disk& disk) { return disk.make_folder(name); });
  }
  Result<void> rename(const std::string& from, const std::string& to) override {
    return both([&](Disk& disk) { return disk.rename(from, to); });
  }
  Result<void> remove(const std::string& name) override {
    return both([&](Disk& disk) { return disk.remove(name); });
  }
  Result<void> sync_file(const std::string& name) override {
    return both([&](Disk& disk) { return disk.sync_file(name); });
  }
  Result<void> sync_folder(const std::string& name) override {
    return both([&](Disk& disk) { return disk.sync_folder(name); });
  }

 private:
  template <typename Do>
  Result<void> both(const Do& act) {
    Result<void> done = act(*first_);
    return done ? act(*second_) : done;
  }
  std::unique_ptr<Disk> first_;
  std::unique_ptr<Disk> second_;
};

bool is_of_journal(const std::string& name) {
  return segment_sequence(name) || name.starts_with("base-0") || name.starts_with(kManifestName);
}

// What is whole nowhere else is not deleted: an older state of the same job is all that may go.
Result<void> check_replica(Disk& first, Disk& second) {
  const auto other = look(second, false);
  if (!other) return other.error();
  if (other.value().empty()) return {};
  const auto own = look(first);
  if (!own) return own.error();
  const auto newest = [](const Contents& of) {
    const auto whole =
        std::ranges::find_if(of.bases, [](const Base& one) { return one.problem.empty(); });
    return whole == of.bases.end() ? nullptr : &*whole;
  };
  const Base* here = newest(own.value());
  const Base* there = newest(other.value());
  if (there == nullptr) return {};
  if (here != nullptr && here->index.identity == there->index.identity &&
      here->index.step >= there->index.step) {
    return {};
  }
  return Error{.code = ErrorCode::refused,
               .message = "journal: the replica " + second.path() + " has a base of step " +
                          std::to_string(there->index.step) + " that " + first.path() +
                          " lacks: restore from the replica, or move it away"};
}

// A replica that lacks earlier files would not be one: it gets them first.
Result<void> copy_folder(Disk& from, Disk& to, const std::string& folder) {
  const auto names = from.list(folder);
  if (!names) return names.error();
  for (const std::string& name : names.value()) {
    std::string path = folder;
    if (!path.empty()) path.append("/");
    path.append(name);
    if (name == "LOCK" || name.starts_with(".")) continue;
    const auto bytes = from.read(path);
    if (!bytes && from.list(path)) {
      if (Result<void> made = to.make_folder(path); !made) return made;
      if (Result<void> copied = copy_folder(from, to, path); !copied) return copied;
      continue;
    }
    if (!bytes) return bytes.error();
    auto file = to.create(path);
    if (!file) return file.error();
    const Bytes piece(bytes.value());
    if (Result<void> wrote = file.value()->append({&piece, 1}); !wrote) return wrote;
    if (Result<void> synced = file.value()->sync(); !synced) return synced;
  }
  return to.sync_folder(folder);
}

}  // namespace

Result<std::unique_ptr<Disk>> mirror(std::unique_ptr<Disk> first, std::unique_ptr<Disk> second,
                                     bool fill) {
  if (fill) {
    // What an earlier replica holds goes; then everything that the first folder has comes.
    const auto names = second->list("");
    if (!names) return names.error();
    if (Result<void> fits = check_replica(*first, *second); !fits) return fits.error();
    for (const std::string& name : names.value()) {
      if (!is_of_journal(name)) continue;
      if (Result<void> removed = second->remove(name); !removed) return removed.error();
    }
    if (Result<void> copied = copy_folder(*first, *second, ""); !copied) return copied.error();
  }
  return std::unique_ptr<Disk>(std::make_unique<MirrorDisk>(std::move(first), std::move(second)));
}

}  // namespace scant::journal
