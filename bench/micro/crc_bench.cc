// Bytes per second of each CRC32C that this CPU runs, beside a memcpy of the same array.
#include <benchmark/benchmark.h>
#include <cstring>
#include <string>

#include "base/buffer.h"
#include "base/crc.h"
#include "base/rng.h"

namespace {

using scant::base::Buffer;
using scant::base::Crc32cImplementation;

Buffer random_buffer(size_t size) {
  scant::base::Rng rng(1);
  Buffer buffer = Buffer::allocate(size).value();
  for (std::byte& byte : buffer.view()) byte = static_cast<std::byte>(rng.next());
  return buffer;
}

void crc(benchmark::State& state, const Crc32cImplementation& implementation) {
  const Buffer data = random_buffer(static_cast<size_t>(state.range(0)));
  const uint32_t expected = scant::base::crc32c_reference(data.view());
  if (~implementation.update(data.data(), data.size(), ~0u) != expected) {
    state.SkipWithError("differs from the table");
    return;
  }
  for (auto _ : state) {
    benchmark::DoNotOptimize(implementation.update(data.data(), data.size(), ~0u));
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}

void copy(benchmark::State& state) {
  const Buffer data = random_buffer(static_cast<size_t>(state.range(0)));
  Buffer to = Buffer::allocate(data.size()).value();
  for (auto _ : state) {
    std::memcpy(to.data(), data.data(), data.size());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}

void add_sizes(benchmark::internal::Benchmark* registered) {
  for (const int64_t size : {64, 512, 4096, 32 << 10, 1 << 20, 32 << 20}) registered->Arg(size);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add_sizes(benchmark::RegisterBenchmark("memcpy", copy));
  for (const Crc32cImplementation& implementation : scant::base::crc32c_implementations()) {
    const std::string name = std::string("crc32c/") + implementation.name;
    add_sizes(benchmark::RegisterBenchmark(name.c_str(), crc, implementation));
  }
  benchmark::RunSpecifiedBenchmarks();
}
