// The codec's kernels: every implementation that this CPU runs against the scalar reference, bit
// for bit, on ordinary and hostile input; and the reference against what it promises: unbiased
// rounding, work = original - decoded, decoding what was encoded.
#include "codec/kernels/kernels.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <gtest/gtest.h>
#include <span>
#include <string>
#include <vector>

#include "base/rng.h"
#include "codec/quantise/levels.h"
#include "codec/testing/values.h"

namespace scant::codec {
namespace {

constexpr ValueKind kQuantised[] = {ValueKind::q8, ValueKind::q4, ValueKind::q3, ValueKind::q2,
                                    ValueKind::q1};
constexpr DrawKey kKey = {0x12345678u, 0x9ABCDEF1u};

std::vector<size_t> sizes() {
  std::vector<size_t> result;
  for (size_t n = 0; n <= 70; ++n) result.push_back(n);
  for (const size_t n : {127u, 128u, 256u, 1023u, 4096u, 4133u, 8255u}) result.push_back(n);
  return result;
}

// An array that begins `shift` elements behind an aligned address, between guards.
template <typename T>
class Guarded {
 public:
  explicit Guarded(size_t n, size_t shift = 0) : n_(n), shift_(shift), bytes_(n + 2 * kMargin) {
    std::memset(bytes_.data(), 0x5A, bytes_.size() * sizeof(T));
  }
  explicit Guarded(const std::vector<T>& values, size_t shift = 0) : Guarded(values.size(), shift) {
    std::copy(values.begin(), values.end(), data());
  }
  T* data() { return bytes_.data() + kMargin - 1 - shift_ % (kMargin - 1); }
  // The array and what surrounds it.
  friend bool operator==(const Guarded& a, const Guarded& b) {
    return std::memcmp(a.bytes_.data(), b.bytes_.data(), a.bytes_.size() * sizeof(T)) == 0;
  }
  [[nodiscard]] size_t size() const { return n_; }

