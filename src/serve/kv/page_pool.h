// Which pages of keys and values are in use, by how many sequences, and which hold the beginning of
// a text that may come again. Numbers alone: the memory is the decoder's. docs/serve.md, "Pages".
// One owner thread.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "serve/kv/page.h"

namespace scant::serve {

class PagePool {
 public:
  // A known beginning of a text. Texts are known by number, so that two that differ are never
  // taken for one another, whatever their hashes are.
  using Prefix = uint64_t;
  static constexpr Prefix kNothing = 0;  // the empty text

  explicit PagePool(uint32_t pages);

  [[nodiscard]] uint32_t pages() const { return static_cast<uint32_t>(pages_.size()); }
  // Pages that take() could hand out now.
  [[nodiscard]] uint32_t free() const;
  [[nodiscard]] uint32_t held() const { return pages() - free(); }

  // A page with one holder, whose content is nobody's. If none is free, the kept page that nobody
  // has used for the longest time is forgotten. Nothing: all pages are held.
  std::optional<uint32_t> take();
  void hold(uint32_t page);
  void release(uint32_t page);
  // Whether it may be written: one holder, and no text is known by it.
  [[nodiscard]] bool writable(uint32_t page) const;

  // A page that continues `before` by 16 tokens.
  struct Next {
    uint32_t page = 0;
    Prefix prefix = kNothing;  // the text up to its end
  };
  [[nodiscard]] std::optional<Next> find(Prefix before, std::span<const uint32_t> tokens) const;
  // The page after `before` that has the most tokens in common with `tokens`, which are fewer than
  // 16 or differ: what a new page can be copied from. Nothing: none has any.
  struct Part {
    uint32_t page = 0;
    uint32_t tokens = 0;
  };
  [[nodiscard]] std::optional<Part> find_part(Prefix before,
                                              std::span<const uint32_t> tokens) const;
  // A held page is full, and from now on does not change. Returns the text up to its end. If
  // another page is known with the same text, that one stays the known one.
  Prefix remember(Prefix before, uint32_t page, std::span<const uint32_t> tokens);

 private:
  using Tokens = std::array<uint32_t, kPageTokens>;
  struct Page {
    uint32_t holders = 0;
    bool known = false;
    Prefix before = kNothing;
    Prefix prefix = kNothing;
    Tokens tokens{};
    std::list<uint32_t>::iterator kept{};  // its place in kept_, if known and nobody holds it
  };
  void forget(uint32_t page);

  std::vector<Page> pages_;
  std::vector<uint32_t> free_;
  std::list<uint32_t> kept_;                                 // the longest unused first
  std::unordered_map<Prefix, std::vector<uint32_t>> after_;  // known pages by what is before
  Prefix next_prefix_ = kNothing + 1;
};

}  // namespace scant::serve
