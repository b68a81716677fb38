// A training of numbers for the crash simulator: its state is one number that each step changes, an
// entry says which state it was computed in, and a base which state it holds. So whatever is found
// on a disk can be held against what happened. Drives the journal as the writers do, on one thread.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "journal/folder.h"
#include "journal/log.h"
#include "journal/testing/disk_simulated.h"

namespace scant::journal::testing {

// What happened, whoever crashed.
struct Truth {
  std::vector<uint64_t> states;  // by step, of the past that counts
  bool has_base = false;         // one was acknowledged
  uint64_t durable = 0;          // step that was acknowledged
  uint64_t appended = 0;         // step that was handed to the operating system
  uint64_t lives = 0;            // processes so far
};

enum class Restart : uint8_t { power, killed };

// Empty: what is found on the disk is right; else what is wrong.
std::string verify(Disk& disk, const Truth& truth, Restart restart, bool problems = false);

// One process.
class Training {
 public:
  Training(Disk& disk, Truth& truth) : disk_(disk), truth_(truth), life_(++truth.lives) {}

  // Goes on from the newest state, or with `exact` from a base alone, whose later steps are taken
  // back: the `exact`-th newest, counted from 1.
  Result<void> begin(size_t exact = 0);
  // e: a step's entry; s: sync; b: begins a base; z: gives it its name.
  Result<void> play(const std::string& script);

 private:
  Result<void> begin_empty(const Contents& contents);
  Result<void> take_back(const Contents& contents, const State& state, uint64_t sequence);
  Result<void> step();
  Result<void> sync();
  Result<void> begin_base();
  Result<void> seal();
  [[nodiscard]] uint64_t now() const { return truth_.states.size() - 1; }  // step

  Disk& disk_;
  Truth& truth_;
  uint64_t life_;
  Identity identity_;
  uint32_t timeline_ = 0;
  std::optional<LogWriter> log_;
  std::optional<BaseIndex> begun_;
  uint64_t synced_ = 0;  // step
  bool looked_ = false;
  std::vector<uint64_t> kept_;
};

}  // namespace scant::journal::testing
