#include "plan/tuner.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <utility>

#include "base/check.h"
#include "base/guard.h"

namespace scant::plan {
namespace {

constexpr uint32_t kMeasuringSteps = 5;
constexpr uint32_t kMeasuringSkipped = 2;
// Of these the first that a step's transfer takes no longer than so many seconds with; the last in
// any case.
struct Measuring {
  codec::ValueKind values;
  double keeps;  // on both legs together, of gradients that are not far from Gaussian
};
constexpr std::array kMeasuring = {Measuring{codec::ValueKind::bf16, 0.99998},
                                   Measuring{codec::ValueKind::q8, 0.999},
                                   Measuring{codec::ValueKind::q4, 0.95}};
constexpr double kMeasuringMostS = 0.3;
constexpr uint32_t kNewPlanSteps = 8;
constexpr uint32_t kRunningLeast = 16;
constexpr double kRunningMostS = 5;      // so that changes are noticed, unless agreements
constexpr double kAgreementMost = 0.01;  // would take more than this share of the time
constexpr uint32_t kComparingSteps = 4;
constexpr uint32_t kComparingLong = 12;  // where plain costs about as much: there noise decides
constexpr double kAboutAsMuch = 1.1;
constexpr double kAgreementShare = 0.003;  // of the time, for agreements
constexpr double kComparingShare = 0.005;  // of the time, for plain steps
constexpr double kComparable = 0.7;        // plain's worth, from which on it might win: at once
constexpr double kBetter = 1.02;           // in worth, for another plan
constexpr double kKeepsMore = 0.005;
constexpr double kNearly = 0.99;
constexpr double kLoses = 0.98;
constexpr double kChanged = 0.1;
constexpr double kLinkChanged = 0.25;  // soundings are short
constexpr double kSoundingS = 0.005;
constexpr double kSoundingLeast = 64 << 10;  // more than shapers let pass at once
constexpr double kSoundingMost = 4 << 20;    // bytes
constexpr double kEveryAgreements = 8;
constexpr double kCurvesEvery = 4;
constexpr double kFallsTo = 0.5;     // of what was kept
constexpr double kFloorStep = 0.02;  // above what the plan keeps by its curves
constexpr double kOtherRegime = 0.3;
constexpr double kErrorMost = 2;
constexpr double kInStepsMost = 1.1;  // the rest is an error of the prediction as a whole
constexpr int kHalvings = 20;
constexpr double kOptimismMost = 1.1;
constexpr double kForgetOptimism = 0.8;
constexpr double kFactorMost = 100;
constexpr double kRemembered = 24;  // agreements
constexpr size_t kTriedMost = 16;
constexpr double kStepLeastS = 1e-9;  // below, nothing was measured
constexpr double kForgetError = 0.9;
constexpr double kWorkFactorMost = 4;
constexpr size_t kComputeSamples = 6;
constexpr size_t kOthersShown = 12;

double rest_of(const Measurement& one) {
  return std::max(0.0, one.step_s - one.backward_s - one.exposed_s);
}
double compute_of(const Measurement& one) { return one.backward_s + rest_of(one); }
double work_of(const Measurement& one) { return one.encode_s + one.add_s + one.decode_s; }

bool changed(double now, double before, double by = kChanged) {
  return std::abs(now - before) > by * std::max(before, 1e-12);
}

template <typename Get>
double mean_of(const std::vector<Measurement>& all, const Get& get) {
  double sum = 0;
  for (const Measurement& one : all) sum += get(one);
  return sum / static_cast<double>(all.size());
}

void scale(WorkRates& work, double factor) {
  for (auto* kinds : {&work.encode, &work.decode}) {
    for (WorkRates::Kind& kind : *kinds) {
      kind.dense_s *= factor;
      kind.entry_s *= factor;
    }
  }
  work.scan_s *= factor;
  work.clear_s *= factor;
  work.record_s *= factor;
  work.product_s *= factor;
  work.basis_s *= factor;
}

// Every rank looked at slices of its own: their curves' mean.
std::vector<codec::Curve> mean_curves(const std::vector<Measurement>& by_rank) {
  std::vector<codec::Curve> all = by_rank.front().curves;
  for (size_t r = 1; r < by_rank.size(); ++r) {
    const std::vector<codec::Curve>& more = by_rank[r].curves;
    SCANT_CHECK(more.size() == all.size());
    for (size_t p = 0; p < all.size(); ++p) {
      all[p].energy += more[p].energy;
      for (size_t i = 0; i < all[p].points.size() && i < more[p].points.size(); ++i) {
        all[p].points[i].energy += more[p].points[i].energy;
      }
      for (size_t i = 0; i < all[p].held.size(); ++i) all[p].held[i] += more[p].held[i];
    }
  }
  return all;
}

uint32_t comparing_steps(const Findings& found) {
  const bool close = found.plain_s < kAboutAsMuch * found.slowest.step_s;
  return close ? kComparingLong : kComparingSteps;
}

std::string percent_more(const char* what, double now, double before) {
  char text[96];
  std::snprintf(text, sizeof text, "%s changed by %+.0f %%", what, 100 * (now / before - 1));
  return text;
}

}  // namespace

Tuner::Tuner(const gradient::Layout& layout, const WorkRates& work, const TunerOptions& options)
    : layout_(layout),
      given_(options),
      options_{.fidelity_min = options.fidelity_min},
      plan_(first(layout, options).plan) {
  profile_.work = work;
  profile_.ready_s.resize(layout.parts().size());
}

Decision Tuner::first(const gradient::Layout& layout, const TunerOptions& options) {
  if (options.pinned) {
    return {.plan = *options.pinned,
            .steps = kMeasuringSteps,
            .skipped = kMeasuringSkipped,
            .curves = !is_plain(*options.pinned)};
  }
  const bool exact = options.fidelity_min > kMeasuring.front().keeps || layout.ranks() == 1;
  const uint64_t all = layout.elements() * sizeof(float);
  gradient::UniformPlan wanted{.buffer_bytes = all, .first_buffer_bytes = all};
  gradient::FusionPlan plan;
  if (exact) {
    plan = gradient::uniform_plan(wanted, layout);
  } else {
    wanted.path = compressed_path(layout);
    for (const auto& [values, keeps] : kMeasuring) {
      if (keeps < options.fidelity_min) break;
      wanted.point = {1, values};
      plan = gradient::uniform_plan(wanted, layout);
      if (gradient::sent_bytes(plan, layout) <= kMeasuringMostS * options.bytes_per_s) break;
    }
  }
  return {.plan = std::move(plan),
          .steps = kMeasuringSteps,
          .skipped = kMeasuringSkipped,
          .curves = !exact};
}

// findings_.slowest: times of the slowest rank, means of the others' counts.
void Tuner::combine(const std::vector<Measurement>& by_rank) {
  const auto slowest = std::ranges::max_element(by_rank, {}, compute_of);
  Measurement all = *slowest;
  all.step_s = mean_of(by_rank, [](const Measurement& m) { return m.step_s; });
  all.sent_bytes = mean_of(by_rank, [](const Measurement& m) { return m.sent_bytes; });
  all.encode_s = mean_of(by_rank, [](const Measurement& m) { return m.encode_s; });
  all.kept = mean_of(by_rank, [](const Measurement& m) { return m.kept; });
  all.residual = mean_of(by_rank, [](const Measurement& m) { return m.residual; });
  findings_ = Findings{};
  findings_.slowest = std::move(all);
  findings_.slowest_rank = static_cast<Rank>(slowest - by_rank.begin());
  findings_.measuring = phase_ != Phase::running && !given_.pinned;
}

// A part that got no gradient in the step that was looked at keeps its curve from before.
void Tuner::take_curves(std::vector<codec::Curve> fresh) {
  for (size_t p = 0; p < curves_.size(); ++p) {
    if (!(fresh[p].energy > 0)) fresh[p] = std::move(curves_[p]);
  }
  curves_ = std::move(fresh);
}

void Tuner::fit_work(double measured_s) {
  const double predicted = predict(plan_, layout_, profile_).work_s;
  if (!(predicted > 0) || !(measured_s > 0)) return;
  scale(profile_.work, std::clamp(measured_s / predicted, 1 / kWorkFactorMost, kWorkFactorMost));
}

// A rise counts when it was sounded twice: after a pause a shaper lets some bytes pass at once.
void Tuner::take_link(const LinkRate& sounded) {
  const LinkRate before = std::exchange(profile_.link, sounded);
  const LinkRate last = std::exchange(sounded_, sounded);
  if (phase_ == Phase::measuring) return;
  const auto confirmed = [&](double LinkRate::*rate) {
    if (sounded.*rate <= (1 + kLinkChanged) * before.*rate) return;
    profile_.link.*rate = std::min(sounded.*rate, std::max(before.*rate, last.*rate));
  };
  confirmed(&LinkRate::bytes_per_s);
  confirmed(&LinkRate::reduced_bytes_per_s);
}

void Tuner::fit_all(const std::vector<Measurement>& by_rank) {
  const Measurement& slowest = findings_.slowest;
  std::vector<SoundingTimes> soundings;
  for (const Measurement& one : by_rank) soundings.push_back(one.sounding);
  take_link(fit_link(soundings, layout_.ranks(), profile_.link));
  const double compute_s = compute_of(slowest);
  const bool same_plan = phase_ == Phase::running && !new_plan_;
  if (same_plan && changed(compute_s, computing_.back().compute_s, kOtherRegime)) {
    computing_.clear();  // the program does something else now
  }
  const double sending_s = beside_computing(slowest.end_s, slowest.exposed_s) *
                           predict(plan_, layout_, profile_).sending_s;
  computing_.push_back({compute_s, slowest.overlapped_work_s + sending_s, slowest.sent_bytes});
  if (computing_.size() > kComputeSamples) computing_.erase(computing_.begin());
  const Contention fitted = fit_contention(computing_);
  const double undisturbed = fitted.compute_s / std::max(compute_s, 1e-9);
  profile_.backward_s = slowest.backward_s * undisturbed;
  profile_.rest_s = rest_of(slowest) * undisturbed;
  profile_.contention = fitted.per_work;
  profile_.sending_s_per_byte = fitted.per_byte;
  profile_.ready_s = slowest.ready_s;
  for (double& ready : profile_.ready_s) ready = std::min(ready, slowest.backward_s) * undisturbed;
  profile_.needed_s = slowest.needed_s;
  for (double& needed : profile_.needed_s) {
    needed = std::min(needed * undisturbed, profile_.rest_s);
  }
  if (!is_plain(plan_)) fit_work(mean_of(by_rank, work_of));
  if (!by_rank.front().curves.empty()) take_curves(mean_curves(by_rank));
  findings_.link = profile_.link;
  findings_.contention = fitted;
}

// Exchanges of a step meet others on their link and ranks that come late, which a sounding does
// not: as much slower as makes the prediction what was measured. By halves too.
void Tuner::learn_exchanges() {
  const double before = profile_.in_steps;
  const auto predicted_by = [&](double factor) {
    profile_.in_steps = factor;
    return predict(plan_, layout_, profile_).step_s;
  };
  double low = 1;
  double high = kInStepsMost;
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = (low + high) / 2;
    (predicted_by(middle) < findings_.slowest.step_s ? low : high) = middle;
  }
  const bool same_plan = phase_ == Phase::running && !new_plan_;
  profile_.in_steps = same_plan ? std::sqrt(before * low) : low;
}

