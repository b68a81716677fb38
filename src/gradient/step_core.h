// What one rank does with the buffers of one step, in which order: the state table of
// docs/gradients.md, "Order of operations". A protocol core: no thread, clock or memory of its own.
// The owner asks next() for things to do and reports what has happened.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "gradient/fusion_plan.h"

namespace scant::gradient {

class StepCore {
 public:
  enum class Kind : uint8_t {
    begin_first,   // submit the first leg of a buffer, after those of all whose turn is before
    begin_second,  // submit the second leg, after those of all split buffers whose turn is before
    add,           // add the records of all ranks; split: and encode the averages
    encode,        // a part: into records; all_reduce: nothing but the residual, into the arena
    decode,        // the owners' records, into the arena
  };
  struct Job {
    Kind kind = Kind::encode;
    uint32_t buffer = 0;
    uint32_t part = 0;  // encode
    friend bool operator==(const Job&, const Job&) = default;
  };

  // Reversed buffers that are under way at a time: what is urgent waits for no more than this.
  static constexpr uint32_t kCredit = 2;

  // The plan is valid and outlives the steps that use it.
  void begin(const FusionPlan& plan);

  void part_ready(uint32_t part);
  // The next thing to do, if there is one; it is under way until finished() is told. Legs go before
  // work.
  [[nodiscard]] std::optional<Job> next();
  // The same of legs alone, and of work alone.
  [[nodiscard]] std::optional<Job> next_leg();
  [[nodiscard]] std::optional<Job> next_work();
  // begin_first, begin_second: the operation has ended. The others: the work is done.
  void finished(const Job& job);

  // Until release() no first leg begins.
  void hold() { held_ = true; }
  void release() { held_ = false; }
  // The turn whose first leg is the next to begin; the number of buffers when all have.
  [[nodiscard]] uint32_t next_first() const { return next_first_; }

  [[nodiscard]] bool done() const { return buffers_left_ == 0; }
  [[nodiscard]] bool is_done(uint32_t buffer) const {
    return buffers_[buffer].state == State::done;
  }
  [[nodiscard]] bool is_ready(uint32_t part) const { return ready_[part]; }
  [[nodiscard]] uint32_t buffer_of(uint32_t part) const { return buffer_of_[part]; }

 private:
  enum class State : uint8_t {
    gathering,
    waiting,
    first_leg,
    to_add,
    adding,
    returning,
    second_leg,
    to_decode,
    decoding,
    done,
  };
  struct Buffer {
    State state = State::gathering;
    uint32_t parts_left = 0;          // not yet encoded
    std::vector<uint32_t> to_encode;  // ready; taken from the back
  };

  [[nodiscard]] bool may_begin() const;
  [[nodiscard]] bool is_reversed(uint32_t buffer) const {
    return buffer >= buffers_.size() - plan_->reversed;
  }
  [[nodiscard]] std::optional<uint32_t> earliest(State state) const;
  void finish_buffer(uint32_t buffer);

  const FusionPlan* plan_ = nullptr;
  std::vector<Buffer> buffers_;
  std::vector<uint32_t> turns_;      // buffers, in the order of their turns
  std::vector<uint32_t> buffer_of_;  // by part
  std::vector<bool> ready_;          // by part
  uint32_t next_first_ = 0;          // turn of the buffer whose first leg is the next to begin
  uint32_t next_second_ = 0;         // the same of second legs; of split buffers only
  uint32_t reversed_under_way_ = 0;
  uint32_t buffers_left_ = 0;
  bool held_ = false;
};

}  // namespace scant::gradient
