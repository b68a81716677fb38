// Credit arithmetic of one pair, modulo 2^32: how many eager bytes may still go to a peer, and how
// many of its eager bytes this rank has used up and must tell it. Rules: docs/engine.md, Credit.
#pragma once

#include <cstdint>

#include "net/frame.h"

namespace scant::collective {

// What an eager frame takes from the window: a flood of empty frames is bounded too.
[[nodiscard]] inline uint32_t charge_of(uint32_t payload_bytes) {
  return payload_bytes + static_cast<uint32_t>(net::kFrameHeaderBytes);
}

class Credit {
 public:
  explicit Credit(uint32_t window_bytes) : window_(window_bytes) {}

  // Sending side.
  [[nodiscard]] bool fits(uint32_t charge) const { return sent_ - returned_ + charge <= window_; }
  void sent(uint32_t charge) { sent_ += charge; }
  // A frame told `total` consumed bytes. Frames overtake one another: only what is newer counts,
  // and a total beyond what was sent is ignored. True when the window opened.
  bool returned(uint32_t total) {
    const uint32_t more = total - returned_;
    if (more == 0 || more > sent_ - returned_) return false;
    returned_ = total;
    return true;
  }
  [[nodiscard]] uint32_t outstanding() const { return sent_ - returned_; }

  // Receiving side. accepts(): the sender keeps within its window.
  [[nodiscard]] bool accepts(uint32_t charge) const { return held_ + charge <= window_; }
  void held(uint32_t charge) { held_ += charge; }
  void consumed(uint32_t charge) {
    held_ -= charge;
    consumed_ += charge;
  }
  [[nodiscard]] bool should_tell() const { return consumed_ - told_ > window_ / 2; }
  // The value for the next frame's credit field.
  uint32_t tell() { return told_ = consumed_; }
  [[nodiscard]] uint32_t held_bytes() const { return held_; }

 private:
  uint32_t window_;
  uint32_t sent_ = 0;
  uint32_t returned_ = 0;
  uint32_t held_ = 0;
  uint32_t consumed_ = 0;
  uint32_t told_ = 0;
};

}  // namespace scant::collective
