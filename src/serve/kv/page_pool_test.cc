// Pages are handed out once, shared by texts that begin alike, and forgotten in the order of use.
#include "serve/kv/page_pool.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <numeric>

namespace scant::serve {
namespace {

std::vector<uint32_t> text(uint32_t first) {
  std::vector<uint32_t> tokens(kPageTokens);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

TEST(PagePool, HandsOutEachPageOnce) {
  PagePool pool(3);
  std::vector<uint32_t> pages;
  while (const auto page = pool.take()) pages.push_back(*page);
  std::ranges::sort(pages);
  EXPECT_EQ(pages, (std::vector<uint32_t>{0, 1, 2}));
  EXPECT_EQ(pool.free(), 0u);
  pool.release(1);
  EXPECT_EQ(pool.take(), 1u);
}

TEST(PagePool, AKnownPageIsFoundByItsTextAndWhatIsBeforeIt) {
  PagePool pool(4);
  const uint32_t one = *pool.take();
  const uint32_t two = *pool.take();
  const PagePool::Prefix first = pool.remember(PagePool::kNothing, one, text(0));
  const PagePool::Prefix second = pool.remember(first, two, text(0));  // the same tokens again
  EXPECT_NE(first, second);
  EXPECT_EQ(pool.find(PagePool::kNothing, text(0))->page, one);
  EXPECT_EQ(pool.find(first, text(0))->page, two);
  EXPECT_FALSE(pool.find(second, text(0)));
  EXPECT_FALSE(pool.find(PagePool::kNothing, text(1)));
  EXPECT_FALSE(pool.writable(one));
}

TEST(PagePool, ASecondPageWithTheSameTextStaysUnknown) {
  PagePool pool(2);
  const uint32_t one = *pool.take();
  const uint32_t two = *pool.take();
  const PagePool::Prefix first = pool.remember(PagePool::kNothing, one, text(0));
  EXPECT_EQ(pool.remember(PagePool::kNothing, two, text(0)), first);
  EXPECT_TRUE(pool.writable(two));
  pool.release(two);
  EXPECT_EQ(pool.find(PagePool::kNothing, text(0))->page, one);
}

TEST(PagePool, KeptPagesAreForgottenInTheOrderOfTheirLastUse) {
  PagePool pool(3);
  std::vector<uint32_t> pages;
  for (uint32_t i = 0; i < 3; ++i) {
    pages.push_back(*pool.take());
    pool.remember(PagePool::kNothing, pages[i], text(100 * i));
  }
  for (const uint32_t i : {1u, 0u, 2u}) pool.release(pages[i]);
  EXPECT_EQ(pool.free(), 3u);
  pool.hold(pages[1]);  // used again: now the last
  pool.release(pages[1]);
  EXPECT_EQ(pool.take(), pages[0]);
  EXPECT_FALSE(pool.find(PagePool::kNothing, text(0)));
  EXPECT_EQ(pool.take(), pages[2]);
  EXPECT_TRUE(pool.find(PagePool::kNothing, text(100)));
  pool.hold(pages[1]);
  EXPECT_FALSE(pool.take());
  pool.release(pages[1]);
  EXPECT_EQ(pool.take(), pages[1]);
}

TEST(PagePool, WhatFollowsAForgottenPageIsNeverFound) {
  PagePool pool(2);
  const uint32_t one = *pool.take();
  const uint32_t two = *pool.take();
  const PagePool::Prefix first = pool.remember(PagePool::kNothing, one, text(0));
  pool.remember(first, two, text(16));
  pool.release(one);
  EXPECT_EQ(pool.take(), one);
  const PagePool::Prefix again = pool.remember(PagePool::kNothing, one, text(0));
  EXPECT_NE(again, first);
  EXPECT_FALSE(pool.find(again, text(16)));
}

TEST(PagePool, APartOfAPageIsFoundByItsCommonTokens) {
  PagePool pool(2);
  const uint32_t one = *pool.take();
  const uint32_t two = *pool.take();
  std::vector<uint32_t> other = text(0);
  other[9] = 77;
  pool.remember(PagePool::kNothing, one, text(0));
  pool.remember(PagePool::kNothing, two, other);
  std::vector<uint32_t> wanted(other.begin(), other.begin() + 12);
  wanted[11] = 5;
  const auto part = pool.find_part(PagePool::kNothing, wanted);
  ASSERT_TRUE(part);
  EXPECT_EQ(part->page, two);
  EXPECT_EQ(part->tokens, 11u);
  EXPECT_FALSE(pool.find_part(PagePool::kNothing, text(1)));
  EXPECT_FALSE(pool.find_part(PagePool::kNothing, {}));
}

}  // namespace
}  // namespace scant::serve
