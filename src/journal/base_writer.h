// Copies this rank's files of a base while training goes on, and writes them; on the folder's first
// rank it also gives the base its name once all ranks are done. docs/journal.md, "A base becomes
// durable". Owner threads: one user thread calls; scant-copy reads what is to be copied, between
// start() and finish_copying() only; scant-base writes, syncs and seals. Memory: the staging.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/buffer.h"
#include "base/queue.h"
#include "base/thread.h"
#include "journal/folder.h"

namespace scant::journal {

struct BaseWriterOptions {
  uint32_t rank = 0;   // of those that share the folder
  uint32_t ranks = 1;  // rank 0 seals
  uint64_t staging_bytes = uint64_t{16} << 20;
  uint64_t chunk_bytes = uint64_t{1} << 20;
  uint32_t keep_bases = 2;
};

// A file: bytes that stay, then others that are copied while they are.
struct BaseSource {
  std::string name;
  std::vector<std::byte> head;
  std::vector<Bytes> copied;
  // Instead of both: the thread scant-base makes the bytes, which become the one tensor of a
  // safetensors file, of this name.
  std::function<std::vector<std::byte>()> made;
  std::string tensor;
};

struct BaseDone {
  uint64_t step = 0;
  uint64_t bytes = 0;   // of this rank's files
  double copy_s = 0;    // the thread scant-copy at work
  double write_s = 0;   // the thread scant-base at work, until this rank's files were durable
  bool sealed = false;  // this is the folder's first rank, and the base has its name
};

class BaseWriter {
 public:
  static Result<std::unique_ptr<BaseWriter>> create(Disk& disk, const BaseWriterOptions& options);
  ~BaseWriter();  // drops what is not done
  BaseWriter(const BaseWriter&) = delete;
  BaseWriter& operator=(const BaseWriter&) = delete;

  // The identity, timeline, step and sequence of `index` are equal on all ranks; its files are not
  // looked at. What an earlier process began was cleared (clear_old()) before any rank starts.
  Result<void> start(BaseIndex index, std::vector<BaseSource> files);
  // Between start() and finish_copying(): so many more bytes may be copied now.
  void grant(uint64_t bytes);
  // Before what is copied changes: returns when all of it has been; `late` is another file, if it
  // has a name. Seconds that it took.
  Result<double> finish_copying(std::string late = {}, std::vector<std::byte> content = {});
  // One base at a time: this rank's files are not durable yet, or the base has no name yet.
  [[nodiscard]] bool busy() const { return busy_; }
  // Now and then: what became durable since. Waits for it so long; ErrorCode::timeout: still not.
  Result<std::optional<BaseDone>> poll(Duration wait = Duration::zero());

 private:
  struct Chunk {
    base::Buffer buffer;
    uint64_t bytes = 0;
    uint32_t file = 0;
  };
  struct Begin {
    BaseIndex index;
    std::vector<BaseSource>* files = nullptr;  // the user's, until finish_copying()
  };
  struct End {
    std::string late;
    std::vector<std::byte> content;
  };
  struct Poke {};
  struct Stop {};
  using Event = std::variant<Begin, Chunk, End, Poke, Stop>;
  struct Copy {
    const std::vector<BaseSource>* files = nullptr;
  };

  BaseWriter(Disk& disk, const BaseWriterOptions& options);
  void copy_loop();
  bool copy_files(const std::vector<BaseSource>& files);
  void write_loop();
  Result<void> on_event(Event& event);
  Result<void> begin(Begin& begin);
  Result<void> write(Chunk& chunk);
  Result<void> end(const End& last);
  Result<void> append(uint32_t file, Bytes bytes);
  Result<void> seal_if_all_done();

  Disk& disk_;
  const BaseWriterOptions options_;

  std::vector<BaseSource> files_;  // the user's
  bool copying_ = false;
  bool busy_ = false;
  std::optional<Error> error_;

  base::BoundedQueue<Copy> copies_{1};
  base::BoundedQueue<uint64_t> grants_{1024};  // bytes; kAll: no limit
  base::BoundedQueue<double> copied_{1};       // seconds of work
  double copy_s_ = 0;                          // the user's
  base::BoundedQueue<base::Buffer> free_;
  base::BoundedQueue<Event> events_{1024};
  base::BoundedQueue<Result<BaseDone>> done_{16};

  // The thread scant-base's.
  BaseIndex index_;
  std::vector<std::unique_ptr<File>> open_;
  bool sealing_ = false;
  double write_s_ = 0;
  std::vector<uint64_t> kept_;  // steps of bases that have a name, oldest first
  bool looked_ = false;
  std::optional<Error> write_error_;
  BaseDone now_;

  base::Thread copy_thread_;
  base::Thread write_thread_;
};

}  // namespace scant::journal
