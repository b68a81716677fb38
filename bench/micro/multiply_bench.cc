// Products of activations with matrices, by implementation, kind of weights, tokens and threads.
// Each case reads all of its matrices once, as a step of a model does, one call for each matrix.
// Beside its own rate a case measures, in turn with it, how fast the same threads read the same
// bytes, and what the tiles of bf16 could compute: docs/benchmarks.md, "Products".
#include <algorithm>
#include <benchmark/benchmark.h>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/cpu.h"
#include "serve/kernels/targets.h"
#include "serve/testing/tensors.h"
#include "values.h"

namespace {

using scant::Bytes;
using scant::base::AlignedVector;
using scant::base::WorkerPool;
using scant::bench::random_floats;
using scant::codec::Shape;
using scant::serve::Activations;
using scant::serve::KernelTarget;
using scant::serve::MatrixProduct;
using scant::serve::TensorKind;
using scant::serve::testing::draw_tensor;
using scant::serve::testing::OwnedTensor;
using scant::serve::testing::Values;

double seconds_of(const auto& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

uint64_t read_bytes(const std::byte* from, size_t bytes) {
  using Two = uint64_t __attribute__((vector_size(16)));
  constexpr size_t kAhead = 4096;
  Two sums[4] = {};
  for (size_t i = 0; i + 64 <= bytes; i += 64) {
    __builtin_prefetch(from + i + kAhead);
    for (size_t k = 0; k < 4; ++k) sums[k] ^= *reinterpret_cast<const Two*>(from + i + 16 * k);
  }
  const Two all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  return all[0] ^ all[1];
}

// So many operations a second do tiles of bf16 reach on one core, from registers alone; 0: no AMX.
double tile_peak_of_core() {
#if defined(__x86_64__)
  if (!scant::base::cpu_has_amx()) return 0;
  alignas(64) uint8_t shapes[64] = {1};
  for (size_t tile = 0; tile < 8; ++tile) {
    shapes[16 + 2 * tile] = 64;
    shapes[48 + tile] = 16;
  }
  constexpr int kTimes = 20000;
  double seconds = 0;
  asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
  seconds = seconds_of([] {
    for (int i = 0; i < kTimes; ++i)
      asm volatile(
          "tdpbf16ps %tmm7, %tmm6, %tmm0\n tdpbf16ps %tmm7, %tmm6, %tmm1\n"
          "tdpbf16ps %tmm7, %tmm6, %tmm2\n tdpbf16ps %tmm7, %tmm6, %tmm3");
  });
  asm volatile("tilerelease" ::: "memory");
  return kTimes * 4.0 * 2 * 16 * 16 * 32 / seconds;
#else
  return 0;
#endif
}

// Matrices of one kind.
class Weights {
 public:
  Weights(TensorKind kind, Shape shape, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      if (i == 0) {
        tensors_.push_back(draw_tensor(kind, shape, Values::moderate, 1));
      } else {
        tensors_.push_back(tensors_[0]);  // other memory, the same bytes
        tensors_[i].tensor.bytes = tensors_[i].bytes;
      }
    }
  }
  [[nodiscard]] const std::vector<OwnedTensor>& all() const { return tensors_; }
  [[nodiscard]] size_t bytes() const { return tensors_.size() * tensors_[0].bytes.size(); }
  void read(WorkerPool& pool) const {
    constexpr size_t kChunk = 256 << 10;
    const size_t of_tensor = (tensors_[0].bytes.size() + kChunk - 1) / kChunk;
    const auto body = [&](size_t index, size_t) {
      const auto& bytes = tensors_[index / of_tensor].bytes;
      const size_t at = index % of_tensor * kChunk;
      benchmark::DoNotOptimize(read_bytes(bytes.data() + at, std::min(kChunk, bytes.size() - at)));
    };
    pool.for_each(of_tensor * tensors_.size(), body);
  }

 private:
  std::vector<OwnedTensor> tensors_;
};

struct Case {
  KernelTarget target;
  TensorKind kind;
  size_t tokens;
  size_t threads;
};

void run(benchmark::State& state, const Case& of, Shape shape, size_t bytes_wanted) {
  const auto one = draw_tensor(of.kind, {16, shape.columns}, Values::moderate, 1);
  const size_t bytes_of_one = one.bytes.size() * shape.rows / 16;
  const Weights weights(of.kind, shape, std::max<size_t>(bytes_wanted / bytes_of_one, 1));
  WorkerPool pool;
  if (of.threads > 1) SCANT_CHECK(pool.start(of.threads).ok());
  const auto x = random_floats<AlignedVector<float>>(of.tokens * shape.columns);
  AlignedVector<float> out(of.tokens * shape.rows);
  Activations activations;
  const auto multiply_all = [&] {
    for (const OwnedTensor& matrix : weights.all()) {
      const MatrixProduct product{&matrix.tensor, out.data(), shape.rows};
      activations.set(x.data(), of.tokens, shape.columns);
      multiply(of.target, {&product, 1}, activations, pool);
    }
  };
  multiply_all();
  double least = 1e9;
  double read_least = 1e9;
  double peak = 0;
  for (auto _ : state) {
    read_least = std::min(read_least, seconds_of([&] { weights.read(pool); }));
    const double seconds = seconds_of(multiply_all);
    least = std::min(least, seconds);
    state.SetIterationTime(seconds);
    peak = std::max(peak, tile_peak_of_core());
  }
  const auto bytes = static_cast<double>(weights.bytes());
  const double operations = 2.0 * static_cast<double>(of.tokens * shape.elements()) *
                            static_cast<double>(weights.all().size());
  state.counters["GB/s"] = bytes / least * 1e-9;
  state.counters["reading GB/s"] = bytes / read_least * 1e-9;
  state.counters["of reading"] = read_least / least;
  state.counters["TOP/s"] = operations / least * 1e-12;
  if (peak > 0)
    state.counters["of tile peak"] = operations / least / (peak * static_cast<double>(of.threads));
}

void add(const Case& of, Shape shape, size_t bytes) {
  const std::string text = std::string(of.target.name) + "/" + name(of.kind) + "/tokens " +
                           std::to_string(of.tokens) + "/threads " + std::to_string(of.threads);
  auto* const registered = benchmark::RegisterBenchmark(
      text.c_str(), [=](benchmark::State& state) { run(state, of, shape, bytes); });
  registered->Arg(static_cast<int64_t>(shape.elements()))
      ->Unit(benchmark::kMillisecond)
      ->UseManualTime();
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  for (const KernelTarget& target : scant::serve::kernel_targets()) {
    for (const TensorKind kind : scant::serve::tensor_kinds()) {
      for (const size_t threads : {1U, 2U}) {
        add({target, kind, 1, threads}, {64, 64}, 1);
        // The reference would take minutes.
        if (std::string(target.name) == "reference") continue;
        for (const size_t tokens : {1U, 2U, 4U, 8U, 16U, 64U, 512U})
          add({target, kind, tokens, threads}, {4096, 4096}, tokens > 16 ? 1 : 750'000'000);
        add({target, kind, 1, threads}, {2048, 1024}, 50'000'000);  // in L3
      }
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
