// Rendezvous through a directory that every rank sees. A value is written to a file of its own and
// then renamed or linked to its key, so a reader sees all of it or nothing. Waiting is polling:
// network file systems offer no more.
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <fcntl.h>
#include <string>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#include "net/socket.h"
#include "scant/collective/store.h"

namespace scant {
namespace {

constexpr size_t kValueBytesMax = 64 * 1024;
constexpr auto kPollFirst = std::chrono::milliseconds(1);
constexpr auto kPollLast =
    std::chrono::milliseconds(50);  // bounds the load on a network file system

// Letters, digits and a few marks stand for themselves, everything else is %XX.
std::string file_name(std::string_view key) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string name = "scant.";
  for (const char c : key) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '-' || c == '_';
    if (plain) {
      name += c;
    } else {
      name += '%';
      name += kHex[byte >> 4];
      name += kHex[byte & 15];
    }
  }
  return name;
}

class DirectoryStore final : public Store {
 public:
  explicit DirectoryStore(std::string path) : path_(std::move(path)) {}

  Result<void> set(std::string_view key, std::string_view value) override {
    const std::string target = file_of(key);
    auto temporary = write_temporary(value);
    if (!temporary) return temporary.error();
    if (rename(temporary.value().c_str(), target.c_str()) != 0) {
      const Error error = failed("cannot rename to " + target);
      unlink(temporary.value().c_str());
      return error;
    }
    return {};
  }

  Result<bool> set_if_absent(std::string_view key, std::string_view value) override {
    const std::string target = file_of(key);
    auto temporary = write_temporary(value);
    if (!temporary) return temporary.error();
    const int outcome = link(temporary.value().c_str(), target.c_str());
    const int link_errno = errno;
    unlink(temporary.value().c_str());
    if (outcome == 0) return true;
    if (link_errno == EEXIST) return false;
    return Error{ErrorCode::io, link_errno, kNoRank, "cannot create " + target};
  }

  Result<std::string> get(std::string_view key, Duration timeout) override {
    const Time deadline = std::chrono::steady_clock::now() + timeout;
    const std::string target = file_of(key);
    Duration pause = kPollFirst;
    for (;;) {
      auto value = read(target);
      if (value || value.error().sys_errno != ENOENT) return value;
      const Time now = std::chrono::steady_clock::now();
      if (now >= deadline) {
        return Error{ErrorCode::timeout, 0, kNoRank,
                     "key '" + std::string(key) + "' did not appear in " + path_};
      }
      std::this_thread::sleep_for(std::min<Duration>(pause, deadline - now));
      pause = std::min<Duration>(pause * 2, kPollLast);
    }
  }

 private:
  static Error failed(const std::string& what) {
    return Error{ErrorCode::io, errno, kNoRank, what};
  }
  [[nodiscard]] std::string file_of(std::string_view key) const {
    return path_ + "/" + file_name(key);
  }

  Result<std::string> write_temporary(std::string_view value) {
    if (value.size() > kValueBytesMax) {
      return Error{ErrorCode::invalid_argument, 0, kNoRank, "value of more than 64 KiB"};
    }
    static std::atomic<uint64_t> serial{0};  // pairs with nothing: only makes names differ
    const std::string name = path_ + "/.scant." + net::host_name() + "." +
                             std::to_string(getpid()) + "." +
                             std::to_string(serial.fetch_add(1, std::memory_order_relaxed));
    // Values include the job's secret: nobody else reads them.
    const net::Fd fd(open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!fd.open()) return failed("cannot write in " + path_);
    size_t written = 0;
    while (written < value.size()) {
      const ssize_t n = write(fd.get(), value.data() + written, value.size() - written);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        const Error error = failed("cannot write " + name);
        unlink(name.c_str());
        return error;
      }
      written += static_cast<size_t>(n);
    }
    return name;
  }

  static Result<std::string> read(const std::string& name) {
    const net::Fd fd(open(name.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.open()) return failed("cannot read " + name);
    std::string value;
    std::array<char, 4096> piece{};
    for (;;) {
      const ssize_t n = ::read(fd.get(), piece.data(), piece.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return failed("cannot read " + name);
      if (n == 0) return value;
      value.append(piece.data(), static_cast<size_t>(n));
      if (value.size() > kValueBytesMax) {
        return Error{ErrorCode::corrupt, 0, kNoRank, name + " is larger than any value"};
      }
    }
  }

  std::string path_;
};

}  // namespace

Result<std::unique_ptr<Store>> open_directory_store(const std::string& path) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return Error{ErrorCode::io, errno, kNoRank, "cannot create directory " + path};
  }
  struct stat info {};
  if (stat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return Error{ErrorCode::invalid_argument, 0, kNoRank, path + " is not a directory"};
  }
  return std::unique_ptr<Store>(std::make_unique<DirectoryStore>(path));
}

}  // namespace scant