// What the model does not know of this kind of plan: by halves, so that one odd period does not
// decide.
void Tuner::learn_error() {
  if (!is_plain(plan_)) learn_exchanges();
  const double predicted = predict(plan_, layout_, profile_).step_s;
  if (!(predicted > 0) || !(findings_.slowest.step_s > 0)) return;
  const double now = std::clamp(findings_.slowest.step_s / predicted, 1 / kErrorMost, kErrorMost);
  double& error = is_plain(plan_) ? options_.plain_error : options_.compressed_error;
  error = phase_ == Phase::running && !new_plan_ ? std::sqrt(error * now) : now;
  // What compressed plans once cost more is forgotten while none runs, so that they get another
  // try.
  if (is_plain(plan_)) {
    options_.compressed_error = 1 + kForgetError * (options_.compressed_error - 1);
  }
}

// What the positions of large entries take depends on where a model has them, which no law tells:
// from a plan's second period on it is expected to send what it sent.
void Tuner::count_bytes() {
  const double law = predict(plan_, layout_, profile_).sent_bytes;
  if (new_plan_ || phase_ != Phase::running) sent_to_law_ = 1;
  findings_.predicted_bytes = sent_to_law_ * law;
  if (law > 0) sent_to_law_ = findings_.slowest.sent_bytes / law;
}

