// reduce.h: the reference against hand-written facts and an exact oracle, then every implementation
// that this CPU runs against the reference, bit for bit, on random and adversarial input.
#include "collective/reduce/reduce.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "base/rng.h"
#include "collective/reduce/float_environment.h"
#include "collective/reduce/reduce_simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace scant::collective {
namespace {

constexpr uint64_t kSeed = 20260301;

std::array<DType, kDTypeCount> all_dtypes() {
  return {DType::f32, DType::f64, DType::bf16, DType::f16,    DType::i8,
          DType::i32, DType::i64, DType::u8,   DType::boolean};
}

std::array<ReduceOp, kReduceOpCount> all_ops() {
  return {ReduceOp::sum, ReduceOp::average, ReduceOp::product, ReduceOp::min,
          ReduceOp::max, ReduceOp::bit_and, ReduceOp::bit_or,  ReduceOp::bit_xor};
}

// Bit patterns where implementations differ: zeros, subnormals, limits, infinities, quiet and
// signalling NaNs, halfway cases of rounding. They are used as they are for every dtype of the
// width.
std::vector<uint64_t> adversarial_patterns(DType dtype) {
  std::vector<uint64_t> patterns;
  switch (size_bytes(dtype)) {
    case 1:
      patterns = {0, 1, 2, 3, 0x7E, 0x7F, 0x80, 0x81, 0xFE, 0xFF};
      break;
    case 2:
      patterns = {0x0000, 0x0001, 0x0002, 0x007F, 0x0080, 0x03FF, 0x0400, 0x0401, 0x3555, 0x3BFF,
                  0x3C00, 0x3C01, 0x3F80, 0x3F81, 0x4000, 0x4248, 0x6400, 0x7BFF, 0x7C00, 0x7C01,
                  0x7DFF, 0x7E00, 0x7E2A, 0x7F7F, 0x7F80, 0x7F81, 0x7FC0, 0x7FC5, 0x7FFF};
      break;
    case 4:
      patterns = {0x00000000, 0x00000001, 0x00000002, 0x007FFFFF, 0x00800000, 0x00800001,
                  0x33800000, 0x34000000, 0x3F7FFFFF, 0x3F800000, 0x3F800001, 0x40490FDB,
                  0x4B000000, 0x4B7FFFFF, 0x7F000000, 0x7F7FFFFF, 0x7F800000, 0x7F800001,
                  0x7FA00000, 0x7FBFFFFF, 0x7FC00000, 0x7FC12345, 0x7FFFFFFF};
      break;
    default:
      patterns = {0x0000000000000000, 0x0000000000000001, 0x000FFFFFFFFFFFFF, 0x0010000000000000,
                  0x3CA0000000000000, 0x3FEFFFFFFFFFFFFF, 0x3FF0000000000000, 0x3FF0000000000001,
                  0x4340000000000000, 0x7FE0000000000000, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000,
                  0x7FF0000000000001, 0x7FF7FFFFFFFFFFFF, 0x7FF8000000000000, 0x7FF8000000012345,
                  0x7FFFFFFFFFFFFFFF, 0x00000000FFFFFFFF, 0x0000000100000000, 0x00000000FFFFFFFE};
      break;
  }
  const uint64_t sign = uint64_t{1} << (8 * size_bytes(dtype) - 1);
  const size_t positive = patterns.size();
  for (size_t i = 0; i < positive; ++i) patterns.push_back(patterns[i] ^ sign);
  return patterns;
}

void put(std::vector<std::byte>& to, size_t index, uint64_t pattern, size_t size) {
  std::memcpy(to.data() + index * size, &pattern, size);  // little endian: the low bytes
}

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  std::vector<std::byte> out(values.size() * sizeof(T));
  std::memcpy(out.data(), values.data(), out.size());
  return out;
}

