#include "plan/sounding.h"

#include <algorithm>
#include <time.h>

namespace scant::plan {
namespace {

constexpr int kKinds = 3;   // small, exchange, all_reduce
constexpr int kRounds = 2;  // the faster counts
constexpr uint64_t kSmallBytes = 64;

void keep_least(double& least, double seconds) {
  least = least > 0 ? std::min(least, seconds) : seconds;
}

double process_cpu_s() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

Sounding::Sounding(Communicator& communicator, GroupId group, int size, Duration timeout)
    : communicator_(communicator),
      group_(group),
      size_(static_cast<size_t>(size)),
      timeout_(timeout),
      received_(size_) {}

Sounding::~Sounding() {
  if (work_.valid()) static_cast<void>(work_.wait());
}

void Sounding::begin(uint64_t bytes) {
  times_ = {};
  turn_ = 0;
  const uint64_t others = std::max<uint64_t>(size_ - 1, 1);
  part_bytes_ = std::max<uint64_t>(bytes / others, kSmallBytes);
  out_.resize(part_bytes_ * size_);
  in_.resize(part_bytes_ * size_);
  times_.exchange_bytes = static_cast<double>(part_bytes_ * (size_ - 1));
  reduced_ = out_.size() / 2 / sizeof(float) * sizeof(float);
  times_.reduce_bytes = 2.0 * static_cast<double>(size_ - 1) / static_cast<double>(size_) *
                        static_cast<double>(reduced_);
  submit();
}

void Sounding::submit() {
  const CallOptions options{.group = group_, .timeout = timeout_};
  begun_ = Clock::now();
  cpu_begun_s_ = process_cpu_s();
  const int kind = turn_ % kKinds;
  if (kind == 2) {
    work_ = communicator_.all_reduce(Bytes(out_).first(reduced_), MutableBytes(in_).first(reduced_),
                                     DType::f32, ReduceOp::sum, options);
    return;
  }
  const uint64_t each = kind == 0 ? kSmallBytes : part_bytes_;
  std::vector<Bytes> inputs;
  std::vector<MutableBytes> outputs;
  for (size_t r = 0; r < size_; ++r) {
    inputs.push_back(Bytes(out_).subspan(r * each, each));
    outputs.push_back(MutableBytes(in_).subspan(r * each, each));
  }
  work_ = communicator_.exchange(std::move(inputs), std::move(outputs), received_, options);
}

void Sounding::note(double seconds, double cpu_s) {
  const int kind = turn_ % kKinds;
  if (kind == 0) keep_least(times_.small_cpu_s, cpu_s);
  if (kind == 1) keep_least(times_.exchange_cpu_s, cpu_s);
  keep_least(kind == 0 ? times_.small_s : kind == 1 ? times_.exchange_s : times_.reduce_s, seconds);
}

std::optional<Result<void>> Sounding::poll(Duration limit) {
  for (;;) {
    if (!work_.wait(limit) && !work_.done()) return std::nullopt;
    if (const Result<void> outcome = work_.wait(); !outcome) return outcome;
    note(std::chrono::duration<double>(Clock::now() - begun_).count(),
         process_cpu_s() - cpu_begun_s_);
    if (++turn_ == kKinds * kRounds) return Result<void>();
    submit();
  }
}

}  // namespace scant::plan
