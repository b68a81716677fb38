// Memory traffic per second of the reductions, beside a memcpy of the same array. A reduction reads
// two arrays and writes a third; memcpy reads one and writes one. `traffic` counts those bytes, so
// the columns compare directly.
#include <benchmark/benchmark.h>
#include <cstring>
#include <string>

#include "base/buffer.h"
#include "base/rng.h"
#include "collective/reduce/reduce.h"
#include "collective/reduce/reduce_simd.h"

namespace {

using scant::DType;
using scant::ReduceOp;
using scant::base::Buffer;
using scant::collective::ReduceTarget;

// Bytes that are ordinary numbers in every dtype: exponents near one, no NaN.
Buffer random_buffer(size_t size, uint64_t stream) {
  scant::base::Rng rng(1, stream);
  Buffer buffer = Buffer::allocate(size).value();
  for (size_t i = 0; i < size; ++i) {
    buffer.data()[i] = static_cast<std::byte>(i % 2 == 0 ? rng.below(256) : 0x38 + rng.below(8));
  }
  return buffer;
}

void set_traffic(benchmark::State& state, int64_t arrays) {
  state.counters["traffic"] =
      benchmark::Counter(static_cast<double>(state.iterations() * state.range(0) * arrays),
                         benchmark::Counter::kIsRate);
}

void copy(benchmark::State& state) {
  const Buffer data = random_buffer(static_cast<size_t>(state.range(0)), 0);
  Buffer to = random_buffer(data.size(), 1);
  for (auto _ : state) {
    std::memcpy(to.data(), data.data(), data.size());
    benchmark::ClobberMemory();
  }
  set_traffic(state, 2);
}

void reduce(benchmark::State& state, const ReduceTarget& target, DType dtype, ReduceOp op) {
  const Buffer a = random_buffer(static_cast<size_t>(state.range(0)), 0);
  const Buffer b = random_buffer(a.size(), 1);
  Buffer expected = Buffer::allocate(a.size()).value();
  scant::collective::reduce_reference(dtype, op, a.data(), b.data(), expected.data(), a.size());
  Buffer to = Buffer::allocate(a.size()).value();
  target.combine(dtype, op, a.data(), b.data(), to.data(), a.size());
  if (std::memcmp(to.data(), expected.data(), to.size()) != 0) {
    state.SkipWithError("differs from the reference");
    return;
  }
  for (auto _ : state) {
    target.combine(dtype, op, a.data(), b.data(), to.data(), to.size());
    benchmark::ClobberMemory();
  }
  set_traffic(state, 3);
}

// Dividing in place again and again would end at zero, so each round starts from a fresh copy,
// which counts too.
void copy_and_divide(benchmark::State& state, const ReduceTarget& target, DType dtype) {
  const Buffer data = random_buffer(static_cast<size_t>(state.range(0)), 0);
  Buffer to = Buffer::allocate(data.size()).value();
  for (auto _ : state) {
    std::memcpy(to.data(), data.data(), data.size());
    target.divide(dtype, to.data(), to.size(), 3);
    benchmark::ClobberMemory();
  }
  set_traffic(state, 4);
}

void add_sizes(benchmark::internal::Benchmark* registered) {
  for (const int64_t size : {4096, 16 << 10, 1 << 20, 32 << 20}) registered->Arg(size);
}

void register_target(const ReduceTarget& target) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i8, DType::i32,
                            DType::i64, DType::u8, DType::boolean}) {
    for (const ReduceOp op : {ReduceOp::sum, ReduceOp::product, ReduceOp::max}) {
      const std::string name =
          std::string(target.name) + "/" + scant::name(dtype) + "/" + scant::name(op);
      add_sizes(benchmark::RegisterBenchmark(name.c_str(), reduce, target, dtype, op));
    }
    if (!scant::collective::reduce_defined(dtype, ReduceOp::average)) continue;
    const std::string name =
        std::string(target.name) + "/" + scant::name(dtype) + "/copy_and_divide";
    add_sizes(benchmark::RegisterBenchmark(name.c_str(), copy_and_divide, target, dtype));
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add_sizes(benchmark::RegisterBenchmark("memcpy", copy));
  for (const ReduceTarget& target : scant::collective::reduce_targets()) register_target(target);
  benchmark::RunSpecifiedBenchmarks();
}