std::vector<std::byte> random_elements(base::Rng& rng, DType dtype, size_t count) {
  const auto patterns = adversarial_patterns(dtype);
  std::vector<std::byte> out(count * size_bytes(dtype));
  for (size_t i = 0; i < count; ++i) {
    const bool adversarial = rng.chance(0.3);
    const uint64_t pattern = adversarial ? patterns[rng.below(patterns.size())] : rng.next();
    put(out, i, pattern, size_bytes(dtype));
  }
  return out;
}

template <typename T>
T reference(DType dtype, ReduceOp op, T a, T b) {
  T out;
  reduce_reference(dtype, op, reinterpret_cast<const std::byte*>(&a),
                   reinterpret_cast<const std::byte*>(&b), reinterpret_cast<std::byte*>(&out),
                   sizeof(T));
  return out;
}

uint32_t f32(ReduceOp op, uint32_t a, uint32_t b) {
  return reference<uint32_t>(DType::f32, op, a, b);
}
uint16_t f16(ReduceOp op, uint16_t a, uint16_t b) {
  return reference<uint16_t>(DType::f16, op, a, b);
}
uint16_t bf16(ReduceOp op, uint16_t a, uint16_t b) {
  return reference<uint16_t>(DType::bf16, op, a, b);
}

TEST(ReduceReference, NanRules) {
  constexpr uint32_t kOne = 0x3F800000;
  for (const ReduceOp op :
       {ReduceOp::sum, ReduceOp::average, ReduceOp::product, ReduceOp::min, ReduceOp::max}) {
    EXPECT_EQ(f32(op, 0x7F800123, kOne), 0x7FC00123u) << name(op) << ": made quiet, payload kept";
    EXPECT_EQ(f32(op, kOne, 0xFF800123), 0xFFC00123u) << name(op) << ": sign kept";
    EXPECT_EQ(f32(op, 0x7FC00001, 0x7F800002), 0x7FC00001u) << name(op) << ": the left one wins";
    EXPECT_EQ(f16(op, 0x7C01, 0x7E55), 0x7E01) << name(op);
    EXPECT_EQ(bf16(op, 0x3F80, 0x7F81), 0x7FC1) << name(op);
  }
  EXPECT_EQ(f32(ReduceOp::sum, 0x7F800000, 0xFF800000), 0x7FC00000u);      // inf - inf
  EXPECT_EQ(f32(ReduceOp::product, 0x80000000, 0x7F800000), 0x7FC00000u);  // -0 * inf
  EXPECT_EQ(f16(ReduceOp::sum, 0xFC00, 0x7C00), 0x7E00);
  EXPECT_EQ(bf16(ReduceOp::sum, 0xFF80, 0x7F80), 0x7FC0);
}

TEST(ReduceReference, ZerosAndInfinities) {
  constexpr uint32_t kMinusZero = 0x80000000;
  EXPECT_EQ(f32(ReduceOp::min, 0, kMinusZero), kMinusZero);
  EXPECT_EQ(f32(ReduceOp::min, kMinusZero, 0), kMinusZero);
  EXPECT_EQ(f32(ReduceOp::max, 0, kMinusZero), 0u);
  EXPECT_EQ(f32(ReduceOp::max, kMinusZero, 0), 0u);
  EXPECT_EQ(f32(ReduceOp::sum, kMinusZero, kMinusZero), kMinusZero);
  EXPECT_EQ(f32(ReduceOp::sum, kMinusZero, 0), 0u);
  EXPECT_EQ(f32(ReduceOp::max, 0xFF800000, 0x00000001), 1u);
  EXPECT_EQ(f32(ReduceOp::sum, 0x00000001, 0x00000001), 2u);  // subnormals are kept
  EXPECT_EQ(f16(ReduceOp::min, 0x8000, 0x0000), 0x8000);
}