// What ran is known better than any model tells, while nothing else changes.
void Tuner::remember() {
  const double step_s = findings_.slowest.step_s;
  options_.optimism = 1 + kForgetOptimism * (options_.optimism - 1);
  std::erase_if(tried_, [&](const TriedPlan& one) { return agreements_ - one.at > kRemembered; });
  const bool other_link = changed(profile_.link.bytes_per_s, known_.bytes_per_s, kLinkChanged);
  if (other_link) tried_.clear();
  // The link may have changed in the middle of the period: its steps tell of neither.
  if (phase_ != Phase::measuring && !other_link && step_s > kStepLeastS) {
    const auto known = std::ranges::find(tried_, plan_, &TriedPlan::plan);
    if (known == tried_.end()) {
      tried_.push_back({plan_, step_s, agreements_});
    } else {
      const double factor = std::clamp(step_s / known->step_s, 1 / kFactorMost, kFactorMost);
      // The machine or the program is another: the others would have felt it too.
      if (changed(factor, 1)) {
        for (TriedPlan& one : tried_) one.step_s *= factor;
      } else {
        known->step_s *= std::sqrt(factor);
      }
      known->at = agreements_;
    }
    if (new_plan_ && expected_ && !expected_->tried && !is_plain(plan_)) {
      const double missed = step_s / expected_->prediction.step_s * options_.optimism;
      options_.optimism = std::clamp(std::sqrt(options_.optimism * missed), 1.0, kOptimismMost);
    }
  }
  if (tried_.size() > kTriedMost)
    tried_.erase(std::ranges::min_element(tried_, {}, &TriedPlan::at));
  options_.tried = tried_;
}

