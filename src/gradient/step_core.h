// What one rank does with the buffers of one step, in which order: the state table of
// docs/gradients.md, "Order of operations". A protocol core: no thread, clock or memory of its own.
// The owner asks next() for things to do and reports what has happened.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "gradient/fusion_plan.h"

namespace scant::gradient {

// What of a buffer travels: the left factors of its matrix parts, from which all ranks make a
// basis, and then everything else. Buffers without matrix parts have the second stage alone.
enum class Stage : uint8_t { basis, values };
inline constexpr size_t kStageCount = 2;

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
    Stage stage = Stage::values;
    friend bool operator==(const Job&, const Job&) = default;
  };

  // Reversed buffers that are under way at a time: what is urgent waits for no more than this.
  static constexpr uint32_t kCredit = 2;

  // The plan is valid and outlives the steps that use it. A matrix part is encoded twice: its left
  // factor, and the rest once the basis is there.
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
  // The turn from which on no leg of any buffer has begun; the number of buffers when all have.
  [[nodiscard]] uint32_t next_first() const { return begun_; }

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
    Stage stage = Stage::values;
    State state = State::gathering;
    uint32_t parts_left = 0;          // not yet encoded, in this stage
    std::vector<uint32_t> to_encode;  // ready; taken from the back
    std::vector<uint32_t> matrices;   // matrix parts, the last one first
  };
  struct Turns {
    uint32_t first = 0;   // of the buffer whose first leg is the next to begin
    uint32_t second = 0;  // the same of second legs; of split buffers only
  };

  [[nodiscard]] bool may_begin(Stage stage);
  [[nodiscard]] std::optional<Job> next_leg(Stage stage);
  [[nodiscard]] bool takes_part(uint32_t buffer, Stage stage) const {
    return stage == Stage::values || !buffers_[buffer].matrices.empty();
  }
  [[nodiscard]] bool is_at(uint32_t buffer, Stage stage, State state) const {
    return buffers_[buffer].stage == stage && buffers_[buffer].state == state;
  }
  static void begin_buffer(const BufferPlan& plan, Buffer& buffer);
  [[nodiscard]] static bool is_matrix(const Buffer& buffer, uint32_t part);
  void finish_stage(uint32_t buffer);
  [[nodiscard]] bool is_reversed(uint32_t buffer) const {
    return buffer >= buffers_.size() - plan_->reversed;
  }
  [[nodiscard]] std::optional<uint32_t> earliest(State state) const;

  const FusionPlan* plan_ = nullptr;
  std::vector<Buffer> buffers_;
  std::vector<uint32_t> turns_;      // buffers, in the order of their turns
  std::vector<uint32_t> buffer_of_;  // by part
  std::vector<bool> ready_;          // by part
  Turns next_[kStageCount];          // by stage
  uint32_t reversed_under_way_ = 0;
  uint32_t buffers_left_ = 0;
  uint32_t begun_ = 0;
  bool held_ = false;
};

}  // namespace scant::gradient
