// Which parts an entry gets from averages of each kind, together and apart.
#include "journal/averages.h"

#include <gtest/gtest.h>

namespace scant::journal {
namespace {

using From = AveragedTogether::From;

const std::vector<std::byte> kTensor(64 * sizeof(float), std::byte{7});
const std::vector<std::byte> kMessage(100, std::byte{9});

bool lies_at(Bytes bytes, Bytes whole, size_t first, size_t size) {
  return bytes.data() == whole.data() + first && bytes.size() == size;
}

TEST(Averages, MessagesOfOwnersAndOfRanksBecomePartsOfTheirKind) {
  const Bytes message = kMessage;
  const std::vector<AveragedTogether> averages = {
      {.from = From::ranks, .messages = {message.first(10), message.first(20)}},
      {.from = From::owners, .messages = {message.first(30)}}};
  const auto parts = parts_of(averages, {});
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[0].kind, PartKind::gathered);
  EXPECT_EQ(parts[0].where, 0u);
  EXPECT_TRUE(lies_at(parts[0].bytes, message, 0, 10));
  EXPECT_EQ(parts[1].kind, PartKind::gathered);
  EXPECT_TRUE(lies_at(parts[1].bytes, message, 0, 20));
  EXPECT_EQ(parts[2].kind, PartKind::averages);
  EXPECT_EQ(parts[2].where, 1u);
  EXPECT_TRUE(lies_at(parts[2].bytes, message, 0, 30));
}

TEST(Averages, MatricesStandBeforeTheirBuffersMessages) {
  const Matrix matrix{.part = 5, .tensor = 1, .rank = 2, .columns = 8, .range = {0, 64}};
  const std::vector<AveragedTogether> averages = {
      {.from = From::ranks, .messages = {Bytes(kMessage)}},
      {.from = From::owners, .messages = {Bytes(kMessage)}, .matrices = {matrix}}};
  const auto parts = parts_of(averages, {});
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[1].kind, PartKind::matrices);
  EXPECT_EQ(parts[1].where, 1u);
  EXPECT_EQ(parts[1].matrices, std::vector<Matrix>{matrix});
  EXPECT_EQ(parts[1].size(), kMatrixBytes);
  EXPECT_EQ(parts[2].kind, PartKind::averages);
  EXPECT_EQ(parts[2].where, 1u);
}

TEST(Averages, WhatWasAveragedInPlaceGoesAsItIs) {
  const std::vector<Bytes> gradients = {Bytes{}, Bytes(kTensor)};
  const std::vector<AveragedTogether> averages = {
      {.places = {{.tensor = 1, .range = {8, 16}}, {.tensor = 1, .range = {24, 40}}}}};
  const auto parts = parts_of(averages, gradients);
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].kind, PartKind::raw);
  EXPECT_EQ(parts[0].where, 1u);
  EXPECT_EQ(parts[0].first, 32u);
  EXPECT_TRUE(lies_at(parts[0].bytes, kTensor, 32, 64));
  EXPECT_EQ(parts[1].first, 96u);
  EXPECT_TRUE(lies_at(parts[1].bytes, kTensor, 96, 160));
}

TEST(Averages, ATensorWithoutAGradientHasNoPart) {
  const std::vector<Bytes> gradients = {Bytes{}, Bytes(kTensor)};
  const std::vector<AveragedTogether> averages = {
      {.places = {{.tensor = 0, .range = {0, 64}}, {.tensor = 1, .range = {0, 65}}}},
      {.places = {{.tensor = 1, .range = {0, 64}}}}};
  const auto parts = parts_of(averages, gradients);
  ASSERT_EQ(parts.size(), 1u);
  EXPECT_EQ(parts[0].where, 1u);
}

}  // namespace
}  // namespace scant::journal
