// Test support: the messages of a buffer with factors, and the averages that follow from them, made
// here step by step.
#pragma once

#include <gtest/gtest.h>
#include <vector>

#include "codec/accumulate.h"
#include "codec/rank/factors.h"
#include "codec/testing/encoders.h"
#include "journal/step.h"

namespace scant::journal::testing {

// Tensor 0 is a matrix whose first part sends a rest, and whose second does not; both begin or end
// within a row. Tensor 1 is a vector without factors.
inline constexpr codec::Shape kFactoredShape{40, 96};
inline constexpr codec::Shape kBesideShape{1, 100};
inline const std::vector<Matrix> kFactoredMatrices{
    {.part = 1, .tensor = 0, .rank = 4, .columns = 96, .range = {0, 2000}},
    {.part = 2, .tensor = 0, .rank = 3, .columns = 96, .range = {2000, 1840}}};

class Factored {
 public:
  // Of owners one message for each stage, of ranks one each.
  explicit Factored(uint64_t seed, PartKind kind = PartKind::averages, uint32_t ranks = 1)
      : seed_(seed), kind_(kind), ranks_(ranks) {
    for (const bool basis : {true, false}) {
      for (uint32_t rank = 0; rank < ranks; ++rank) messages.push_back(message(rank, basis));
    }
    averages = {std::vector<float>(kFactoredShape.elements()),
                sum(1, kBesideShape, {0, kBesideShape.elements()})};
    for (const Matrix& matrix : matrices) add_average(matrix);
  }

  static std::vector<uint64_t> bytes() {
    return {kFactoredShape.elements() * sizeof(float), kBesideShape.elements() * sizeof(float)};
  }
  [[nodiscard]] std::vector<Part> parts() const {
    std::vector<Part> all{{.kind = PartKind::matrices, .where = 7, .matrices = matrices}};
    for (const auto& one : messages) {
      all.push_back({.kind = kind_, .where = 7, .bytes = one});
    }
    return all;
  }
  [[nodiscard]] Step step() const {
    return {.ranks = ranks_, .present = {true, true}, .parts = parts()};
  }
  [[nodiscard]] std::vector<Bytes> found() const {
    return {std::as_bytes(std::span(averages[0])), std::as_bytes(std::span(averages[1]))};
  }
  [[nodiscard]] size_t record_bytes() const {
    size_t all = 0;
    for (const auto& one : messages) all += one.size();
    return all;
  }

  std::vector<Matrix> matrices = kFactoredMatrices;
  std::vector<std::vector<std::byte>> messages;
  std::vector<std::vector<float>> averages;  // by tensor

 private:
  using Records = std::vector<std::byte>;

  void append(Records& to, uint32_t rank, uint32_t tensor, codec::Shape shape, codec::Range range,
              codec::ValueKind values) {
    auto encoder = codec::Encoder::create(
        tensor, shape, {.residual = codec::ResidualKind::none, .seed = seed_}, range);
    ASSERT_TRUE(encoder.ok()) << encoder.error().to_string();
    const auto drawn =
        codec::testing::gaussians(range.elements, seed_, tensor * 8191 + 64 * range.first + rank);
    const auto done = codec::testing::step(encoder.value(), drawn, {1.0, values}, workspace_);
    to.insert(to.end(), done.bytes.begin(), done.bytes.end());
  }

  // The first part's left factor is cut in two, and so is its rest.
  Records message(uint32_t rank, bool basis) {
    Records all;
    for (const Matrix& matrix : matrices) {
      const uint64_t rows = codec::rows_touched(kFactoredShape, matrix.range);
      const codec::Shape left{matrix.rank, rows};
      const codec::Shape right{matrix.rank, matrix.columns};
      const uint64_t cut = matrix.part == 1 ? 64 : left.elements();
      if (basis) {
        append(all, rank, codec::kLeftFactors + matrix.part, left, {0, cut}, codec::ValueKind::q4);
        if (cut == left.elements()) continue;
        append(all, rank, codec::kLeftFactors + matrix.part, left, {cut, left.elements() - cut},
               codec::ValueKind::q4);
        continue;
      }
      append(all, rank, codec::kRightFactors + matrix.part, right, {0, right.elements()},
             codec::ValueKind::q8);
      if (matrix.part != 1) continue;
      append(all, rank, 0, kFactoredShape, {0, 1024}, codec::ValueKind::q1);
      append(all, rank, 0, kFactoredShape, {1024, 976}, codec::ValueKind::q1);
    }
    if (!basis) append(all, rank, 1, kBesideShape, {0, 100}, codec::ValueKind::f32);
    return all;
  }

  // What all records of a range give, in the order of the messages.
  std::vector<float> sum(uint32_t tensor, codec::Shape shape, codec::Range range) {
    std::vector<codec::RecordView> records;
    for (const auto& one : messages) {
      auto parsed = codec::parse_all(one);
      EXPECT_TRUE(parsed.ok());
      for (codec::RecordView& record : parsed.value()) {
        const bool of = record.header().tensor == tensor && record.header().first == range.first;
        if (of) records.push_back(std::move(record));
      }
    }
    std::vector<float> out(range.elements);
    const float weight = kind_ == PartKind::averages ? 1.0f : codec::mean_weight(ranks_);
    const auto added =
        codec::accumulate(records, tensor, shape, range.first, out, weight, workspace_);
    EXPECT_TRUE(added.ok()) << added.error().to_string();
    return out;
  }

  void add_average(const Matrix& matrix) {
    codec::Factors factors(kFactoredShape, matrix.range, seed_);
    ASSERT_TRUE(factors.set_rank(matrix.rank).ok());
    const codec::Shape left{matrix.rank, factors.rows()};
    const codec::Shape right{matrix.rank, factors.columns()};
    const uint64_t cut = matrix.part == 1 ? 64 : left.elements();
    std::vector<float> columns = sum(codec::kLeftFactors + matrix.part, left, {0, cut});
    if (cut < left.elements()) {
      const auto more = sum(codec::kLeftFactors + matrix.part, left, {cut, left.elements() - cut});
      columns.insert(columns.end(), more.begin(), more.end());
    }
    factors.set_basis(columns);
    const auto out = std::span(averages[0]).subspan(matrix.range.first, matrix.range.elements);
    if (matrix.part == 1) {
      std::ranges::copy(sum(0, kFactoredShape, {0, 1024}), out.begin());
      std::ranges::copy(sum(0, kFactoredShape, {1024, 976}), out.begin() + 1024);
    }
    const auto coefficients = sum(codec::kRightFactors + matrix.part, right, {0, right.elements()});
    factors.add(coefficients, 1.0f, matrix.range, out, workspace_);
  }

  const uint64_t seed_;
  const PartKind kind_;
  const uint32_t ranks_;
  codec::Workspace workspace_;
};

}  // namespace scant::journal::testing
