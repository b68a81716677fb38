#include "bindings/sync/findings.h"

#include <nanobind/stl/string.h>
#include <string>

#include "plan/point_shares.h"

namespace scant::python {
namespace {

namespace nb = nanobind;
using plan::Candidate;
using plan::Findings;

nb::dict row_of(const Candidate& candidate, const gradient::Layout& layout) {
  nb::dict row;
  row["text"] = candidate.text;
  row["step_s"] = candidate.prediction.step_s;
  row["exposed_s"] = candidate.prediction.exposed_s;
  row["sent_bytes"] = candidate.prediction.sent_bytes;
  row["kept"] = candidate.kept;
  row["worth"] = candidate.worth;
  const plan::LastBuffer last = plan::last_buffer(candidate.plan, layout);
  row["last_share"] = last.share;
  row["last_bytes"] = last.bytes;
  return row;
}

nb::dict steps_line(const Findings& findings) {
  const plan::Measurement& measured = findings.slowest;
  nb::dict line;
  line["kind"] = "steps";
  line["steps"] = measured.steps;
  line["step_s"] = measured.step_s;
  line["backward_s"] = measured.backward_s;
  line["exposed_s"] = measured.exposed_s;
  line["encode_s"] = measured.encode_s;
  line["predicted_s"] = findings.predicted_s;
  line["sent_bytes"] = measured.sent_bytes;
  line["predicted_bytes"] = findings.predicted_bytes;
  line["dense_bytes"] = findings.dense_bytes;
  line["kept"] = findings.kept;
  line["residual"] = measured.residual;
  line["nonfinite"] = measured.nonfinite;
  line["plan"] = findings.plan;
  line["measuring"] = findings.measuring;
  line["bytes_per_s"] = findings.link.bytes_per_s;
  line["rho"] = findings.rho;
  return line;
}

nb::dict profile_line(const Findings& findings, const plan::Profile& profile) {
  nb::dict line;
  line["kind"] = "profile";
  line["backward_s"] = profile.backward_s;
  line["rest_s"] = profile.rest_s;
  line["rho"] = findings.rho;
  line["alpha_s"] = profile.link.alpha_s;
  line["bytes_per_s"] = profile.link.bytes_per_s;
  line["contention"] = profile.contention;
  line["sending_s_per_byte"] = profile.sending_s_per_byte;
  line["slowest_rank"] = findings.slowest_rank;
  line["plain_s"] = findings.plain_s;
  return line;
}

nb::dict plan_line(const Findings::Choice& choice, const gradient::Layout& layout) {
  nb::dict line;
  line["kind"] = "plan";
  line["why"] = choice.why;
  line["changed"] = choice.changed;
  line["chosen"] = row_of(choice.chosen, layout);
  nb::list others;
  for (const Candidate& candidate : choice.others) others.append(row_of(candidate, layout));
  line["others"] = others;
  nb::dict points;
  for (const auto& [name, share] : plan::point_shares(choice.chosen.plan, layout))
    points[name.c_str()] = share;
  line["points"] = points;
  return line;
}

}  // namespace

nb::list lines_of(const Findings& findings, const gradient::Layout& layout) {
  nb::list lines;
  lines.append(steps_line(findings));
  if (!findings.guard.empty()) {
    nb::dict line;
    line["kind"] = "guard";
    line["why"] = findings.guard;
    line["measured_s"] = findings.slowest.step_s;
    line["plain_s"] = findings.plain_s;
    line["plan"] = findings.plan;
    lines.append(line);
  }
  if (findings.choice) {
    lines.append(profile_line(findings, findings.choice->profile));
    lines.append(plan_line(*findings.choice, layout));
  }
  return lines;
}

}  // namespace scant::python
