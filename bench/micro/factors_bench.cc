// The time of one member's part of a step with factors, pass by pass, and of a memcpy of the same
// f32 matrix, one thread: docs/benchmarks.md, "Codecs". Nothing is sent: this member's own records
// stand for the average of all.
#include <algorithm>
#include <benchmark/benchmark.h>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/check.h"
#include "codec/rank/factors.h"
#include "values.h"

namespace {

using scant::base::AlignedVector;
using scant::bench::random_floats;
using scant::codec::Encoder;
using scant::codec::Factors;
using scant::codec::MatrixSlice;
using scant::codec::Point;
using scant::codec::Range;
using scant::codec::RecordBuffer;
using scant::codec::ResidualKind;
using scant::codec::Shape;
using scant::codec::ValueKind;
using scant::codec::Workspace;

constexpr Point kRest{1.0, ValueKind::q1};
constexpr Point kFactor{1.0, ValueKind::q8};

// Noise serves: a matrix with strong directions would take the same passes and time.
Encoder encoder_of(Shape shape, ResidualKind kind) {
  auto made = Encoder::create(1, shape, {.residual = kind});
  SCANT_CHECK(made.ok());
  return std::move(made).value();
}

// One member and one matrix.
class Member {
 public:
  Member(Shape shape, uint32_t rank)
      : drawn_(random_floats<AlignedVector<float>>(shape.elements())),
        gradient_(drawn_),
        copy_(drawn_.size()),
        encoder_(encoder_of(shape, ResidualKind::f32)),
        left_encoder_(encoder_of({rank, shape.rows}, ResidualKind::none)),
        right_encoder_(encoder_of({rank, shape.columns}, ResidualKind::none)),
        factors_(shape, {0, shape.elements()}, 1),
        slice_{&encoder_, {0, shape.elements()}, gradient_} {
    SCANT_CHECK(workspace_.start(1) && factors_.set_rank(rank));
    left_.resize(factors_.left_elements());
    right_.resize(factors_.right_elements());
    step();  // touches every page
  }

  void copy() { std::memcpy(copy_.data(), gradient_.data(), gradient_.size() * sizeof(float)); }
  // Without factors.
  void encode() { check(encoder_.encode(drawn_, kRest, workspace_, record_)); }
  // The passes of a step, in order.
  void project() { SCANT_CHECK(factors_.project({&slice_, 1}, workspace_, left_).ok()); }
  void basis() { factors_.set_basis(left_); }
  void coefficients() { SCANT_CHECK(factors_.coefficients({&slice_, 1}, workspace_, right_).ok()); }
  void rest() {
    check(
        encoder_.encode_rest(gradient_, factors_.product(right_, -1), kRest, workspace_, record_));
  }
  void records() {
    check(left_encoder_.encode(left_, kFactor, workspace_, record_));
    check(right_encoder_.encode(right_, kFactor, workspace_, record_));
  }
  void step() {
    project();
    basis();
    coefficients();
    rest();
    records();
    factors_.learn(right_);
  }
  // project() has left the residual in it.
  void draw() { std::ranges::copy(drawn_, gradient_.begin()); }

 private:
  template <typename Report>
  static void check(const Report& report) {
    SCANT_CHECK(report.ok());
  }

  AlignedVector<float> drawn_;
  AlignedVector<float> gradient_;
  AlignedVector<float> copy_;
  Encoder encoder_;
  Encoder left_encoder_;
  Encoder right_encoder_;
  Workspace workspace_;
  RecordBuffer record_;
  Factors factors_;
  AlignedVector<float> left_;
  AlignedVector<float> right_;
  MatrixSlice slice_;
};

void add(const std::string& name, Shape shape, uint32_t rank, void (Member::*pass)()) {
  const std::string size = std::to_string(shape.rows) + "x" + std::to_string(shape.columns);
  auto* const registered =
      benchmark::RegisterBenchmark((size + "/" + name).c_str(), [=](benchmark::State& state) {
        Member member(shape, rank);
        for (auto _ : state) {
          state.PauseTiming();
          member.draw();
          state.ResumeTiming();
          (member.*pass)();
          benchmark::ClobberMemory();
        }
      });
  registered->Arg(static_cast<int64_t>(shape.elements()))->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  for (const Shape shape : {Shape{64, 64}, Shape{512, 512}, Shape{2048, 512}, Shape{1024, 1024}}) {
    add("memcpy", shape, 4, &Member::copy);
    add("q1", shape, 4, &Member::encode);
    for (const uint32_t rank : {4u, 8u, 16u}) {
      const std::string of_rank = "rank " + std::to_string(rank);
      add(of_rank + " q1/step", shape, rank, &Member::step);
      add(of_rank + "/project", shape, rank, &Member::project);
      add(of_rank + "/basis", shape, rank, &Member::basis);
      add(of_rank + "/coefficients", shape, rank, &Member::coefficients);
      add(of_rank + "/rest", shape, rank, &Member::rest);
      add(of_rank + "/records", shape, rank, &Member::records);
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
