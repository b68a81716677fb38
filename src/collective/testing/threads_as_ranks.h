// Test support: threads of one process are the ranks, over real sockets on loopback.
#pragma once

#include <filesystem>
#include <functional>
#include <gtest/gtest.h>
#include <memory>
#include <stdlib.h>
#include <string>
#include <thread>
#include <vector>

#include "scant/collective/communicator.h"

namespace scant::collective {

// A directory that is removed when the test ends.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "scant-test-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline CommunicatorOptions options_for(Rank rank, int size) {
  CommunicatorOptions options;
  options.rank = rank;
  options.size = size;
  options.address = "127.0.0.1";
  options.connect_timeout = std::chrono::seconds(30);
  options.operation_timeout = std::chrono::seconds(60);
  return options;
}

inline std::unique_ptr<Communicator> connect(const std::string& directory, Rank rank, int size) {
  Result<std::unique_ptr<Store>> store = open_directory_store(directory);
  if (!store) {
    ADD_FAILURE() << store.error().to_string();
    return nullptr;
  }
  auto communicator = Communicator::create(*store.value(), options_for(rank, size));
  if (!communicator) {
    ADD_FAILURE() << "rank " << rank << ": " << communicator.error().to_string();
    return nullptr;
  }
  return std::move(communicator.value());
}

// Runs `body` once for each rank, each on its own thread with its own communicator.
inline void on_ranks(int size, const std::function<void(Communicator&)>& body) {
  const TemporaryDirectory directory;
  std::vector<std::thread> threads;
  for (Rank rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      const std::unique_ptr<Communicator> communicator = connect(directory.path(), rank, size);
      if (communicator != nullptr) body(*communicator);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace scant::collective