Candidate Tuner::best_plain() const {
  PlannerOptions any = options_;
  any.fidelity_min = 0;
  return rank_plans(layout_, profile_, {}, any).value().front();
}

double Tuner::worth_now() const {
  const double progress = weigh(plan_, layout_, profile_, curves_, options_).progress;
  return progress / std::max(findings_.slowest.step_s, 1e-9);
}

void Tuner::watch() {
  if (phase_ != Phase::running || is_plain(plan_)) return;
  const double kept = findings_.slowest.kept;
  if (kept < kFallsTo * kept_then_) {
    char text[160];
    std::snprintf(text, sizeof text,
                  "error feedback grows: %.0f %% of the energy is kept, %.0f %% when the plan "
                  "began; plans that keep no more are out for a while",
                  100 * kept, 100 * kept_then_);
    findings_.guard = text;
    const double more = std::min(1.0, findings_.kept + kFloorStep);
    options_.fidelity_min = std::max(given_.fidelity_min, more);
    floor_until_ = agreements_ + kEveryAgreements;
    return;
  }
  if (worth_now() * findings_.plain_s < kLoses) {
    const double predicted = predict(plan_, layout_, profile_).step_s;
    options_.compressed_error = std::max(1.0, findings_.slowest.step_s / predicted);
    findings_.guard = "plain makes more progress a second than this plan did";
  }
}

std::string Tuner::reason() const {
  if (phase_ == Phase::measuring) return "the first choice";
  if (phase_ == Phase::comparing) return "plain was measured";
  if (!findings_.guard.empty()) return findings_.guard;
  if (new_plan_) return "the new plan was measured";
  if (findings_.kept < options_.fidelity_min) return "the plan keeps less than the floor";
  const Measurement& now = findings_.slowest;
  if (changed(profile_.link.bytes_per_s, known_.bytes_per_s, kLinkChanged)) {
    return percent_more("the link's rate", profile_.link.bytes_per_s, known_.bytes_per_s);
  }
  if (changed(compute_of(now), known_.compute_s)) {
    return percent_more("the time of computing", compute_of(now), known_.compute_s);
  }
  if (changed(now.step_s, known_.step_s)) {
    return percent_more("the step time", now.step_s, known_.step_s);
  }
  if (changed(now.kept, known_.kept)) {
    return percent_more("the energy kept", now.kept, known_.kept);
  }
  const bool due = std::fmod(agreements_, kEveryAgreements) == 0;
  return due ? "from time to time" : "";
}

bool Tuner::comparing_is_due() const {
  if (phase_ == Phase::comparing || is_plain(plan_) || given_.fidelity_min >= 1) return false;
  const double step_s = findings_.slowest.step_s;
  const double worth = new_plan_ ? expected_->worth : worth_now();
  if (!compared_ && 1 / findings_.plain_s >= kComparable * worth) return true;
  const double extra_s = comparing_steps(findings_) *
                         (std::max(findings_.plain_s - step_s, 0.05 * step_s) + agreement_s_);
  return base::affords(kComparingShare, (steps_ - compared_at_) * step_s, 0, extra_s);
}

