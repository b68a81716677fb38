// A disk in memory for tests: it keeps apart what was written, what was synced and what names are
// durable, fails at the n-th operation, and then forgets by a seed what a power cut may take.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "journal/disk.h"

namespace scant::journal {

class SimulatedDisk final : public Disk {
 public:
  // Operations that change something, counted from 1; the one at which the power goes is not done,
  // and nothing after it. 0: never.
  void cut_power_at(uint64_t operation) { cut_at_ = operation; }
  enum class Operation : uint8_t {
    append,
    sync,
    create,
    make_folder,
    rename,
    remove,
    sync_file,
    sync_folder
  };
  [[nodiscard]] uint64_t operations() const { return operations_.size(); }
  [[nodiscard]] const std::vector<Operation>& done() const { return operations_; }
  [[nodiscard]] bool is_off() const { return off_; }

  // What is found after the power came back. Of each file a prefix of what was not synced stays,
  // some of its pages as zeros; of changes of names that were not synced, any subset.
  void restart(base::Rng& rng);
  // The process was killed: everything that was written is there.
  void restart_process();

  [[nodiscard]] std::string path() const override { return "(simulated)"; }
  Result<std::unique_ptr<File>> create(const std::string& name) override;
  Result<std::vector<std::byte>> read(const std::string& name) override;
  Result<FileSum> sum(const std::string& name) override;
  Result<std::vector<std::string>> list(const std::string& folder) override;
  Result<void> make_folder(const std::string& name) override;
  Result<void> rename(const std::string& from, const std::string& to) override;
  Result<void> remove(const std::string& name) override;
  Result<void> sync_file(const std::string& name) override;
  Result<void> sync_folder(const std::string& name) override;

  // Damages what is there now; false when there is no such file or it is shorter.
  bool flip_bit(const std::string& name, uint64_t bit);
  bool truncate(const std::string& name, uint64_t bytes);

 private:
  friend class SimulatedFile;
  struct Node;
  using Names = std::map<std::string, std::shared_ptr<Node>>;  // a rename moves a whole folder
  struct Node {
    bool folder = false;
    std::vector<std::byte> bytes{};
    uint64_t synced = 0;           // bytes
    Names now{};                   // as the process sees them
    Names durable{};               // as the last sync of the folder left them
    std::vector<Names> pending{};  // changes since, each at once or not at all; null: no such name
  };

  [[nodiscard]] bool step(Operation operation);  // false: the power is off
  [[nodiscard]] std::shared_ptr<Node> find(const std::string& name) const;
  [[nodiscard]] Result<void> change(const std::string& folder, Names names);
  static void forget(Node& node, base::Rng& rng);

  std::shared_ptr<Node> root_ = std::make_shared<Node>(Node{.folder = true});
  std::vector<Operation> operations_;
  uint64_t cut_at_ = 0;
  bool off_ = false;
};

}  // namespace scant::journal
