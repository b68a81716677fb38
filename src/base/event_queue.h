// Virtual time: what is to happen, in the order of its times, and a clock that stands at the last
// that did. Ties keep the order in which they were scheduled, so that a run is a function of its
// inputs. Simulators take events out as fast as they can; a loop over real time uses it for timers.
// One owner thread. At most 2^32 events wait at once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"

namespace scant::base {

// Names an event until it has happened or was cancelled, and nothing afterwards.
struct EventId {
  uint32_t slot = UINT32_MAX;
  uint32_t generation = 0;
  friend bool operator==(const EventId&, const EventId&) = default;
};

template <typename T>
class EventQueue final : public Clock {
 public:
  explicit EventQueue(Time start = Time{}) : now_(start) {}

  [[nodiscard]] Time now() const override { return now_; }
  // What should have happened earlier happens now.
  EventId schedule(Time at, T what) {
    const uint32_t slot = take_slot(std::move(what));
    heap_.push_back({std::max(at, now_), next_order_++, slot, slots_[slot].generation});
    std::push_heap(heap_.begin(), heap_.end(), later);
    return {slot, slots_[slot].generation};
  }
  // False: it has happened, or was cancelled before.
  bool cancel(EventId id) {
    if (id.slot >= slots_.size()) return false;
    if (slots_[id.slot].generation != id.generation || !slots_[id.slot].what) return false;
    give_slot(id.slot);
    drop_cancelled();
    return true;
  }
  // Of the next event; kNever when none waits.
  [[nodiscard]] Time next_at() const { return heap_.empty() ? kNever : heap_.front().at; }
  [[nodiscard]] size_t size() const { return slots_.size() - free_.size(); }
  [[nodiscard]] bool empty() const { return size() == 0; }
  // The next event, if it is due at `limit` or before; the clock then stands at its time.
  std::optional<T> pop(Time limit = kNever) {
    if (heap_.empty() || heap_.front().at > limit) return std::nullopt;
    now_ = std::max(now_, heap_.front().at);
    const uint32_t slot = heap_.front().slot;
    std::optional<T> what = std::move(slots_[slot].what);
    give_slot(slot);
    drop_cancelled();
    return what;
  }
  // The clock moves to `to`, if that is later; nothing may be due before it.
  void advance(Time to) {
    SCANT_CHECK(next_at() >= to || to <= now_, "virtual time may not pass an event");
    now_ = std::max(now_, to);
  }

 private:
  struct Entry {
    Time at;
    uint64_t order = 0;
    uint32_t slot = 0;
    uint32_t generation = 0;
  };
  struct Slot {
    std::optional<T> what;
    uint32_t generation = 0;
  };
  static bool later(const Entry& x, const Entry& y) {
    return x.at != y.at ? x.at > y.at : x.order > y.order;
  }

  uint32_t take_slot(T what) {
    if (free_.empty()) {
      SCANT_CHECK(slots_.size() < UINT32_MAX, "too many events wait");
      free_.push_back(static_cast<uint32_t>(slots_.size()));
      slots_.emplace_back();
    }
    const uint32_t slot = free_.back();
    free_.pop_back();
    slots_[slot].what.emplace(std::move(what));
    return slot;
  }
  void give_slot(uint32_t slot) {
    slots_[slot].what.reset();
    ++slots_[slot].generation;
    free_.push_back(slot);
  }
  // The first in the heap is one that waits.
  void drop_cancelled() {
    while (!heap_.empty() && slots_[heap_.front().slot].generation != heap_.front().generation) {
      std::pop_heap(heap_.begin(), heap_.end(), later);
      heap_.pop_back();
    }
  }

  Time now_;
  uint64_t next_order_ = 0;
  std::vector<Entry> heap_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
};

}  // namespace scant::base
