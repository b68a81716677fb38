// Test support: an exercise on a fake network, its ranks' outcomes, and what every test expects of
// them.
#pragma once

#include <deque>
#include <gtest/gtest.h>

#include "collective/testing/exercise.h"
#include "collective/testing/fake_network.h"

namespace scant::collective {

struct Outcome {
  bool done = false;
  Result<void> result;
  Rank source = kNoRank;
};

// One exercise on a network: submits rank by rank and keeps the outcomes.
class ExerciseRun {
 public:
  ExerciseRun(FakeNetwork& network, const ExerciseSpec& spec, GroupId group,
              std::vector<Rank> members)
      : network_(network),
        exercise_(spec),
        group_(group),
        members_(std::move(members)),
        outcomes_(members_.size()) {}

  void submit(size_t index, Duration timeout = {}) {
    Call call = exercise_.call(static_cast<Rank>(index));
    call.group = group_;
    call.timeout = timeout;
    Outcome& outcome = outcomes_[index];
    network_.engine(members_[index])
        .submit(network_.now(), std::move(call),
                [this, &outcome, index](const Result<void>& result, Rank) {
                  EXPECT_FALSE(outcome.done);
                  outcome.done = true;
                  outcome.result = result;
                  if (result) wrong_ += exercise_.verify(static_cast<Rank>(index));
                  exercise_.drop(static_cast<Rank>(index));
                });
  }
  [[nodiscard]] Outcome& outcome(size_t index) { return outcomes_[index]; }
  [[nodiscard]] size_t size() const { return members_.size(); }
  [[nodiscard]] const std::vector<Rank>& members() const { return members_; }
  [[nodiscard]] std::string wrong() const {
    return wrong_.empty() ? "" : exercise_.spec().to_string() + ": " + wrong_;
  }
  [[nodiscard]] const ExerciseSpec& spec() const { return exercise_.spec(); }

 private:
  FakeNetwork& network_;
  Exercise exercise_;
  GroupId group_;
  std::vector<Rank> members_;
  std::vector<Outcome> outcomes_;
  std::string wrong_;
};

inline std::vector<Rank> everyone(int size) {
  std::vector<Rank> members;
  for (Rank rank = 0; rank < size; ++rank) members.push_back(rank);
  return members;
}

inline void expect_clean(FakeNetwork& network) {
  for (Rank rank = 0; rank < network.size(); ++rank) {
    if (network.dead(rank)) continue;
    EXPECT_EQ(network.engine(rank).operations_in_flight(), 0U) << "rank " << rank;
    EXPECT_EQ(network.engine(rank).buffers_out(), 0U) << "rank " << rank;
  }
}

inline EngineOptions small_segments() {
  EngineOptions options;
  options.segment_bytes = 1000;
  options.eager_bytes = 2000;
  options.eager_window_bytes = 8000;
  return options;
}

// Submits every run on every rank, each rank in the same order but at its own random times.
inline void submit_all(FakeNetwork& network, std::deque<ExerciseRun>& runs) {
  std::vector<size_t> next(static_cast<size_t>(network.size()), 0);
  size_t left = runs.size() * next.size();
  while (left > 0) {
    const auto rank = network.rng().below(next.size());
    if (next[rank] < runs.size()) {
      ExerciseRun& run = runs[next[rank]++];
      --left;
      for (size_t i = 0; i < run.size(); ++i) {
        if (run.members()[i] == static_cast<Rank>(rank)) run.submit(i);
      }
    }
    for (uint64_t steps = network.rng().below(12); steps > 0; --steps) network.step();
  }
}

inline void expect_all_well(std::deque<ExerciseRun>& runs) {
  for (ExerciseRun& run : runs) {
    EXPECT_EQ(run.wrong(), "");
    for (size_t i = 0; i < run.size(); ++i) {
      ASSERT_TRUE(run.outcome(i).done) << run.spec().to_string() << " member " << i;
      EXPECT_TRUE(run.outcome(i).result.ok())
          << run.spec().to_string() << ": " << run.outcome(i).result.error().to_string();
    }
  }
}

}  // namespace scant::collective
