#include "journal/testing/disk_simulated.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/crc.h"

namespace scant::journal {
namespace {

constexpr uint64_t kPageBytes = 4096;

Error error_of(int number, const std::string& what) {
  return {.code = ErrorCode::io, .sys_errno = number, .message = "journal: cannot " + what};
}
Error off() { return error_of(EIO, "reach the disk: the power is off"); }

// "a/b" is b in a; "b" is b in the folder itself.
std::pair<std::string, std::string> split(const std::string& name) {
  const size_t slash = name.rfind('/');
  if (slash == std::string::npos) return {"", name};
  return {name.substr(0, slash), name.substr(slash + 1)};
}

}  // namespace

class SimulatedFile final : public File {
 public:
  SimulatedFile(SimulatedDisk& disk, std::shared_ptr<SimulatedDisk::Node> node)
      : disk_(disk), node_(std::move(node)) {}
  Result<void> append(std::span<const Bytes> pieces) override {
    const bool was_on = !disk_.off_;
    const bool on = disk_.step(SimulatedDisk::Operation::append);
    std::vector<std::byte> all;
    for (const Bytes piece : pieces) all.insert(all.end(), piece.begin(), piece.end());
    // What was under way when the power went may be there in part.
    if (!on) all.resize(was_on ? all.size() / 2 : 0);
    node_->bytes.insert(node_->bytes.end(), all.begin(), all.end());
    if (!on) return off();
    return {};
  }
  Result<void> sync() override {
    if (!disk_.step(SimulatedDisk::Operation::sync)) return off();
    node_->synced = node_->bytes.size();
    return {};
  }

 private:
  SimulatedDisk& disk_;
  std::shared_ptr<SimulatedDisk::Node> node_;
};

bool SimulatedDisk::step(Operation operation) {
  if (off_) return false;
  operations_.push_back(operation);
  off_ = operations_.size() == cut_at_;
  return !off_;
}

std::shared_ptr<SimulatedDisk::Node> SimulatedDisk::find(const std::string& name) const {
  if (name.empty()) return root_;
  const auto [folder, last] = split(name);
  const auto parent = find(folder);
  if (!parent) return nullptr;
  const auto found = parent->now.find(last);
  return found == parent->now.end() ? nullptr : found->second;
}

Result<void> SimulatedDisk::change(const std::string& folder, Names names) {
  const auto parent = find(folder);
  if (!parent || !parent->folder) return error_of(ENOENT, "find the folder " + folder);
  for (const auto& [name, node] : names) {
    if (node) {
      parent->now[name] = node;
    } else {
      parent->now.erase(name);
    }
  }
  parent->pending.push_back(std::move(names));
  return {};
}

Result<std::unique_ptr<File>> SimulatedDisk::create(const std::string& name) {
  if (!step(Operation::create)) return off();
  auto node = std::make_shared<Node>();
  const auto [folder, last] = split(name);
  if (Result<void> changed = change(folder, {{last, node}}); !changed) return changed.error();
  return std::unique_ptr<File>(std::make_unique<SimulatedFile>(*this, std::move(node)));
}

Result<std::vector<std::byte>> SimulatedDisk::read(const std::string& name) {
  const auto node = find(name);
  if (off_) return off();
  if (!node) return error_of(ENOENT, "open " + name);
  return node->bytes;
}

Result<FileSum> SimulatedDisk::sum(const std::string& name) {
  const auto bytes = read(name);
  if (!bytes) return bytes.error();
  return FileSum{bytes.value().size(), base::crc32c(bytes.value())};
}

Result<std::vector<std::string>> SimulatedDisk::list(const std::string& folder) {
  const auto node = find(folder);
  if (off_) return off();
  if (!node || !node->folder) return error_of(ENOENT, "list " + folder);
  std::vector<std::string> names;
  for (const auto& [name, child] : node->now) names.push_back(name);
  return names;
}

Result<void> SimulatedDisk::make_folder(const std::string& name) {
  if (!step(Operation::make_folder)) return off();
  if (find(name)) return {};
  const auto [folder, last] = split(name);
  return change(folder, {{last, std::make_shared<Node>(Node{.folder = true})}});
}

Result<void> SimulatedDisk::rename(const std::string& from, const std::string& to) {
  if (!step(Operation::rename)) return off();
  const auto node = find(from);
  const auto [folder, last] = split(from);
  if (!node || folder != split(to).first) return error_of(ENOENT, "rename " + from);
  const auto there = find(to);
  if (there && there->folder && !there->now.empty()) return error_of(ENOTEMPTY, "rename " + from);
  return change(folder, {{last, nullptr}, {split(to).second, node}});
}

Result<void> SimulatedDisk::remove(const std::string& name) {
  // What is in a folder goes first, each by itself.
  if (const auto node = find(name); node && node->folder) {
    const Names children = node->now;
    for (const auto& [child, unused] : children) {
      std::string path = name;
      path.append("/").append(child);
      if (Result<void> removed = remove(path); !removed) return removed;
    }
  }
  if (!step(Operation::remove)) return off();
  const auto [folder, last] = split(name);
  return change(folder, {{last, nullptr}});
}

Result<void> SimulatedDisk::sync_file(const std::string& name) {
  if (!step(Operation::sync_file)) return off();
  const auto node = find(name);
  if (!node || node->folder) return error_of(ENOENT, "sync " + name);
  node->synced = node->bytes.size();
  return {};
}

Result<void> SimulatedDisk::sync_folder(const std::string& name) {
  if (!step(Operation::sync_folder)) return off();
  const auto node = find(name);
  if (!node || !node->folder) return error_of(ENOENT, "sync the folder " + name);
  node->durable = node->now;
  node->pending.clear();
  return {};
}

void SimulatedDisk::forget(Node& node, base::Rng& rng) {
  if (node.folder) {
    for (const Names& names : node.pending) {
      if (rng.chance(0.5)) continue;
      for (const auto& [name, child] : names) {
        if (child) {
          node.durable[name] = child;
        } else {
          node.durable.erase(name);
        }
      }
    }
    node.now = node.durable;
    node.pending.clear();
    for (const auto& [name, child] : node.now) forget(*child, rng);
    return;
  }
  node.bytes.resize(node.synced + rng.below(node.bytes.size() - node.synced + 1));
  for (uint64_t at = node.synced; at < node.bytes.size();) {
    const uint64_t end = std::min<uint64_t>(node.bytes.size(), (at / kPageBytes + 1) * kPageBytes);
    if (rng.chance(0.3)) {
      std::fill(node.bytes.begin() + static_cast<std::ptrdiff_t>(at),
                node.bytes.begin() + static_cast<std::ptrdiff_t>(end), std::byte{0});
    }
    at = end;
  }
  node.synced = node.bytes.size();
}

void SimulatedDisk::restart(base::Rng& rng) {
  forget(*root_, rng);
  off_ = false;
  cut_at_ = 0;
}

void SimulatedDisk::restart_process() {
  off_ = false;
  cut_at_ = 0;
}

bool SimulatedDisk::flip_bit(const std::string& name, uint64_t bit) {
  const auto node = find(name);
  if (!node || bit / 8 >= node->bytes.size()) return false;
  node->bytes[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
  return true;
}

bool SimulatedDisk::truncate(const std::string& name, uint64_t bytes) {
  const auto node = find(name);
  if (!node || bytes > node->bytes.size()) return false;
  node->bytes.resize(bytes);
  return true;
}

}  // namespace scant::journal
