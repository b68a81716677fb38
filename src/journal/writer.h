// Writes a journal's log beside training. Owner threads: one user thread calls; scant-journal
// proves and appends entries, scant-fsync makes them durable. Memory: the gradients of one step.
// Limits: one step at a time is under way, and at most `unsynced_steps` are not durable.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/queue.h"
#include "base/thread.h"
#include "journal/folder.h"
#include "journal/log.h"
#include "journal/step.h"

namespace scant::journal {

struct WriterOptions {
  uint64_t segment_bytes_max = uint64_t{64} << 20;
  uint32_t unsynced_steps = 16;     // at most so many may a power cut take
  std::optional<uint64_t> joins{};  // State::joins(), where the log is taken up again
};

// What one step cost and became.
struct Logged {
  uint64_t sequence = 0;
  uint64_t bytes = 0;
  // False: the optimizer changed what it was given, and nothing was logged. What follows can be
  // restored from the next base on only.
  bool proven = false;
  bool as_is = false;  // all gradients as they are, though there were records
  float factor = 1;
  double begin_s = 0;     // the user's thread, before the optimizer's step
  double end_s = 0;       // likewise, after it: waiting for the entry, or for the disk
  double work_s = 0;      // the thread scant-journal
  uint32_t unsynced = 0;  // entries that were not durable when end() returned
};

struct SyncCost {
  double startup_s = 0;         // of a sync
  double bytes_per_second = 0;  // beyond that
  uint64_t syncs = 0;
};

class Writer {
 public:
  // `gradients`: bytes of each tensor. The disk must outlive it.
  static Result<std::unique_ptr<Writer>> create(Disk& disk, Identity identity, uint64_t sequence,
                                                std::vector<uint64_t> gradients,
                                                const WriterOptions& options);
  ~Writer();  // ends what is under way, syncs what can be
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  // Before the optimizer's step: `found` by tensor, as the optimizer will find them, empty where
  // there is none. Raw parts are copied; the bytes of others stay as they are until end().
  // Without parts all gradients are logged as they are.
  Result<void> begin(uint64_t step, std::vector<Bytes> found, std::vector<Part> parts,
                     uint32_t ranks, std::string settings);
  // After it: the entry was handed to the operating system. The first error that any thread met.
  Result<Logged> end();

  // The next entry begins a segment; its number is returned. Between end() and begin().
  Result<uint64_t> cut();
  // Waits until everything is durable.
  Result<void> sync();

  [[nodiscard]] uint64_t durable_sequence() const {
    return durable_.load(std::memory_order_acquire);
  }
  [[nodiscard]] SyncCost sync_cost() const;
  [[nodiscard]] size_t memory_bytes() const;  // at most, with the factors of steps so far

 private:
  struct StepJob {
    uint64_t step = 0;
    Step content;
    std::vector<Bytes> found;
    bool as_is = false;
  };
  struct CutJob {};
  struct SyncJob {};
  struct Stop {};
  using Job = std::variant<StepJob, CutJob, SyncJob, Stop>;
  struct Outcome {
    Result<void> result;
    Logged logged;
  };

  Writer(Disk& disk, Identity identity, uint64_t sequence, std::unique_ptr<Gradients> gradients,
         const WriterOptions& options);
  void write_loop();
  void sync_loop();
  Outcome write(StepJob& job);
  [[nodiscard]] bool prove(StepJob& job);
  static void log_as_is(StepJob& job);
  void to_bf16(Step& step);
  void pass_to_sync(bool whatever);
  [[nodiscard]] uint64_t batch_bytes() const;
  void abandon();
  Result<void> wait_for_durable(uint64_t sequence);

  Disk& disk_;
  const WriterOptions options_;
  std::unique_ptr<Gradients> gradients_;
  base::Buffer bf16_;           // of raw parts that bf16 holds
  LogWriter log_;               // the thread scant-journal's
  uint64_t waiting_bytes_ = 0;  // appended and not passed to scant-fsync: its thread's too
  uint64_t waiting_steps_ = 0;

  base::BoundedQueue<Job> jobs_{2};
  base::BoundedQueue<Outcome> outcomes_{2};
  struct SyncRequest {
    LogWriter::Unsynced unsynced;
    uint64_t bytes = 0;
  };
  base::BoundedQueue<SyncRequest> requests_{64};
  base::BoundedQueue<Result<uint64_t>> synced_{1024};  // durable: entries before that number
  std::atomic<uint64_t> durable_;                      // pairs with the user's durable_sequence()
  std::atomic<double> startup_s_{0.004};               // statistics
  std::atomic<double> bytes_per_second_{200e6};
  std::atomic<uint64_t> syncs_{0};
  std::atomic<size_t> factor_bytes_{0};

  uint64_t next_ = 0;  // the user's: the number of the next entry
  std::optional<Error> error_;
  bool step_open_ = false;
  double begin_s_ = 0;
  base::Thread write_thread_;
  base::Thread sync_thread_;
};

}  // namespace scant::journal