void Tuner::choose(std::string why) {
  auto ranked = rank_plans(layout_, profile_, curves_, options_);
  SCANT_CHECK(ranked.ok(), "a profile made here fits its layout");
  std::vector<Candidate>& all = ranked.value();
  Candidate running = weigh(plan_, layout_, profile_, curves_, options_);
  Candidate best = all.front();
  // What runs goes on, unless another plan is worth clearly more or keeps clearly more.
  const bool allowed = running.kept >= options_.fidelity_min && phase_ != Phase::measuring;
  const bool keeps_more =
      best.kept >= running.kept + kKeepsMore && best.worth >= kNearly * running.worth;
  if (allowed && best.worth < kBetter * running.worth && !keeps_more) best = running;
  Findings::Choice choice;
  choice.why = std::move(why);
  choice.changed = best.plan != plan_;
  choice.chosen = best;
  for (Candidate& one : all) {
    if (choice.others.size() == kOthersShown) break;
    if (one.plan != best.plan) choice.others.push_back(std::move(one));
  }
  choice.profile = profile_;
  new_plan_ = choice.changed;
  plan_ = best.plan;
  expected_ = std::move(best);
  const Measurement& now = findings_.slowest;
  known_ = {now.step_s, compute_of(now), profile_.link.bytes_per_s, now.kept};
  findings_.choice = std::move(choice);
}

uint32_t Tuner::sounding_bytes() const {
  if (layout_.ranks() == 1) return 0;
  return static_cast<uint32_t>(
      std::clamp(kSoundingS * profile_.link.bytes_per_s, kSoundingLeast, kSoundingMost));
}

Decision Tuner::compare() {
  phase_ = Phase::comparing;
  new_plan_ = false;
  Candidate plain = best_plain();
  plan_ = plain.plan;
  expected_ = std::move(plain);
  return {.plan = plan_, .steps = comparing_steps(findings_), .skipped = 1, .curves = false};
}

Decision Tuner::run() {
  phase_ = Phase::running;
  const double step_s =
      std::max(expected_ ? expected_->prediction.step_s : findings_.slowest.step_s, 1e-6);
  const double wanted = std::ceil(agreement_s_ / (kAgreementShare * step_s));
  const double most = std::clamp(std::max(kRunningMostS, agreement_s_ / kAgreementMost) / step_s,
                                 double{kRunningLeast}, 1e6);
  Decision decision{.plan = plan_};
  decision.steps = static_cast<uint32_t>(std::clamp(wanted, double{kRunningLeast}, most));
  if (new_plan_) decision.steps = kNewPlanSteps;
  decision.skipped = new_plan_ ? 1 : 0;
  const bool due = new_plan_ || std::fmod(agreements_, kCurvesEvery) == kCurvesEvery - 1;
  const bool useful = given_.pinned ? !is_plain(plan_) : given_.fidelity_min < 1;
  decision.curves = due && useful && layout_.ranks() > 1;
  return decision;
}

Decision Tuner::decide(const std::vector<Measurement>& by_rank, double agreement_s) {
  SCANT_CHECK(!by_rank.empty());
  // The shortest so far, nearly: others waited for a rank that came late.
  agreement_s_ = agreement_s_ > 0 ? std::min(1.1 * agreement_s_, agreement_s) : agreement_s;
  ++agreements_;
  steps_ += by_rank.front().steps;
  if (agreements_ >= floor_until_) options_.fidelity_min = given_.fidelity_min;
  combine(by_rank);
  fit_all(by_rank);
  learn_error();
  count_bytes();
  remember();
  if (is_plain(plan_)) {
    compared_ = true;
    compared_at_ = steps_;
  }
  const Candidate plain = best_plain();
  findings_.plain_s = is_plain(plan_) ? findings_.slowest.step_s : plain.prediction.step_s;
  const double all_bytes =
      gradient::sent_bytes(Tuner::first(layout_, {.fidelity_min = 1}).plan, layout_);
  const double dense_s = all_bytes / profile_.link.reduced_bytes_per_s +
                         profile_.link.alpha_s * messages_in_a_row(gradient::Path::all_reduce,
                                                                   layout_.ranks(), all_bytes);
  findings_.dense_bytes = all_bytes;
  findings_.rho = dense_s / std::max(profile_.backward_s + profile_.rest_s, 1e-9);
  const Candidate running = weigh(plan_, layout_, profile_, curves_, options_);
  findings_.plan = running.text;
  findings_.kept = running.kept;
  if (expected_) findings_.predicted_s = expected_->prediction.step_s;
  if (new_plan_) kept_then_ = findings_.slowest.kept;
  if (given_.pinned) {
    expected_ = running;
  } else {
    watch();
    const std::string why = reason();
    new_plan_ = false;
    if (!why.empty()) choose(why);
  }
  Decision next = !given_.pinned && comparing_is_due() ? compare() : run();
  next.sounding_bytes = sounding_bytes();
  return next;
}

}  // namespace scant::plan