 private:
  static constexpr size_t kMargin = 32;
  size_t n_;
  size_t shift_;
  std::vector<T> bytes_;
};

// NaN payloads are the hardware's choice.
void unify_nan(Guarded<float>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(values.data()[i])) values.data()[i] = std::bit_cast<float>(0x7FC00000u);
  }
}
bool same(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

uint32_t largest(const std::vector<float>& values) {
  uint32_t result = 0;
  for (const float value : values) result = std::max(result, magnitude_bits(value));
  return result;
}

class KernelTargets : public testing::TestWithParam<Kernels> {
 protected:
  void SetUp() override { std::printf("seed %llu\n", static_cast<unsigned long long>(kSeed)); }
};

struct Encoded {
  Guarded<float> work;
  Guarded<uint8_t> scales;
  Guarded<std::byte> codes;
  uint32_t base = 0;
};

Encoded encode(const Kernels& target, ValueKind kind, Rounding rounding,
               const std::vector<float>& values, size_t shift,
               const GroupMagnitudes* groups = nullptr, Ahead ahead = {}) {
  const size_t quads = values.size() / kQuadElements;
  Encoded result{Guarded<float>(values, shift), Guarded<uint8_t>(4 * quads, shift),
                 Guarded<std::byte>(32 * bits(kind) * quads, shift),
                 scale_base(kind, largest(values))};
  target.quantise(kind, rounding, result.work.data(), quads, result.base, groups,
                  result.scales.data(), result.codes.data(), ahead);
  return result;
}

TEST_P(KernelTargets, QuantiseAndAddEqualTheReference) {
  for (const ValueKind kind : kQuantised) {
    for (const Family family : kFinite) {
      for (size_t quads = 0; quads <= 17; ++quads) {
        const auto values = draw_values(family, quads * kQuadElements, quads);
        for (const bool stochastic : {false, true}) {
          const Rounding rounding{stochastic, kKey};
          const auto where = std::string(name(kind)) + " family " +
                             std::to_string(static_cast<int>(family)) + " quads " +
                             std::to_string(quads) + (stochastic ? " stochastic" : "");
          Encoded expected = encode(kScalarKernels, kind, rounding, values, quads);
          GroupMagnitudes groups;
          Guarded<float> same_values(values);
          if (values.size() <= 4096) {
            GetParam().accumulate_groups(values.data(), same_values.data(), values.size(), 0.0f,
                                         groups, {});
          }
          const bool known = quads % 2 == 0 && values.size() <= 4096;
          const std::span<const std::byte> memory = std::as_bytes(std::span(values));
          const Ahead ahead = known ? Ahead{values.data(), memory.data(), 4} : Ahead{};
          Encoded got =
              encode(GetParam(), kind, rounding, values, quads, known ? &groups : nullptr, ahead);
          ASSERT_TRUE(got.scales == expected.scales) << where;
          ASSERT_TRUE(got.codes == expected.codes) << where;
          ASSERT_TRUE(got.work == expected.work) << where;
          Guarded<float> sum(draw_values(Family::normal, values.size(), 99), quads);
          Guarded<float> expected_sum = sum;
          CodedValues source{got.base, got.scales.data(), got.codes.data(), got.codes.data()};
          GetParam().add_quads(kind, &source, 1, quads, sum.data());
          kScalarKernels.add_quads(kind, &source, 1, quads, expected_sum.data());
          ASSERT_TRUE(sum == expected_sum) << where;
        }
      }
    }
  }
}

TEST_P(KernelTargets, RestsEqualTheReference) {
  for (const ValueKind kind : kQuantised) {
    for (const Family family : kFinite) {
      for (size_t n = 0; n < kQuadElements; ++n) {
        const auto values = draw_values(family, n, n);
        const uint32_t base = scale_base(kind, largest(values));
        for (const bool stochastic : {false, true}) {
          const auto encode_rest = [&](const Kernels& target) {
            Encoded rest{Guarded<float>(values, n), Guarded<uint8_t>((n + 63) / 64, n),
                         Guarded<std::byte>(rest_bytes(kind, n), n), base};
            target.quantise_rest(kind, {stochastic, kKey}, 512, rest.work.data(), n, base,
                                 rest.scales.data(), rest.codes.data());
            return rest;
          };
          Encoded got = encode_rest(GetParam());
          Encoded expected = encode_rest(kScalarKernels);
          const auto where = std::string(name(kind)) + " family " +
                             std::to_string(static_cast<int>(family)) + " n " + std::to_string(n) +
                             (stochastic ? " stochastic" : "");
          ASSERT_TRUE(got.scales == expected.scales) << where;
          ASSERT_TRUE(got.codes == expected.codes) << where;
          ASSERT_TRUE(got.work == expected.work) << where;
        }
      }
    }
  }
}

// Codes and scales of any bytes, as many records as given.
struct AnyCodes {
  std::vector<Guarded<uint8_t>> scales;
  std::vector<Guarded<std::byte>> codes;
  std::vector<CodedValues> sources;
  AnyCodes(base::Rng& rng, ValueKind kind, size_t n, std::span<const uint32_t> bases) {
    for (const uint32_t base : bases) {
      Guarded<uint8_t>& scale = scales.emplace_back((n + 63) / 64, 3);
      Guarded<std::byte>& code = codes.emplace_back(rest_bytes(kind, n), 5);
      for (size_t i = 0; i < scale.size(); ++i)
        scale.data()[i] = static_cast<uint8_t>(rng.below(4) == 0 ? 0 : rng.below(256));
      for (size_t i = 0; i < code.size(); ++i)
        code.data()[i] = static_cast<std::byte>(rng.below(256));
      sources.push_back({.base = base});
    }
    for (size_t s = 0; s < sources.size(); ++s) {
      sources[s].scales = scales[s].data();
      sources[s].codes = codes[s].data();
    }
  }
};
// From the lowest to the highest, and around the one below which scales are too small to share the
// fast path.
constexpr uint32_t kBases[] = {900, 0, 200, 1721, 199, 201, 1, 640, 1000};

TEST_P(KernelTargets, AddsAnyCodesLikeTheReference) {
  base::Rng rng(kSeed, 5);
  constexpr size_t kQuads = 9;
  for (const ValueKind kind : kQuantised) {
    for (size_t first = 0; first < std::size(kBases); ++first) {
      for (size_t count = 0; count <= std::size(kBases) - first; ++count) {
        const AnyCodes any(rng, kind, kQuads * kQuadElements,
                           std::span(kBases).subspan(first, count));
        Guarded<float> sum(draw_values(Family::normal, kQuads * kQuadElements, 98), 7);
        Guarded<float> expected = sum;
        GetParam().add_quads(kind, any.sources.data(), count, kQuads, sum.data());
        kScalarKernels.add_quads(kind, any.sources.data(), count, kQuads, expected.data());
        ASSERT_TRUE(sum == expected) << name(kind) << " from " << kBases[first] << ", " << count;
      }
    }
  }
}

TEST_P(KernelTargets, MeansOfAnyCodesLikeTheReference) {
  base::Rng rng(kSeed, 7);
  constexpr size_t kElements = 3 * kQuadElements;
  for (const ValueKind kind : kQuantised) {
    for (size_t first = 0; first < std::size(kBases); ++first) {
      for (size_t count = 0; count <= 8 && first + count <= std::size(kBases); ++count) {
        const AnyCodes any(rng, kind, kElements, std::span(kBases).subspan(first, count));
        for (size_t shift = 0; shift < 10; ++shift) {  // any alignment of what is written
          std::vector<float> got(kElements + 16, 7.0f);
          std::vector<float> expected = got;
          GetParam().mean_quads(kind, any.sources.data(), count, 3, 0.3f, got.data() + shift);
          GetParam().flush();
          kScalarKernels.mean_quads(kind, any.sources.data(), count, 3, 0.3f,
                                    expected.data() + shift);
          ASSERT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)), 0)
              << name(kind) << " from " << kBases[first] << ", " << count << " shift " << shift;
        }
      }
    }
  }
}