TEST(ReduceReference, HalvesRoundOnceToEven) {
  EXPECT_EQ(f16(ReduceOp::sum, 0x6800, 0x3C00), 0x6800);      // 2048 + 1: halfway, even stays
  EXPECT_EQ(f16(ReduceOp::sum, 0x6801, 0x3C00), 0x6802);      // 2050 + 1: halfway, up to even
  EXPECT_EQ(f16(ReduceOp::sum, 0x7BFF, 0x4B80), 0x7BFF);      // 65504 + 15
  EXPECT_EQ(f16(ReduceOp::sum, 0x7BFF, 0x4C00), 0x7C00);      // 65504 + 16: halfway to infinity
  EXPECT_EQ(f16(ReduceOp::product, 0x0001, 0x3800), 0x0000);  // 2^-24 / 2: halfway to zero
  EXPECT_EQ(f16(ReduceOp::product, 0x0003, 0x3800), 0x0002);
  EXPECT_EQ(f16(ReduceOp::sum, 0x03FF, 0x0001), 0x0400);   // subnormals carry into normals
  EXPECT_EQ(bf16(ReduceOp::sum, 0x4380, 0x3F80), 0x4380);  // 256 + 1
  EXPECT_EQ(bf16(ReduceOp::sum, 0x4381, 0x3F80), 0x4382);  // 258 + 1
  EXPECT_EQ(bf16(ReduceOp::sum, 0x7F7F, 0x7F7F), 0x7F80);
}

TEST(ReduceReference, IntegersWrapAndBooleansAreTruths) {
  EXPECT_EQ(reference<int8_t>(DType::i8, ReduceOp::sum, 127, 1), -128);
  EXPECT_EQ(reference<int8_t>(DType::i8, ReduceOp::product, -128, -1), -128);
  EXPECT_EQ(reference<uint8_t>(DType::u8, ReduceOp::sum, 255, 2), 1);
  EXPECT_EQ(reference<int32_t>(DType::i32, ReduceOp::sum, INT32_MIN, -1), INT32_MAX);
  EXPECT_EQ(reference<int32_t>(DType::i32, ReduceOp::product, INT32_MIN, -1), INT32_MIN);
  EXPECT_EQ(reference<int64_t>(DType::i64, ReduceOp::product, INT64_MIN, -1), INT64_MIN);
  EXPECT_EQ(reference<int64_t>(DType::i64, ReduceOp::min, INT64_MIN, INT64_MAX), INT64_MIN);
  EXPECT_EQ(reference<uint8_t>(DType::u8, ReduceOp::max, 0x80, 0x7F), 0x80);
  EXPECT_EQ(reference<int8_t>(DType::i8, ReduceOp::bit_xor, -1, 0x0F), static_cast<int8_t>(0xF0));
  EXPECT_EQ(reference<uint8_t>(DType::boolean, ReduceOp::sum, 0x40, 0), 1);
  EXPECT_EQ(reference<uint8_t>(DType::boolean, ReduceOp::product, 2, 4), 1);  // not 2 & 4
  EXPECT_EQ(reference<uint8_t>(DType::boolean, ReduceOp::bit_xor, 2, 4), 0);
  EXPECT_EQ(reference<uint8_t>(DType::boolean, ReduceOp::min, 255, 0), 0);
}

// Every finite value of a 16-bit format, from the definition of its fields.
struct HalfFormat {
  DType dtype;
  int mantissa_bits;
  int bias;
};

double half_value(const HalfFormat& format, uint16_t pattern) {
  const int exponent = (pattern & 0x7FFF) >> format.mantissa_bits;
  const int mantissa = pattern & ((1 << format.mantissa_bits) - 1);
  const int implicit = exponent == 0 ? 0 : 1 << format.mantissa_bits;
  const double magnitude =
      std::ldexp(implicit + mantissa, std::max(exponent, 1) - format.bias - format.mantissa_bits);
  return (pattern & 0x8000) != 0 ? -magnitude : magnitude;
}

