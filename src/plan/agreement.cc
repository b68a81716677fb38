#include "plan/agreement.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace scant::plan {
namespace {

using gradient::Operation;

constexpr uint64_t kFirstSounding = 16 << 10;
constexpr uint64_t kLastSounding = 4 << 20;
constexpr double kLongEnoughS = 0.008;
constexpr double kSecondsMost = 1e6;  // that anybody measures

double seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

Agreement::Agreement(const gradient::Layout& layout, AgreementOptions options)
    : given_(layout), options_(std::move(options)), layout_(&layout), profiler_(layout) {}

bool Agreement::under_way() const {
  switch (state_) {
    case State::first_sounding:
    case State::slowest:
    case State::sounding:
    case State::gathering:
    case State::telling:
      return true;
    case State::idle:
    case State::running:
    case State::due:
    case State::failed:
      return false;
  }
  return false;
}

bool Agreement::curves_wanted() const {
  return state_ == State::running && decision_.curves && steps_ + 1 == decision_.steps;
}

const Findings* Agreement::findings() const {
  return agreed_ && tuner_ ? &tuner_->findings() : nullptr;
}

// idle, running, due, failed -> first_sounding, or running where nobody else is there
Agreement::Next Agreement::begin(const gradient::Members& members, const WorkRates& work,
                                 const Moment& at) {
  SCANT_CHECK(!under_way(), "its memory is the exchange's until the outcome is there");
  SCANT_CHECK(members.self >= 0 && members.self < members.size());
  // Steps have corrected the rates of this machine's work, whoever the others were.
  work_ = tuner_ ? tuner_->work() : work;
  tuner_.reset();
  members_ = members;
  cut_layout();
  sounding_.reset();
  error_.reset();
  refused_.reset();
  periods_ = 0;
  last_end_.reset();
  agreement_s_ = 0;
  agreed_ = false;
  if (members_.size() == 1) {
    start(0, 0);
    return std::nullopt;
  }
  sounding_.emplace(members_.size(), members_.self);
  first_bytes_ = kFirstSounding;
  return sound(State::first_sounding, first_bytes_, at);
}

// Parts follow from the shapes alone, so a plan for one of the two layouts is one for the other.
void Agreement::cut_layout() {
  cut_.reset();
  layout_ = &given_;
  if (given_.ranks() == members_.size()) return;
  std::vector<codec::Shape> shapes;
  for (const gradient::TensorLayout& tensor : given_.tensors()) shapes.push_back(tensor.shape);
  Result<gradient::Layout> made = gradient::Layout::create(shapes, members_.size());
  SCANT_CHECK(made.ok(), "these shapes have a layout");
  layout_ = &cut_.emplace(std::move(made).value());
}

bool Agreement::step_done(const gradient::StepReport& report, Time now) {
  if (state_ == State::failed) return true;  // agree() says so again
  SCANT_CHECK(state_ == State::running, "agree() comes before the next step");
  std::optional<double> step_s;
  if (last_end_) step_s = seconds(now - *last_end_);
  last_end_ = now;
  profiler_.add(report, step_s);
  if (++steps_ == decision_.steps) state_ = State::due;  // running -> due
  return state_ == State::due;
}

// due -> sounding, or gathering where the decision asks for no sounding
Agreement::Next Agreement::agree(const Moment& at) {
  if (state_ == State::failed) return std::nullopt;
  SCANT_CHECK(state_ == State::due, "a period ends after its last step");
  begun_ = at.now;
  ++periods_;
  if (decision_.sounding_bytes == 0) return gather();
  return sound(State::sounding, decision_.sounding_bytes, at);
}

Agreement::Next Agreement::done(const Result<void>& outcome, const Moment& at) {
  SCANT_CHECK(under_way(), "an outcome belongs to an operation");
  if (!outcome) return fail(outcome.error());
  switch (state_) {
    case State::first_sounding:
      if (Next next = sounding_->done(at)) return framed(state_, std::move(*next));
      return tell_slowest();  // first_sounding -> slowest
    case State::slowest:
      return take_slowest(at);
    case State::sounding:
      if (Next next = sounding_->done(at)) return framed(state_, std::move(*next));
      return gather();  // sounding -> gathering
    case State::gathering:
      decide();
      return tell();  // gathering -> telling
    default:
      obey(at.now);
      return std::nullopt;
  }
}

Agreement::Next Agreement::framed(State state, Operation operation) {
  state_ = state;
  operation.lane = options_.lane;
  operation.round = periods_;
  operation.timeout = options_.timeout;
  return operation;
}

Agreement::Next Agreement::sound(State state, uint64_t bytes, const Moment& at) {
  return framed(state, sounding_->begin(bytes, at));
}

Agreement::Next Agreement::tell_slowest() {
  slowest_s_ = sounding_->times().exchange_s;
  return framed(State::slowest, {.kind = Operation::Kind::all_reduce,
                                 .dtype = DType::f64,
                                 .op = ReduceOp::max,
                                 .span = std::as_writable_bytes(std::span(&slowest_s_, 1))});
}

// Ever more bytes, until they take long enough to tell the rate: by the slowest member's time, so
// that all go on alike. slowest -> first_sounding or running
Agreement::Next Agreement::take_slowest(const Moment& at) {
  if (!(slowest_s_ >= 0 && slowest_s_ <= kSecondsMost)) {
    return fail(
        {.code = ErrorCode::corrupt, .message = "first sounding: a time that nobody measures"});
  }
  if (slowest_s_ <= kLongEnoughS && first_bytes_ < kLastSounding) {
    first_bytes_ *= 4;
    return sound(State::first_sounding, first_bytes_, at);
  }
  start(first_bytes_, slowest_s_);
  return std::nullopt;
}

void Agreement::start(uint64_t sounded_bytes, double sounded_s) {
  TunerOptions tuning = options_.tuning;
  if (sounded_bytes > 0) {
    tuning.bytes_per_s = static_cast<double>(sounded_bytes) / std::max(sounded_s, 1e-9);
  }
  if (is_first()) tuner_.emplace(*layout_, work_, tuning);
  Decision first = Tuner::first(*layout_, tuning);
  first.sounding_bytes = static_cast<uint32_t>(sounded_bytes);
  run(std::move(first));
}

Agreement::Next Agreement::gather() {
  Measurement measured = profiler_.finish();
  if (decision_.sounding_bytes > 0) measured.sounding = sounding_->times();
  mine_.resize(measurement_bytes(measured.ready_s.size(), !measured.curves.empty()));
  write_measurement(measured, mine_);
  Operation operation{.kind = Operation::Kind::gather, .sent = {Bytes(mine_)}};
  if (is_first()) {
    const auto count = static_cast<size_t>(members_.size());
    all_.resize(mine_.size() * count);
    for (size_t place = 0; place < count; ++place) {
      operation.room.push_back(MutableBytes(all_).subspan(place * mine_.size(), mine_.size()));
    }
  }
  return framed(State::gathering, std::move(operation));
}

// The others wait for a decision. Zeros are none, and end their agreement too.
void Agreement::decide() {
  decided_.assign(decision_bytes(*layout_), std::byte{0});
  if (!is_first()) return;
  std::vector<Measurement> by_rank;
  for (size_t at = 0; at < all_.size(); at += mine_.size()) {
    auto one = read_measurement(Bytes(all_).subspan(at, mine_.size()), *layout_, decision_.curves);
    if (!one) refused_ = one.error();
    if (one) by_rank.push_back(std::move(one).value());
  }
  if (refused_) return;
  decided_ = serialise(tuner_->decide(by_rank, agreement_s_), *layout_);
  agreed_ = true;
}

Agreement::Next Agreement::tell() {
  return framed(State::telling, {.kind = Operation::Kind::broadcast, .span = decided_});
}

// telling -> running or failed
void Agreement::obey(Time now) {
  if (refused_) {
    fail(*refused_);
    return;
  }
  Result<Decision> next = parse_decision(decided_, *layout_);
  if (!next) {
    fail(next.error());
    return;
  }
  agreement_s_ = seconds(now - begun_);
  last_end_ = now;
  run(std::move(next).value());
}

void Agreement::run(Decision next) {
  decision_ = std::move(next);
  steps_ = 0;
  profiler_.begin(decision_.skipped);
  state_ = State::running;
}

Agreement::Next Agreement::fail(Error error) {
  state_ = State::failed;
  error_ = std::move(error);
  return std::nullopt;
}

}  // namespace scant::plan
