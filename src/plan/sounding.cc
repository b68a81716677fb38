#include "plan/sounding.h"

#include <algorithm>

namespace scant::plan {
namespace {

using gradient::Operation;

constexpr int kKinds = 3;   // small, exchange, all_reduce
constexpr int kRounds = 2;  // the faster counts
constexpr uint64_t kSmallBytes = 64;

void keep_least(double& least, double seconds) {
  least = least > 0 ? std::min(least, seconds) : seconds;
}

}  // namespace

Sounding::Sounding(int size, Rank self)
    : size_(static_cast<size_t>(size)), self_(static_cast<size_t>(self)), received_(size_) {}

Operation Sounding::begin(uint64_t bytes, const Moment& at) {
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
  begun_ = at;
  return operation();
}

Operation Sounding::operation() {
  const int kind = turn_ % kKinds;
  if (kind == 2) {
    return {.kind = Operation::Kind::all_reduce,
            .dtype = DType::f32,
            .op = ReduceOp::sum,
            .span = MutableBytes(out_).first(reduced_)};
  }
  const uint64_t each = kind == 0 ? kSmallBytes : part_bytes_;
  Operation swap{.kind = Operation::Kind::swap, .received = received_};
  for (size_t place = 0; place < size_; ++place) {
    const size_t bytes = place == self_ ? 0 : each;
    swap.sent.push_back(Bytes(out_).subspan(place * each, bytes));
    swap.room.push_back(MutableBytes(in_).subspan(place * each, bytes));
  }
  return swap;
}

void Sounding::note(double seconds, double cpu_s) {
  const int kind = turn_ % kKinds;
  if (kind == 0) keep_least(times_.small_cpu_s, cpu_s);
  if (kind == 1) keep_least(times_.exchange_cpu_s, cpu_s);
  keep_least(kind == 0 ? times_.small_s : kind == 1 ? times_.exchange_s : times_.reduce_s, seconds);
}

std::optional<Operation> Sounding::done(const Moment& at) {
  note(std::chrono::duration<double>(at.now - begun_.now).count(), at.cpu_s - begun_.cpu_s);
  if (++turn_ == kKinds * kRounds) return std::nullopt;
  begun_ = at;
  return operation();
}

}  // namespace scant::plan
