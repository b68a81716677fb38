#include "journal/writer.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/crc.h"

namespace scant::journal {
namespace {

using Clock = std::chrono::steady_clock;
constexpr Duration kIdle = std::chrono::milliseconds(500);  // then what waits is synced anyway
constexpr double kStartupShare = 4;  // a sync moves so many times the bytes of its start-up
constexpr double kForget = 0.25;     // of a measured cost, with each new one

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

Writer::Writer(Disk& disk, Identity identity, uint64_t sequence,
               std::unique_ptr<Gradients> gradients, const WriterOptions& options)
    : disk_(disk),
      options_(options),
      gradients_(std::move(gradients)),
      log_(disk, identity, sequence, options.segment_bytes_max, options.joins),
      durable_(sequence),
      next_(sequence) {}

Result<std::unique_ptr<Writer>> Writer::create(Disk& disk, Identity identity, uint64_t sequence,
                                               std::vector<uint64_t> gradients,
                                               const WriterOptions& options) {
  if (options.unsynced_steps == 0) {
    return Error{.code = ErrorCode::invalid_argument,
                 .message = "journal: unsynced_steps is at least 1"};
  }
  Result<std::unique_ptr<Gradients>> memory = Gradients::create(std::move(gradients));
  if (!memory) return memory.error();
  std::unique_ptr<Writer> made(
      new Writer(disk, identity, sequence, std::move(memory).value(), options));
  Writer* writer = made.get();
  if (Result<void> started =
          writer->write_thread_.start("scant-journal", [writer] { writer->write_loop(); });
      !started) {
    return started.error();
  }
  if (Result<void> started =
          writer->sync_thread_.start("scant-fsync", [writer] { writer->sync_loop(); });
      !started) {
    return started.error();
  }
  return made;
}

Writer::~Writer() {
  jobs_.push(Stop{});
  write_thread_.join();
  requests_.close();
  sync_thread_.join();
}

Result<void> Writer::begin(uint64_t step, std::vector<Bytes> found, std::vector<Part> parts,
                           uint32_t ranks, std::string settings) {
  const auto begun = Clock::now();
  SCANT_CHECK(found.size() == gradients_->tensors());
  abandon();
  if (error_) return *error_;
  StepJob job{.step = step,
              .content = {.ranks = ranks, .settings = std::move(settings)},
              .found = std::move(found)};
  for (size_t i = 0; i < job.found.size(); ++i) {
    const Bytes one = job.found[i];
    job.content.present.push_back(!one.empty());
    if (!one.empty() && one.size() != gradients_->tensor(i).size()) {
      return Error{.code = ErrorCode::mismatch,
                   .message = "journal: the gradient of tensor " + std::to_string(i) + " has " +
                              std::to_string(one.size()) + " bytes, not " +
                              std::to_string(gradients_->tensor(i).size())};
    }
    job.content.crc = base::crc32c(one, job.content.crc);
  }
  job.content.parts = std::move(parts);
  const bool records = std::ranges::any_of(job.content.parts, [](const Part& part) {
    return part.kind == PartKind::averages || part.kind == PartKind::gathered;
  });
  job.as_is = !records;
  if (!records) log_as_is(job);
  if (Result<void> kept = gradients_->keep(job.content); !kept) return kept;
  SCANT_CHECK(jobs_.push(std::move(job)));
  step_open_ = true;
  begin_s_ = seconds_since(begun);
  return {};
}

// Module buffers stay among the parts.
void Writer::log_as_is(StepJob& job) {
  std::erase_if(job.content.parts, [](const Part& part) { return part.kind != PartKind::state; });
  for (uint32_t i = 0; i < job.found.size(); ++i) {
    if (job.found[i].empty()) continue;
    job.content.parts.push_back({.kind = PartKind::raw, .where = i, .bytes = job.found[i]});
  }
}

Result<Logged> Writer::end() {
  SCANT_CHECK(step_open_);
  const auto begun = Clock::now();
  step_open_ = false;
  std::optional<Outcome> outcome = outcomes_.pop();
  SCANT_CHECK(outcome.has_value());
  if (!outcome->result) {
    error_ = outcome->result.error();
    return *error_;
  }
  Logged logged = outcome->logged;
  next_ = logged.sequence + 1;
  const uint64_t behind = next_ > options_.unsynced_steps ? next_ - options_.unsynced_steps : 0;
  if (Result<void> waited = wait_for_durable(behind); !waited) return waited.error();
  logged.begin_s = begin_s_;
  logged.end_s = seconds_since(begun);
  logged.unsynced = static_cast<uint32_t>(next_ - durable_sequence());
  return logged;
}

Result<void> Writer::wait_for_durable(uint64_t sequence) {
  while (!error_) {
    std::optional<Result<uint64_t>> synced =
        durable_sequence() < sequence ? synced_.pop() : synced_.try_pop();
    if (!synced) break;
    if (*synced) {
      durable_.store(synced->value(), std::memory_order_release);
    } else {
      error_ = synced->error();
    }
  }
  if (error_) return *error_;
  return {};
}

// An exception may have ended the optimizer's step: its entry is there all the same.
void Writer::abandon() {
  if (step_open_) static_cast<void>(end());
}

Result<uint64_t> Writer::cut() {
  abandon();
  if (error_) return *error_;
  SCANT_CHECK(jobs_.push(CutJob{}));
  static_cast<void>(outcomes_.pop());
  return next_;
}

Result<void> Writer::sync() {
  abandon();
  if (error_) return *error_;
  SCANT_CHECK(jobs_.push(SyncJob{}));
  static_cast<void>(outcomes_.pop());
  return wait_for_durable(next_);
}

size_t Writer::memory_bytes() const {
  return gradients_->memory_bytes() + gradients_->memory_bytes() / 2 + factor_bytes_.load();
}

SyncCost Writer::sync_cost() const {
  return {.startup_s = startup_s_.load(),
          .bytes_per_second = bytes_per_second_.load(),
          .syncs = syncs_.load()};
}

void Writer::write_loop() {
  for (;;) {
    std::optional<Job> job = jobs_.pop(kIdle);
    if (!job || std::holds_alternative<Stop>(*job)) {
      pass_to_sync(true);
      if (job) return;
      continue;
    }
    if (auto* step = std::get_if<StepJob>(&*job)) {
      Outcome outcome = write(*step);
      if (outcome.result) {
        waiting_bytes_ += outcome.logged.bytes;
        ++waiting_steps_;
      }
      outcomes_.push(std::move(outcome));
      pass_to_sync(false);
    } else if (std::holds_alternative<CutJob>(*job)) {
      log_.cut();
      outcomes_.push(Outcome{{}, {}});
    } else {
      pass_to_sync(true);
      outcomes_.push(Outcome{{}, {}});
    }
  }
}

// Of a batch the start-up of its sync is a small part, but half of what may be unsynced is enough.
uint64_t Writer::batch_bytes() const {
  return static_cast<uint64_t>(kStartupShare * startup_s_.load() * bytes_per_second_.load());
}

void Writer::pass_to_sync(bool whatever) {
  const bool due = waiting_bytes_ >= batch_bytes() ||
                   waiting_steps_ >= std::max<uint64_t>(1, options_.unsynced_steps / 2);
  if (waiting_steps_ == 0 || (!due && !whatever)) return;
  SyncRequest request{log_.take_unsynced(), waiting_bytes_};
  waiting_bytes_ = 0;
  waiting_steps_ = 0;
  requests_.push(std::move(request));
}

Writer::Outcome Writer::write(StepJob& job) {
  const auto begun = Clock::now();
  Outcome outcome;
  Logged& logged = outcome.logged;
  if (!job.as_is && !prove(job)) {
    // The records do not tell what the optimizer sees: this step goes as it is.
    job.as_is = true;
    log_as_is(job);
    if (Result<void> kept = gradients_->keep(job.content); !kept) {
      outcome.result = kept;
      return outcome;
    }
  }
  if (job.as_is) {
    job.content.factor = 1;
    // Copied by now; another checksum than before: the optimizer wrote into its gradients.
    if (gradients_->crc(job.content.present) != job.content.crc) {
      logged.sequence = log_.next_sequence();
      log_.skip();
      return outcome;
    }
    to_bf16(job.content);
  }
  factor_bytes_ = std::max<size_t>(factor_bytes_, gradients_->factor_bytes());
  logged.as_is = job.as_is;
  logged.factor = job.content.factor;
  const WrittenStep written(job.content);
  for (const Bytes piece : written.pieces()) logged.bytes += piece.size();
  logged.bytes += kEntryHeaderBytes;
  const auto appended =
      log_.append(job.step, EntryKind::step, written.pieces(), version_of(job.content));
  if (!appended) {
    outcome.result = appended.error();
    return outcome;
  }
  logged.proven = true;
  logged.sequence = appended.value();
  logged.work_s = seconds_since(begun);
  return outcome;
}

bool Writer::prove(StepJob& job) {
  job.content.factor = 1;
  if (!gradients_->decode(job.content, false)) return false;
  // Mostly nothing was changed; what is found need not be read then, which an optimizer may be
  // writing into by now.
  if (gradients_->crc(job.content.present) == job.content.crc) return true;
  float factor = 1;
  if (!gradients_->find_factor(job.found, factor)) return false;
  job.content.factor = factor;
  return gradients_->crc(job.content.present) == job.content.crc;
}

// Halves parts of which bf16 holds every value.
void Writer::to_bf16(Step& step) {
  uint64_t at = 0;
  for (Part& part : step.parts) {
    if (part.kind != PartKind::raw || part.bytes.size() % 4 != 0) continue;
    if (bf16_.size() == 0) {
      Result<base::Buffer> memory = base::Buffer::allocate(gradients_->memory_bytes() / 2);
      if (!memory) return;  // the parts stay as they are, twice as large
      bf16_ = std::move(memory).value();
    }
    const MutableBytes out = bf16_.view().subspan(at, part.bytes.size() / 2);
    if (!to_bf16_exactly(part.bytes, out)) continue;
    part.kind = PartKind::bf16;
    part.bytes = out;
    at += out.size();
  }
}

void Writer::sync_loop() {
  while (std::optional<SyncRequest> request = requests_.pop()) {
    const auto begun = Clock::now();
    const Result<void> synced = LogWriter::sync(disk_, request->unsynced);
    const double took_s = seconds_since(begun);
    // Start-up and rate are told apart by size: small batches tell the one, large ones the other.
    const double moving_s = static_cast<double>(request->bytes) / bytes_per_second_.load();
    if (moving_s < startup_s_.load()) {
      startup_s_ = (1 - kForget) * startup_s_.load() + kForget * std::max(1e-4, took_s - moving_s);
    } else {
      const double rate =
          static_cast<double>(request->bytes) / std::max(1e-6, took_s - startup_s_.load() / 2);
      bytes_per_second_ = (1 - kForget) * bytes_per_second_.load() + kForget * rate;
    }
    ++syncs_;
    if (synced) {
      synced_.push(Result<uint64_t>(request->unsynced.sequence));
    } else {
      synced_.push(Result<uint64_t>(synced.error()));
    }
  }
}

}  // namespace scant::journal