TEST_P(KernelTargets, DecodesAnyCodesLikeTheReference) {
  base::Rng rng(kSeed, 6);
  for (const ValueKind kind : kQuantised) {
    for (const uint32_t base : kBases) {
      for (size_t n = 0; n <= 2 * kQuadElements; ++n) {
        const AnyCodes any(rng, kind, n, {&base, 1});
        std::vector<float> got(n + 31 + 16, 7.0f), expected(n);
        GetParam().decode(kind, any.sources[0], n, got.data());
        kScalarKernels.decode(kind, any.sources[0], n, expected.data());
        ASSERT_EQ(n == 0 ? 0 : std::memcmp(got.data(), expected.data(), n * sizeof(float)), 0)
            << name(kind) << " base " << base << " n " << n;
        for (size_t i = n + 31; i < got.size(); ++i) ASSERT_EQ(got[i], 7.0f) << n;
      }
    }
  }
}

TEST_P(KernelTargets, WhatIsLeftIsTheOriginalLessWhatIsDecoded) {
  for (const ValueKind kind : kQuantised) {
    for (const Family family : kFinite) {
      const auto values = draw_values(family, 8 * kQuadElements, 3);
      for (const bool stochastic : {false, true}) {
        Encoded encoded = encode(GetParam(), kind, {stochastic, kKey}, values, 1);
        std::vector<float> decoded(values.size() + 31);
        GetParam().decode(kind, {encoded.base, encoded.scales.data(), encoded.codes.data()},
                          values.size(), decoded.data());
        for (size_t i = 0; i < values.size(); ++i) {
          ASSERT_EQ(encoded.work.data()[i], values[i] - decoded[i])
              << name(kind) << " family " << static_cast<int>(family) << " element " << i;
          if (family == Family::dyadic) {  // nothing is rounded here
            ASSERT_EQ(double{encoded.work.data()[i]} + double{decoded[i]}, double{values[i]});
          }
        }
      }
    }
  }
}