// The pattern nearest to a non-negative exact value, ties to even; infinity from half a step above
// the largest.
uint16_t nearest_half(const HalfFormat& format, double exact) {
  const auto infinity =
      static_cast<uint16_t>(0x7FFF >> format.mantissa_bits << format.mantissa_bits);
  uint16_t low = 0;
  for (int bit = 14; bit >= 0; --bit) {  // the largest pattern whose value is at most `exact`
    const auto candidate = static_cast<uint16_t>(low | (1 << bit));
    if (candidate < infinity && half_value(format, candidate) <= exact) low = candidate;
  }
  const auto high = static_cast<uint16_t>(low + 1);
  const double below = exact - half_value(format, low);
  const double above =
      half_value(format, high) - exact;  // one step above the largest is where infinity stands
  return above < below || (above == below && (low & 1) != 0) ? high : low;
}

TEST(ReduceReference, ProductsOfHalvesEqualTheExactOracle) {
  for (const HalfFormat format :
       {HalfFormat{DType::f16, 10, 15}, HalfFormat{DType::bf16, 7, 127}}) {
    base::Rng rng(kSeed, static_cast<uint64_t>(format.dtype));
    SCOPED_TRACE("seed " + std::to_string(kSeed) + " " + name(format.dtype));
    for (int i = 0; i < 200000; ++i) {
      const auto a = static_cast<uint16_t>(rng.next() & 0x7FFF);
      const auto b = static_cast<uint16_t>(rng.next() & 0x7FFF);
      const double exact = half_value(format, a) * half_value(format, b);
      const uint16_t infinity =
          static_cast<uint16_t>(0x7FFF >> format.mantissa_bits << format.mantissa_bits);
      // Outside the normal range of f32 the two roundings of bf16 are both visible.
      if (a >= infinity || b >= infinity || exact < 0x1p-126 || exact > 0x1.FFFFFEp127) continue;
      ASSERT_EQ(reference<uint16_t>(format.dtype, ReduceOp::product, a, b),
                nearest_half(format, exact))
          << a << " * " << b;
    }
  }
}

class ReduceTargets : public testing::TestWithParam<ReduceTarget> {};

std::string case_name(const ReduceTarget& target, DType dtype, ReduceOp op) {
  return std::string(target.name) + " " + name(dtype) + " " + name(op) + " seed " +
         std::to_string(kSeed);
}

// Runs one call at the given misalignments with guard bytes around the destination, and compares
// with the reference.
enum class Alias { none, left, right };
void expect_equal(const ReduceTarget& target, DType dtype, ReduceOp op,
                  const std::vector<std::byte>& a, const std::vector<std::byte>& b, size_t shift,
                  Alias alias) {
  constexpr std::byte kGuard{0xA5};
  constexpr size_t kMargin = 64;
  const size_t bytes = a.size();
  std::vector<std::byte> expected(bytes);
  reduce_reference(dtype, op, a.data(), b.data(), expected.data(), bytes);

  std::vector<std::byte> left(bytes + 2 * kMargin, kGuard);
  std::vector<std::byte> right(bytes + 2 * kMargin, kGuard);
  std::vector<std::byte> other(bytes + 2 * kMargin, kGuard);
  std::byte* const at_left = left.data() + kMargin - shift;
  std::byte* const at_right = right.data() + kMargin - (shift * 5) % kMargin;
  std::byte* const at_other = other.data() + kMargin - (shift * 11) % kMargin;
  std::copy(a.begin(), a.end(), at_left);
  std::copy(b.begin(), b.end(), at_right);
  std::byte* const to = alias == Alias::left    ? at_left
                        : alias == Alias::right ? at_right
                                                : at_other;
  {
    const FloatEnvironment environment;
    target.combine(dtype, op, at_left, at_right, to, bytes);
  }
  for (size_t i = 0; i < bytes; ++i) {
    ASSERT_EQ(to[i], expected[i]) << case_name(target, dtype, op) << " byte " << i << " of "
                                  << bytes << " shift " << shift << " alias "
                                  << static_cast<int>(alias);
  }
  ASSERT_EQ(to[-1], kGuard) << case_name(target, dtype, op) << ": wrote before the array";
  ASSERT_EQ(to[bytes], kGuard) << case_name(target, dtype, op) << ": wrote past the array";
}

