// Members that agree on plans while they train in a world that a table describes, in virtual time:
// the cores of docs/planner.md over any exchange whose clock a test moves. For tests.
#pragma once

#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "gradient/exchange.h"
#include "plan/agreement.h"
#include "plan/testing/tuner_world.h"

namespace scant::plan {

inline Duration duration_of(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

// What a member reports of a step in this world, of which `measured` is what it measures.
inline gradient::StepReport report_of(const Measurement& measured, const gradient::Layout& layout,
                                      bool curves) {
  gradient::StepReport report;
  report.backward_s = measured.backward_s;
  report.exposed_s = measured.exposed_s;
  report.end_s = measured.end_s;
  report.encode_s = measured.encode_s;
  report.sent_bytes = static_cast<uint64_t>(measured.sent_bytes);
  for (size_t p = 0; p < layout.parts().size(); ++p) {
    const auto energy = static_cast<double>(layout.parts()[p].range.elements);
    report.parts.push_back({.ready = measured.ready_s[p],
                            .needed = measured.needed_s[p],
                            .energy = energy,
                            .energy_left = (1 - measured.kept) * energy});
  }
  if (curves) report.curves = measured.curves;
  return report;
}

// One of them, on an exchange of its own.
class AgreeingMember {
 public:
  AgreeingMember(gradient::Exchange& exchange, const gradient::Layout& layout,
                 const AgreementOptions& options, const WorkRates& work)
      : exchange_(exchange), work_(work), agreement_(layout, options) {}
  AgreeingMember(const AgreeingMember&) = delete;
  AgreeingMember& operator=(const AgreeingMember&) = delete;

  void begin(const gradient::Members& members) {
    submit(agreement_.begin(members, work_, moment()));
  }
  // A step of this world ends now.
  void step(const World& world) {
    const Measurement measured = world.measure(agreement_.decision()).front();
    const bool curves = agreement_.curves_wanted();
    const auto report = report_of(measured, world.layout(), curves);
    if (agreement_.step_done(report, exchange_.now())) submit(agreement_.agree(moment()));
  }
  [[nodiscard]] double step_s(const World& world) const {
    return world.measure(agreement_.decision()).front().step_s;
  }
  [[nodiscard]] const Agreement& agreement() const { return agreement_; }
  [[nodiscard]] bool running() const { return agreement_.state() == Agreement::State::running; }

 private:
  void submit(std::optional<gradient::Operation> operation) {
    if (!operation) return;
    exchange_.submit(agreement_.members(), std::move(*operation),
                     [this](const gradient::Outcome& outcome) {
                       submit(agreement_.done(outcome.result, moment()));
                     });
  }
  [[nodiscard]] Moment moment() const { return {exchange_.now(), 0}; }

  gradient::Exchange& exchange_;
  const WorkRates work_;
  Agreement agreement_;
};

}  // namespace scant::plan