TEST_P(KernelTargets, AccumulateEqualsTheReference) {
  for (const Family family : {Family::normal, Family::denormal, Family::huge, Family::nonfinite}) {
    for (const size_t n : sizes()) {
      for (const bool with_gradient : {false, true}) {
        Guarded<float> gradient(draw_values(family, n, n), n);
        Guarded<float> work(draw_values(family, n, n + 1), n + 3);
        Guarded<float> expected_work = work;
        const float* const from = with_gradient ? gradient.data() : nullptr;
        GroupMagnitudes groups = {};
        GroupMagnitudes expected_groups = {};
        const bool survey = n <= 64 * GroupMagnitudes::kMost && n % 5 != 0;
        const auto call = [&](const Kernels& target, float* to, GroupMagnitudes& found) {
          return survey ? target.accumulate_groups(from, to, n, 0.75f, found, {})
                        : target.accumulate(from, to, n, 0.75f);
        };
        const Accumulated got = call(GetParam(), work.data(), groups);
        const Accumulated expected = call(kScalarKernels, expected_work.data(), expected_groups);
        for (size_t g = 0; g < GroupMagnitudes::kMost && survey && g < n / 64; ++g) {
          ASSERT_TRUE(same(groups.mean[g], expected_groups.mean[g])) << n << " group " << g;
          ASSERT_TRUE(same(groups.largest[g], expected_groups.largest[g])) << n << " group " << g;
        }
        unify_nan(work);
        unify_nan(expected_work);
        ASSERT_TRUE(work == expected_work) << n;
        ASSERT_TRUE(same(got.energy, expected.energy)) << n;
        if (expected.magnitude_max <= kInfinityBits) {
          ASSERT_EQ(got.magnitude_max, expected.magnitude_max);
        } else {
          ASSERT_GT(got.magnitude_max, kInfinityBits);
        }
      }
    }
  }
}

TEST_P(KernelTargets, SelectEqualsTheReference) {
  for (const Family family :
       {Family::normal, Family::heavy_tail, Family::zero, Family::nonfinite}) {
    for (const size_t n : sizes()) {
      for (const float threshold : {1e-30f, 0.005f, 0.03f, 3e38f}) {
        Guarded<float> gradient(draw_values(family, n, n), n);
        Guarded<float> work(draw_values(Family::normal, n, n + 1), n + 3);
        Guarded<float> expected_work = work;
        Guarded<uint16_t> positions(n + 16), expected_positions(n + 16);
        Guarded<float> values(n + 16), expected_values(n + 16);
        const float* const from = n % 3 == 1 ? nullptr : gradient.data();
        const Selected got = GetParam().select(from, work.data(), n, 0.9f, threshold,
                                               positions.data(), values.data());
        const Selected expected =
            kScalarKernels.select(from, expected_work.data(), n, 0.9f, threshold,
                                  expected_positions.data(), expected_values.data());
        ASSERT_EQ(got.count, expected.count) << n;
        ASSERT_TRUE(same(got.energy, expected.energy)) << n;
        for (size_t i = 0; i < got.count; ++i) {
          ASSERT_EQ(positions.data()[i], expected_positions.data()[i]);
          ASSERT_TRUE(same(values.data()[i], expected_values.data()[i]));
        }
        unify_nan(work);
        unify_nan(expected_work);
        ASSERT_TRUE(work == expected_work) << n;
      }
    }
  }
}

TEST_P(KernelTargets, SixteenBitValuesEqualTheReference) {
  for (const ValueKind kind : {ValueKind::bf16, ValueKind::f16, ValueKind::f32}) {
    for (const Family family :
         {Family::normal, Family::denormal, Family::huge, Family::wide, Family::nonfinite}) {
      for (const size_t n : sizes()) {
        Guarded<float> work(draw_values(family, n, n), n);
        Guarded<float> expected_work = work;
        Guarded<std::byte> values(4 * n, n);
        Guarded<std::byte> expected_values = values;
        if (kind == ValueKind::f32) {
          std::memcpy(values.data(), work.data(), 4 * n);
        } else {
          GetParam().narrow(kind, work.data(), n, values.data());
          kScalarKernels.narrow(kind, expected_work.data(), n, expected_values.data());
          ASSERT_TRUE(values == expected_values) << name(kind) << n;
          ASSERT_TRUE(work == expected_work) << name(kind) << n;
        }
        Guarded<float> sum(draw_values(Family::normal, n, 97), n);
        Guarded<float> expected_sum = sum;
        GetParam().add_values(kind, values.data(), n, sum.data());
        kScalarKernels.add_values(kind, values.data(), n, expected_sum.data());
        unify_nan(sum);
        unify_nan(expected_sum);
        ASSERT_TRUE(sum == expected_sum) << name(kind) << n;
      }
    }
  }
}