template <typename Body>
void for_each_defined(const Body& body) {
  for (const DType dtype : all_dtypes()) {
    for (const ReduceOp op : all_ops()) {
      if (reduce_defined(dtype, op)) body(dtype, op);
    }
  }
}

TEST_P(ReduceTargets, EveryTailLengthAlignmentAndAlias) {
  for_each_defined([&](DType dtype, ReduceOp op) {
    base::Rng rng(kSeed, static_cast<uint64_t>(dtype));
    for (size_t count = 0; count <= 130; ++count) {
      const auto a = random_elements(rng, dtype, count);
      const auto b = random_elements(rng, dtype, count);
      for (const Alias alias : {Alias::none, Alias::left, Alias::right}) {
        expect_equal(GetParam(), dtype, op, a, b, count % 64, alias);
        if (HasFatalFailure()) return;
      }
    }
  });
}

TEST_P(ReduceTargets, EveryPairOfAdversarialValues) {
  for_each_defined([&](DType dtype, ReduceOp op) {
    const auto patterns = adversarial_patterns(dtype);
    std::vector<std::byte> a(patterns.size() * patterns.size() * size_bytes(dtype));
    std::vector<std::byte> b(a.size());
    size_t index = 0;
    for (const uint64_t left : patterns) {
      for (const uint64_t right : patterns) {
        put(a, index, left, size_bytes(dtype));
        put(b, index, right, size_bytes(dtype));
        ++index;
      }
    }
    expect_equal(GetParam(), dtype, op, a, b, 0, Alias::none);
  });
}

TEST_P(ReduceTargets, EveryValueOfSixteenBitsAndEveryPairOfBytes) {
  for_each_defined([&](DType dtype, ReduceOp op) {
    const size_t size = size_bytes(dtype);
    if (size > 2) return;
    base::Rng rng(kSeed, static_cast<uint64_t>(dtype));
    std::vector<std::byte> a(65536 * size);
    std::vector<std::byte> b(65536 * size);
    for (int round = 0; round < (size == 1 ? 1 : 8); ++round) {
      for (uint64_t i = 0; i < 65536; ++i) {
        put(a, i, i, size);
        put(b, i, size == 1 ? i >> 8 : rng.next(), size);
      }
      expect_equal(GetParam(), dtype, op, a, b, 0, Alias::none);
      expect_equal(GetParam(), dtype, op, b, a, 0, Alias::none);
      if (HasFatalFailure()) return;
    }
  });
}

TEST_P(ReduceTargets, LargeRandomArrays) {
  for_each_defined([&](DType dtype, ReduceOp op) {
    base::Rng rng(kSeed, 100 + static_cast<uint64_t>(dtype));
    const size_t count = 10007;
    expect_equal(GetParam(), dtype, op, random_elements(rng, dtype, count),
                 random_elements(rng, dtype, count), 13, Alias::left);
  });
}

void expect_divided(const ReduceTarget& target, DType dtype, const std::vector<std::byte>& data,
                    int divisor) {
  std::vector<std::byte> expected = data;
  scale_reference(dtype, expected.data(), expected.size(), divisor);
  std::vector<std::byte> shifted(data.size() + 1);
  std::copy(data.begin(), data.end(), shifted.begin() + 1);
  {
    const FloatEnvironment environment;
    target.divide(dtype, shifted.data() + 1, data.size(), divisor);
  }
  for (size_t i = 0; i < data.size(); ++i) {
    ASSERT_EQ(shifted[i + 1], expected[i]) << case_name(target, dtype, ReduceOp::average) << " / "
                                           << divisor << " byte " << i << " of " << data.size();
  }
}

