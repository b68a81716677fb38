// Attention over pages against sums in doubles, for groups, windows, sizes and kinds of memory; the
// bits do not depend on how a prompt is cut.
#include "serve/model/attention.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

#include "base/rng.h"

namespace scant::serve {
namespace {

using Floats = std::vector<float>;

Floats random(size_t n, uint64_t seed) {
  base::Rng rng(seed, n);
  Floats out(n);
  for (float& one : out) one = static_cast<float>(2 * rng.uniform() - 1);
  return out;
}

struct Case {
  Description d;
  KvKind kind;
  double bound;
};

// Queries, keys and values of a sequence, and the memory that holds it.
struct Sequence {
  Sequence(const Case& of, uint32_t count)
      : d(of.d),
        shape(d),
        tokens(count),
        queries(random(size_t{count} * d.heads * d.head_size, 1)),
        keys(random(size_t{count} * d.kv_heads * d.head_size, 2)),
        values(random(size_t{count} * d.kv_heads * d.head_size, 3)),
        memory(KvMemory::create(d, of.kind, 64).value()) {
    for (uint32_t i = 0; i * kPageTokens < count; ++i) pages.push_back(63 - i * 3 % 64);
    // What is not this sequence's must not matter.
    const Floats strange(d.head_size, NAN);
    for (uint32_t page = 0; page < 64; ++page) {
      for (uint32_t slot = 0; slot < kPageTokens; ++slot) {
        for (uint32_t head = 0; head < d.kv_heads; ++head)
          memory.store(page, slot, 1, head, strange.data(), strange.data());
      }
    }
    for (uint32_t i = 0; i < count; ++i) {
      for (uint32_t head = 0; head < d.kv_heads; ++head) {
        const size_t at = (size_t{i} * d.kv_heads + head) * d.head_size;
        memory.store(pages[i / kPageTokens], i % kPageTokens, 1, head, keys.data() + at,
                     values.data() + at);
      }
    }
  }

  // All tokens, so many at a time.
  [[nodiscard]] Floats attended(size_t at_a_time, const StepKernels& kernels) {
    const size_t stride = size_t{d.heads} * d.head_size;
    Floats out(tokens * stride, NAN);
    AttentionRoom room(shape);
    for (uint32_t first = 0; first < tokens; first += static_cast<uint32_t>(at_a_time)) {
      const AttentionTokens now{
          .pages = pages,
          .position = first,
          .tokens = std::min<uint32_t>(static_cast<uint32_t>(at_a_time), tokens - first),
          .queries = queries.data() + first * stride,
          .query_stride = stride,
          .out = out.data() + first * stride,
          .out_stride = stride};
      for (uint32_t head = 0; head < d.kv_heads; ++head)
        attend(shape, memory, kernels, 1, head, now, room);
    }
    work = room.work();
    return out;
  }

  [[nodiscard]] double reference(uint32_t token, uint32_t head, uint32_t column) const {
    const size_t n = d.head_size;
    const uint32_t kv_head = head / (d.heads / d.kv_heads);
    const auto at = [&](uint32_t key) { return (size_t{key} * d.kv_heads + kv_head) * n; };
    double sum = 0;
    double weights = 0;
    for (uint32_t key = 0; key <= token; ++key) {
      if (d.window != 0 && key + d.window <= token) continue;
      double score = 0;
      for (size_t i = 0; i < n; ++i)
        score += double{queries[(size_t{token} * d.heads + head) * n + i]} * keys[at(key) + i];
      const double weight = std::exp(score / std::sqrt(static_cast<double>(n)));
      weights += weight;
      sum += weight * values[at(key) + column];
    }
    return sum / weights;
  }