TEST_P(KernelTargets, WidensEverySixteenBits) {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  for (const ValueKind kind : {ValueKind::bf16, ValueKind::f16}) {
    Guarded<float> sum(std::vector<float>(halves.size(), 0.0f));
    Guarded<float> expected = sum;
    const auto* const bytes = reinterpret_cast<const std::byte*>(halves.data());
    GetParam().add_values(kind, bytes, halves.size(), sum.data());
    kScalarKernels.add_values(kind, bytes, halves.size(), expected.data());
    unify_nan(sum);
    unify_nan(expected);
    EXPECT_TRUE(sum == expected) << name(kind);
  }
}

TEST_P(KernelTargets, ResidualsEqualTheReference) {
  for (const Family family : kFinite) {
    for (const size_t n : sizes()) {
      Guarded<float> work(draw_values(family, n, n), n);
      Guarded<uint16_t> halves(n, n), expected_halves(n, n);
      GetParam().store_bf16(work.data(), n, kKey, halves.data());
      kScalarKernels.store_bf16(work.data(), n, kKey, expected_halves.data());
      ASSERT_TRUE(halves == expected_halves) << n;

      const size_t groups = (n + 63) / 64;
      Guarded<int8_t> stored(n, n), expected_stored(n, n);
      Guarded<uint16_t> scales(groups, n), expected_scales(groups, n);
      GetParam().store_i8(work.data(), n, kKey, stored.data(), scales.data());
      kScalarKernels.store_i8(work.data(), n, kKey, expected_stored.data(), expected_scales.data());
      ASSERT_TRUE(stored == expected_stored) << n << " family " << static_cast<int>(family);
      ASSERT_TRUE(scales == expected_scales) << n;

      Guarded<float> loaded(n, n), expected_loaded(n, n);
      GetParam().load_bf16(halves.data(), n, loaded.data());
      kScalarKernels.load_bf16(halves.data(), n, expected_loaded.data());
      ASSERT_TRUE(loaded == expected_loaded) << n;
      GetParam().load_i8(stored.data(), scales.data(), n, loaded.data());
      kScalarKernels.load_i8(stored.data(), scales.data(), n, expected_loaded.data());
      ASSERT_TRUE(loaded == expected_loaded) << n;
      if (n > 64 * GroupMagnitudes::kMost) continue;
      GroupMagnitudes found = {}, expected_found = {};
      const Accumulated got = GetParam().accumulate_groups_i8(
          work.data(), stored.data(), scales.data(), loaded.data(), n, 0.75f, found, {});
      const Accumulated expected =
          kScalarKernels.accumulate_groups_i8(work.data(), stored.data(), scales.data(),
                                              expected_loaded.data(), n, 0.75f, expected_found, {});
      ASSERT_TRUE(loaded == expected_loaded) << n;
      ASSERT_EQ(got.magnitude_max, expected.magnitude_max) << n;
      ASSERT_TRUE(same(got.energy, expected.energy)) << n;
      for (size_t g = 0; g < n / 64; ++g) {
        ASSERT_TRUE(same(found.mean[g], expected_found.mean[g])) << n << " group " << g;
        ASSERT_TRUE(same(found.largest[g], expected_found.largest[g])) << n << " group " << g;
      }
    }
  }
}

TEST_P(KernelTargets, FinishEqualsTheReference) {
  for (const size_t n : sizes()) {
    for (size_t shift = 0; shift < 9; ++shift) {
      Guarded<float> sum(draw_values(Family::wide, n, n), shift);
      Guarded<float> expected_sum = sum;
      Guarded<float> out(n, shift), expected_out(n, shift);
      GetParam().finish(sum.data(), n, 0.125f, out.data());
      GetParam().flush();
      kScalarKernels.finish(expected_sum.data(), n, 0.125f, expected_out.data());
      ASSERT_TRUE(out == expected_out) << n;
      ASSERT_TRUE(sum == expected_sum) << n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(OnThisCpu, KernelTargets,
                         testing::ValuesIn(kernel_targets().begin(), kernel_targets().end()),
                         [](const auto& target) { return std::string(target.param.name); });

}  // namespace
}  // namespace scant::codec
