// Time of the codec's kernels, one thread, beside a memcpy of the same f32 array. `elements` counts
// floats per second, so that the columns compare directly.
#include <benchmark/benchmark.h>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "codec/kernels/kernels.h"
#include "values.h"

namespace {

using scant::bench::random_floats;
using scant::codec::Ahead;
using scant::codec::CodedValues;
using scant::codec::DrawKey;
using scant::codec::GroupMagnitudes;
using scant::codec::kDenseBlockElements;
using scant::codec::Kernels;
using scant::codec::ValueKind;

constexpr DrawKey kKey = {0x12345678u, 0x9ABCDEF1u};

void set_elements(benchmark::State& state) {
  state.counters["elements"] = benchmark::Counter(
      static_cast<double>(state.iterations() * state.range(0)), benchmark::Counter::kIsRate);
}

// Arrays of one size, all written once.
struct Arrays {
  explicit Arrays(size_t n)
      : gradient(random_floats<std::vector<float>>(n, 0)),
        work(random_floats<std::vector<float>>(n, 1)),
        other(n, 0.0f),
        bytes(4 * n),
        scales(n / 16 + 16),
        positions(n + 16) {}
  std::vector<float> gradient, work, other;
  std::vector<std::byte> bytes;
  std::vector<uint8_t> scales;
  std::vector<uint16_t> positions;
};

template <typename Body>
void measure(benchmark::State& state, const Body& body) {
  const auto n = static_cast<size_t>(state.range(0));
  Arrays arrays(n);
  body(arrays, n);  // touches every page
  for (auto _ : state) {
    body(arrays, n);
    benchmark::ClobberMemory();
  }
  set_elements(state);
}

template <typename Body>
void add(const std::string& name, const Body& body) {
  auto* const registered = benchmark::RegisterBenchmark(
      name.c_str(), [body](benchmark::State& state) { measure(state, body); });
  for (const int64_t size : {4096, 1 << 20, 1 << 24}) registered->Arg(size);
  registered->Unit(benchmark::kMicrosecond);
}

// What a rank does with each block of a dense step: residual in, gradient added, codes out.
void encode_blocks(const Kernels& kernels, ValueKind kind, bool stochastic, Arrays& a, size_t n) {
  constexpr size_t kBlock = kDenseBlockElements;
  for (size_t i = 0; i + kBlock <= n; i += kBlock) {
    const std::span<const std::byte> residual = std::as_bytes(std::span(a.work));
    const Ahead ahead = i + 2 * kBlock > n ? Ahead{}
                                           : Ahead{a.gradient.data() + i + kBlock,
                                                   residual.data() + (i + kBlock) * 4, 4};
    GroupMagnitudes groups;
    const auto found = kernels.accumulate_groups(a.gradient.data() + i, a.work.data() + i, kBlock,
                                                 1.0f, groups, ahead);
    kernels.quantise(kind, {stochastic, kKey}, a.work.data() + i, kBlock / 256,
                     scant::codec::scale_base(kind, found.magnitude_max), &groups,
                     a.scales.data() + i / 64, a.bytes.data() + i * bits(kind) / 8, ahead);
  }
}

// The same with the residual in a byte each: `work` is one block.
void encode_blocks_i8(const Kernels& kernels, ValueKind kind, Arrays& a, size_t n) {
  constexpr size_t kBlock = kDenseBlockElements;
  auto* const stored = reinterpret_cast<int8_t*>(a.other.data());
  for (size_t i = 0; i + kBlock <= n; i += kBlock) {
    const std::span<const std::byte> residual = std::as_bytes(std::span(a.other));
    const Ahead ahead =
        i + 2 * kBlock > n ? Ahead{}
                           : Ahead{a.gradient.data() + i + kBlock, residual.data() + i + kBlock, 1};
    GroupMagnitudes groups;
    const auto found =
        kernels.accumulate_groups_i8(a.gradient.data() + i, stored + i, a.positions.data() + i / 64,
                                     a.work.data(), kBlock, 1.0f, groups, ahead);
    kernels.quantise(kind, {}, a.work.data(), kBlock / 256,
                     scant::codec::scale_base(kind, found.magnitude_max), &groups,
                     a.scales.data() + i / 64, a.bytes.data() + i * bits(kind) / 8, ahead);
    kernels.store_i8(a.work.data(), kBlock, kKey, stored + i, a.positions.data() + i / 64);
  }
}

void add_encoders(const Kernels& kernels, const std::string& target) {
  for (const ValueKind kind :
       {ValueKind::q8, ValueKind::q4, ValueKind::q3, ValueKind::q2, ValueKind::q1}) {
    const std::string suffix = std::string("/") + scant::codec::name(kind);
    add(target + "/encode" + suffix,
        [&kernels, kind](Arrays& a, size_t n) { encode_blocks(kernels, kind, false, a, n); });
    add(target + "/encode_stochastic" + suffix,
        [&kernels, kind](Arrays& a, size_t n) { encode_blocks(kernels, kind, true, a, n); });
    add(target + "/encode_i8_residual" + suffix,
        [&kernels, kind](Arrays& a, size_t n) { encode_blocks_i8(kernels, kind, a, n); });
    add(target + "/add_quads" + suffix, [&kernels, kind](Arrays& a, size_t n) {
      const CodedValues source{.base = 900, .scales = a.scales.data(), .codes = a.bytes.data()};
      kernels.add_quads(kind, &source, 1, n / 256, a.other.data());
    });
  }
}

void add_streams(const Kernels& kernels, const std::string& target) {
  add(target + "/accumulate", [&kernels](Arrays& a, size_t n) {
    benchmark::DoNotOptimize(kernels.accumulate(a.gradient.data(), a.work.data(), n, 0.5f));
  });
  for (const float threshold : {1e9f, 2.3f, 1.65f}) {  // nothing, about 1 %, about 5 % pass
    add(target + "/select/" + std::to_string(threshold),
        [&kernels, threshold](Arrays& a, size_t n) {
          for (size_t i = 0; i < n; i += 65536) {
            benchmark::DoNotOptimize(kernels.select(a.gradient.data() + i, a.work.data() + i,
                                                    std::min<size_t>(n - i, 65536), 0.5f, threshold,
                                                    a.positions.data(), a.other.data()));
          }
        });
  }
  for (const ValueKind kind : {ValueKind::bf16, ValueKind::f16}) {
    add(target + "/narrow/" + scant::codec::name(kind), [&kernels, kind](Arrays& a, size_t n) {
      kernels.narrow(kind, a.work.data(), n, a.bytes.data());
    });
    add(target + "/add_values/" + scant::codec::name(kind), [&kernels, kind](Arrays& a, size_t n) {
      kernels.add_values(kind, a.bytes.data(), n, a.other.data());
    });
  }
  add(target + "/store_bf16", [&kernels](Arrays& a, size_t n) {
    kernels.store_bf16(a.work.data(), n, kKey, a.positions.data());
  });
  add(target + "/load_bf16", [&kernels](Arrays& a, size_t n) {
    kernels.load_bf16(a.positions.data(), n, a.other.data());
  });
  add(target + "/store_i8", [&kernels](Arrays& a, size_t n) {
    kernels.store_i8(a.work.data(), n, kKey, reinterpret_cast<int8_t*>(a.bytes.data()),
                     a.positions.data());
  });
  add(target + "/load_i8", [&kernels](Arrays& a, size_t n) {
    kernels.load_i8(reinterpret_cast<const int8_t*>(a.bytes.data()), a.positions.data(), n,
                    a.other.data());
  });
  add(target + "/finish",
      [&kernels](Arrays& a, size_t n) { kernels.finish(a.work.data(), n, 0.5f, a.other.data()); });
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add("memcpy", [](Arrays& a, size_t n) { std::memcpy(a.other.data(), a.work.data(), 4 * n); });
  for (const Kernels& kernels : scant::codec::kernel_targets()) {
    add_encoders(kernels, kernels.name);
    add_streams(kernels, kernels.name);
  }
  benchmark::RunSpecifiedBenchmarks();
}
