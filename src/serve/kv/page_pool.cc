#include "serve/kv/page_pool.h"

#include <algorithm>

#include "base/check.h"

namespace scant::serve {

PagePool::PagePool(uint32_t pages) : pages_(pages), free_(pages) {
  for (uint32_t i = 0; i < pages; ++i) free_[i] = pages - 1 - i;
}

uint32_t PagePool::free() const { return static_cast<uint32_t>(free_.size() + kept_.size()); }

std::optional<uint32_t> PagePool::take() {
  if (free_.empty() && !kept_.empty()) forget(kept_.front());
  if (free_.empty()) return std::nullopt;
  const uint32_t page = free_.back();
  free_.pop_back();
  pages_[page].holders = 1;
  return page;
}

void PagePool::hold(uint32_t page) {
  Page& one = pages_[page];
  SCANT_CHECK(one.holders > 0 || one.known, "a page that holds nothing cannot be shared");
  if (one.holders++ == 0) kept_.erase(one.kept);
}

void PagePool::release(uint32_t page) {
  Page& one = pages_[page];
  SCANT_CHECK(one.holders > 0, "a page is released more often than held");
  if (--one.holders > 0) return;
  if (one.known) {
    one.kept = kept_.insert(kept_.end(), page);
  } else {
    free_.push_back(page);
  }
}

bool PagePool::writable(uint32_t page) const {
  return pages_[page].holders == 1 && !pages_[page].known;
}

std::optional<PagePool::Next> PagePool::find(Prefix before,
                                             std::span<const uint32_t> tokens) const {
  const auto after = after_.find(before);
  if (after == after_.end()) return std::nullopt;
  for (const uint32_t page : after->second) {
    if (std::ranges::equal(pages_[page].tokens, tokens)) return Next{page, pages_[page].prefix};
  }
  return std::nullopt;
}

std::optional<PagePool::Part> PagePool::find_part(Prefix before,
                                                  std::span<const uint32_t> tokens) const {
  const auto after = after_.find(before);
  if (after == after_.end()) return std::nullopt;
  Part best;
  for (const uint32_t page : after->second) {
    const auto differ = std::ranges::mismatch(pages_[page].tokens, tokens);
    const auto common = static_cast<uint32_t>(differ.in2 - tokens.begin());
    if (common > best.tokens) best = {page, common};
  }
  return best.tokens > 0 ? std::optional(best) : std::nullopt;
}

PagePool::Prefix PagePool::remember(Prefix before, uint32_t page,
                                    std::span<const uint32_t> tokens) {
  SCANT_CHECK(tokens.size() == kPageTokens && writable(page));
  if (const auto known = find(before, tokens)) return known->prefix;
  Page& one = pages_[page];
  std::ranges::copy(tokens, one.tokens.begin());
  one.known = true;
  one.before = before;
  one.prefix = next_prefix_++;
  after_[before].push_back(page);
  return one.prefix;
}

// Pages that continue it stay until their turn comes: nothing finds them any more, since the number
// of the text before them is never given again.
void PagePool::forget(uint32_t page) {
  Page& one = pages_[page];
  kept_.erase(one.kept);
  const auto after = after_.find(one.before);
  std::erase(after->second, page);
  if (after->second.empty()) after_.erase(after);
  one = {};
  free_.push_back(page);
}

}  // namespace scant::serve