TEST_P(ReduceTargets, DividesLikeTheReference) {
  for (const DType dtype : all_dtypes()) {
    if (!reduce_defined(dtype, ReduceOp::average)) continue;
    base::Rng rng(kSeed, static_cast<uint64_t>(dtype));
    const size_t size = size_bytes(dtype);
    std::vector<std::byte> small(65536 * size);
    for (uint64_t i = 0; i < 65536; ++i) put(small, i, i, size);
    for (const int divisor :
         {1, 2, 3, 4, 5, 6, 7, 8, 10, 64, 100, 127, 128, 255, 256, 1000, 65535, 1 << 24}) {
      if (size <= 2) expect_divided(GetParam(), dtype, small, divisor);
      expect_divided(GetParam(), dtype, random_elements(rng, dtype, 4001), divisor);
      if (HasFatalFailure()) return;
    }
    for (size_t count = 0; count <= 130; ++count) {
      expect_divided(GetParam(), dtype, random_elements(rng, dtype, count), 3);
      if (HasFatalFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(OnThisCpu, ReduceTargets,
                         testing::ValuesIn(reduce_targets().begin(), reduce_targets().end()),
                         [](const auto& target) { return std::string(target.param.name); });

TEST(Scale, Truths) {
  EXPECT_STREQ(reduce_implementation(), reduce_targets().front().name);
  const auto divided = [](DType dtype, auto value, int divisor) {
    scale(dtype, reinterpret_cast<std::byte*>(&value), sizeof(value), divisor);
    return value;
  };
  EXPECT_EQ(divided(DType::f32, 1.0f, 3), 1.0f / 3.0f);
  EXPECT_EQ(divided(DType::f64, 1.0, 4), 0.25);
  EXPECT_EQ(divided(DType::i32, int32_t{-7}, 2), -3);  // towards zero
  EXPECT_EQ(divided(DType::i64, int64_t{INT64_MIN}, 3), INT64_MIN / 3);
  EXPECT_EQ(divided(DType::i8, int8_t{-128}, 128), -1);
  EXPECT_EQ(divided(DType::u8, uint8_t{255}, 2), 127);
  EXPECT_EQ(divided(DType::f16, uint16_t{0x3C00}, 3), 0x3555);   // 1/3
  EXPECT_EQ(divided(DType::bf16, uint16_t{0x3F80}, 3), 0x3EAB);  // 1/3
}

TEST(Reduce, EmptyArraysNeedNoPointers) {
  reduce(DType::f32, ReduceOp::sum, nullptr, nullptr, nullptr, 0);
  scale(DType::f32, nullptr, 0, 2);
}

#if defined(__x86_64__)
TEST(Reduce, IgnoresTheCallersFloatingPointModes) {
  base::Rng rng(kSeed, 7);
  const auto a = random_elements(rng, DType::f32, 1000);
  const auto b = random_elements(rng, DType::f32, 1000);
  std::vector<std::byte> expected(a.size());
  std::vector<std::byte> got(a.size());
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
    for (const ReduceOp op : {ReduceOp::sum, ReduceOp::product}) {
      reduce(dtype, op, a.data(), b.data(), expected.data(), a.size());
      scale(dtype, expected.data(), expected.size(), 3);
      const unsigned before = _mm_getcsr();
      const unsigned strange = 0x9FC0 | 0x4000;  // flush to zero, subnormals are zero, round up
      _mm_setcsr(strange);
      reduce(dtype, op, a.data(), b.data(), got.data(), a.size());
      scale(dtype, got.data(), got.size(), 3);
      const unsigned after = _mm_getcsr();
      _mm_setcsr(before);
      EXPECT_EQ(after, strange);
      EXPECT_EQ(got, expected) << name(dtype) << " " << name(op);
    }
  }
}
#endif

TEST(ReduceDeathTest, RefusesWhatIsNotDefined) {
  std::array<std::byte, 8> data{};
  EXPECT_DEATH(reduce(DType::f32, ReduceOp::bit_or, data.data(), data.data(), data.data(), 8),
               "bit_or");
  EXPECT_DEATH(reduce(DType::boolean, ReduceOp::average, data.data(), data.data(), data.data(), 8),
               "average");
  EXPECT_DEATH(reduce(DType::f32, ReduceOp::sum, data.data(), data.data(), data.data(), 6),
               "part of an element");
  EXPECT_DEATH(scale(DType::f32, data.data(), 8, 0), "divisor >= 1");
}

}  // namespace
}  // namespace scant::collective
