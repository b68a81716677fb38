// Matching: the key of an operation, and what was heard of operations that have not begun here.
// Payloads are held within the credit window of their sender (docs/engine.md, Matching). Owner: the
// engine's thread.
#pragma once

#include <optional>
#include <unordered_map>
#include <vector>

#include "base/buffer.h"
#include "net/frame.h"
#include "scant/base/result.h"

namespace scant::collective {

struct OpKey {
  GroupId group = kWorldGroup;
  uint32_t sequence = 0;
  uint32_t tag = 0;
  Rank station = kNoRank;  // the other side of a send or receive; kNoRank for collectives
  bool sending = false;    // this rank's side of a send or receive
  friend bool operator==(const OpKey&, const OpKey&) = default;
};

struct OpKeyHash {
  size_t operator()(const OpKey& key) const noexcept {
    uint64_t h = uint64_t{key.group} << 32 | key.sequence;
    h = (h ^ (uint64_t{key.tag} << 17 | static_cast<uint32_t>(key.station) << 1 |
              static_cast<uint64_t>(key.sending))) *
        0x9E3779B97F4A7C15ULL;
    return static_cast<size_t>(h ^ h >> 32);
  }
};

struct HeldFrame {
  Rank station = kNoRank;
  net::FrameHeader header;
  base::Buffer payload;  // empty when header.length is 0
  bool lost = false;     // there was no memory for the payload
};

// Everything heard of one operation before it began.
struct Early {
  uint64_t first_heard = 0;        // order of arrival, for receives from any source
  std::vector<HeldFrame> frames;   // data, request and ready, in order of arrival
  std::optional<Error> cancelled;  // the first cancel
};

class EarlyTable {
 public:
  Early& at(const OpKey& key) {
    Early& early = table_[key];
    if (early.first_heard == 0) early.first_heard = ++heard_;
    return early;
  }
  [[nodiscard]] const Early* find(const OpKey& key) const {
    const auto found = table_.find(key);
    return found == table_.end() ? nullptr : &found->second;
  }
  std::optional<Early> take(const OpKey& key) {
    if (table_.empty()) return std::nullopt;
    const auto found = table_.find(key);
    if (found == table_.end()) return std::nullopt;
    std::optional<Early> early(std::move(found->second));
    table_.erase(found);
    return early;
  }
  // Both: the caller returns buffers and charges.
  std::vector<Early> take_group(GroupId group) {
    std::vector<Early> taken;
    for (auto at = table_.begin(); at != table_.end();) {
      if (at->first.group == group) {
        taken.push_back(std::move(at->second));
        at = table_.erase(at);
      } else {
        ++at;
      }
    }
    return taken;
  }
  std::vector<Early> take_all() {
    std::vector<Early> all;
    for (auto& [key, early] : table_) all.push_back(std::move(early));
    table_.clear();
    return all;
  }
  [[nodiscard]] size_t size() const { return table_.size(); }

 private:
  std::unordered_map<OpKey, Early, OpKeyHash> table_;
  uint64_t heard_ = 0;
};

}  // namespace scant::collective