  Description d;
  AttentionShape shape;
  uint32_t tokens;
  Floats queries;
  Floats keys;
  Floats values;
  KvMemory memory;
  std::vector<uint32_t> pages;
  uint64_t work = 0;
};

Description described(uint32_t heads, uint32_t kv_heads, uint32_t head_size, uint32_t window) {
  return {
      .layers = 2, .heads = heads, .kv_heads = kv_heads, .head_size = head_size, .window = window};
}

class Attention : public ::testing::TestWithParam<Case> {};

TEST_P(Attention, IsThatOfDoublesAndDoesNotDependOnCuts) {
  for (const uint32_t tokens : {1U, 16U, 17U, 150U}) {
    Sequence sequence(GetParam(), tokens);
    const Description& d = sequence.d;
    const Floats found = sequence.attended(1, step_kernel_targets()[0]);
    double worst = 0;
    for (uint32_t token = 0; token < tokens; ++token) {
      for (uint32_t head = 0; head < d.heads; ++head) {
        for (uint32_t column = 0; column < d.head_size; ++column) {
          const float one = found[(size_t{token} * d.heads + head) * d.head_size + column];
          const double error = std::abs(one - sequence.reference(token, head, column));
          worst = std::max(worst, std::isnan(one) ? INFINITY : error);
        }
      }
    }
    EXPECT_LT(worst, GetParam().bound);
    for (size_t at_a_time = 1; at_a_time <= sequence.shape.tokens_at_a_time(); ++at_a_time) {
      const Floats again = sequence.attended(at_a_time, step_kernel_targets()[0]);
      EXPECT_EQ(std::memcmp(again.data(), found.data(), sizeof(float) * found.size()), 0)
          << at_a_time << " tokens at a time";
    }
    const Floats plain = sequence.attended(std::min<size_t>(3, sequence.shape.tokens_at_a_time()),
                                           kPlainStepKernels);
    EXPECT_EQ(std::memcmp(plain.data(), found.data(), sizeof(float) * found.size()), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Attention,
                         ::testing::Values(Case{described(4, 4, 16, 0), KvKind::f32, 2e-6},
                                           Case{described(4, 2, 20, 0), KvKind::f32, 2e-6},
                                           Case{described(6, 2, 33, 40), KvKind::f32, 2e-6},
                                           Case{described(3, 1, 64, 64), KvKind::f32, 2e-6},
                                           Case{described(2, 1, 8, 1), KvKind::f32, 2e-6},
                                           Case{described(40, 1, 5, 7), KvKind::f32, 2e-6},
                                           Case{described(6, 2, 20, 0), KvKind::bf16, 8e-3},
                                           Case{described(6, 2, 20, 50), KvKind::q8, 1.5e-2}));

TEST(AttentionWork, IsThatOfThePagesThatAreSeen) {
  Sequence sequence({described(2, 1, 16, 0), KvKind::f32, 0}, 40);
  static_cast<void>(sequence.attended(1, step_kernel_targets()[0]));
  uint64_t wanted = 0;
  for (uint64_t keys = 1; keys <= 40; ++keys) wanted += 2 * 16 * ((keys + 15) / 16 * 16 + keys);
  EXPECT_EQ(sequence.work, wanted);
}

TEST(KvMemory, BytesAreThoseOfTheFormula) {
  const Description d = described(8, 4, 24, 0);
  EXPECT_EQ(kv_page_bytes(d, KvKind::f32), 2U * 4 * 32 * 24 * 4);
  EXPECT_EQ(kv_page_bytes(d, KvKind::bf16), 2U * 4 * 32 * 24 * 2);
  EXPECT_EQ(kv_page_bytes(d, KvKind::q8), 2U * 4 * (32 * 24 + 128));
  EXPECT_EQ(KvMemory::create(d, KvKind::q8, 5).value().bytes(), 5 * kv_page_bytes(d, KvKind::q8));
  const Description most = {
      .layers = 1U << 14, .heads = 1U << 14, .kv_heads = 1U << 14, .head_size = 1U << 14};
  const auto none = KvMemory::create(most, KvKind::f32, UINT32_MAX);
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().code, ErrorCode::resource);
}

TEST(KvMemory, EightBitsRoundToTheNearestOf255) {
  const Description d = described(1, 1, 50, 0);
  KvMemory memory = KvMemory::create(d, KvKind::q8, 1).value();
  Floats key = random(50, 1);
  key[7] = -1.5f;
  const Floats zeros(50);
  memory.store(0, 3, 0, 0, key.data(), zeros.data());
  Floats infinite = key;
  infinite[49] = INFINITY;
  memory.store(0, 4, 0, 0, infinite.data(), key.data());
  const Floats tiny(50, 1e-40f);
  memory.store(0, 5, 0, 0, tiny.data(), tiny.data());
  Floats room(kPageTokens * 64);
  const float* const keys = memory.keys(0, 0, 0, step_kernel_targets()[0], room.data());
  for (size_t i = 0; i < 50; ++i) {
    EXPECT_NEAR(keys[kPageTokens * i + 3], key[i], 1.5 / 254 + 1e-6);
    EXPECT_TRUE(std::isnan(keys[kPageTokens * i + 4]));
    EXPECT_EQ(keys[kPageTokens * i + 5], 0);
  }
  EXPECT_EQ(keys[kPageTokens * 7 + 3], -1.5f);
  const float* const values = memory.values(0, 0, 0, step_kernel_targets()[0], room.data());
  for (size_t i = 0; i < 50; ++i) {
    EXPECT_EQ(values[3 * memory.value_stride() + i], 0);
    EXPECT_NEAR(values[4 * memory.value_stride() + i], key[i], 1.5 / 254 + 1e-6);
  }
}

}  // namespace
}  // namespace scant::serve
