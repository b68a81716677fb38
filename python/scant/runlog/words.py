"""A run told in words: what was measured, what was chosen and why, and how well it went."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from scant import amounts
from scant.report.text import render
from scant.runlog import serving
from scant.runlog.history import Choice, History
from scant.runlog.lines import Plan, Profile, Row, Run, Steps

__all__ = ["CANDIDATES", "PREDICTIONS", "candidates", "predictions", "tell"]

_COLUMNS = 96
_CHANGES_MAX = 12  # choices that are told one by one: the first and the last of them
_GUARDS_MAX = 10
_POINTS_MAX = 6
CANDIDATES = ["plan", "step", "exposed", "sent", "kept", "worth"]
PREDICTIONS = ["plan", "steps", "predicted", "measured", "error"]


def tell(history: History) -> str:
    """All of it, for a terminal."""
    parts = [_run(history)]
    if history.run is not None and history.run.serves is not None:
        return "\n\n".join([*parts, _part("What it served", serving.totals(history.served))])
    if history.profile is not None:
        parts.append(_measured(history.profile))
    parts += _choices(history)
    parts += [_outcome(history), _guard(history), _now(history)]
    if history.notes:
        lines = [f"step {amounts.whole(note.step)}: {note.text}" for note in history.notes]
        parts.append(_part("Notes", lines[-_GUARDS_MAX:]))
    return "\n\n".join(part for part in parts if part)


def _part(title: str, lines: Sequence[str], table: str = "") -> str:
    out = [title]
    for line in lines:
        out += textwrap.wrap(line, _COLUMNS, initial_indent="  ", subsequent_indent="    ")
    if table:
        out.append(textwrap.indent(table, "    "))
    return "\n".join(out)


def _run(history: History) -> str:
    run = history.run or Run(step=0, at_s=0.0, version=0)
    last = history.last or run
    lines = [run_line(run), f"host {run.host}, process {run.pid or '?'}, scant {run.scant}"]
    if run.options:
        options = ", ".join(f"{name}={value}" for name, value in run.options.items())
        lines.append(f"options: {options}")
    lines.append(f"{amounts.whole(last.step)} steps in {amounts.span(last.at_s)} so far")
    return _part(f"The run of {started(run)}", lines)


def started(run: Run) -> str:
    """``2026-03-02 09:15:04 UTC``."""
    date, _, clock = run.started.partition("T")
    for zone in ("Z", "+00:00"):
        if clock.endswith(zone):
            return f"{date} {clock.removesuffix(zone)} UTC"
    return run.started


def run_line(run: Run) -> str:
    """``4 ranks, 38 tensors, 3,241,984 elements (13.0 MB of f32 gradients)``."""
    if run.serves is not None:
        return f"serves {run.serves}"
    size = None if run.elements is None else 4.0 * run.elements
    return (
        f"{amounts.whole(run.ranks)} ranks, {amounts.whole(run.tensors)} tensors, "
        f"{amounts.whole(run.elements)} elements ({amounts.size(size)} of f32 gradients)"
    )


def _measured(profile: Profile) -> str:
    return _part(
        f"What was measured, newest at step {amounts.whole(profile.step)}",
        measured_lines(profile),
    )


def measured_lines(profile: Profile) -> list[str]:
    """A profile in sentences."""
    slowest = "" if profile.slowest_rank is None else f"; rank {profile.slowest_rank} is slowest"
    lines = [
        f"compute: {amounts.duration(profile.compute_s)} a step, of which backward is "
        f"{amounts.duration(profile.backward_s)} and the rest {amounts.duration(profile.rest_s)}"
        f"{slowest}",
        f"link: {amounts.rate(profile.bytes_per_s)} sent by a rank, "
        f"{amounts.duration(profile.alpha_s)} for a message whatever its size",
        f"ρ is {amounts.number(profile.rho)}: sending all gradients as they are takes "
        f"{amounts.number(profile.rho)} times as long as computing a step",
    ]
    if profile.contention is not None:
        cost = amounts.number(profile.contention, 2)
        lines.append(f"each second that Scant's threads work lengthens backward by {cost} s")
    if profile.sending_s_per_byte is not None and profile.sending_s_per_byte >= 1e-12:
        cost = amounts.duration(1e6 * profile.sending_s_per_byte)
        lines.append(f"sending costs {cost} of a core for each MB")
    if profile.plain_s is not None:
        slower = amounts.fold(profile.plain_s, profile.compute_s)
        lines.append(
            f"plain would take {amounts.duration(profile.plain_s)} a step, "
            f"{amounts.times(slower)} its compute"
        )
    return lines


def _choices(history: History) -> list[str]:
    changes = history.changes
    if not changes:
        return [_part("What was chosen", ["nothing yet: no plan is in the log"])]
    shown = changes
    left_out = ""
    if len(changes) > _CHANGES_MAX:
        shown = [changes[0], *changes[1 - _CHANGES_MAX :]]
        left_out = f" ({len(changes) - len(shown)} after the first are left out)"
    kept = len(history.choices) - len(changes)
    title = f"What was chosen: {_count(len(changes), 'plan')}, "
    title += f"looked at again {_count(kept, 'time')} without a change{left_out}"
    parts = [title]
    parts += [_part(choice_title(one), choice_lines(one)) for one in shown]
    newest = history.choices[-1].plan
    return [*parts, _part(candidates_title(newest), [], render(CANDIDATES, candidates(newest)))]


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def choice_title(choice: Choice) -> str:
    """``At step 20: 0.53 bytes an element in 2 buffers``."""
    return f"At step {amounts.whole(choice.plan.step)}: {choice.plan.chosen.text}"


def choice_lines(choice: Choice) -> list[str]:
    """A choice in sentences."""
    plan, row = choice.plan, choice.plan.chosen
    lines = [f"why: {plan.why}"] if plan.why else []
    lines.append(
        f"predicted: {amounts.duration(row.step_s)} a step, of which "
        f"{amounts.duration(row.exposed_s)} wait for the link; {amounts.size(row.sent_bytes)} "
        f"sent by a rank; {amounts.share(row.kept)} of the energy kept; worth "
        f"{amounts.number(row.worth)} plain steps a second"
    )
    lines += _last_buffer(choice)
    if plan.points:
        most = sorted(plan.points.items(), key=lambda one: -one[1])
        told = [f"{amounts.share(part)} as {name}" for name, part in most[:_POINTS_MAX]]
        if len(most) > _POINTS_MAX:
            rest = sum(part for _, part in most[_POINTS_MAX:])
            told.append(f"{amounts.share(rest)} otherwise")
        lines.append("elements travel: " + ", ".join(told))
    if plan.others:
        lines.append(_next_best(row, plan.others[0]))
    return lines


def _last_buffer(choice: Choice) -> list[str]:
    """The law of exposed time; nothing of logs that were written without it."""
    row, profile = choice.plan.chosen, choice.profile
    if profile is None or row.last_share is None or row.last_bytes is None:
        return []
    if profile.rho is None or profile.compute_s is None:
        return []
    law_s = profile.rho / 4 * row.last_share * row.last_bytes * profile.compute_s
    return [
        f"the last buffer has {amounts.share(row.last_share)} of the elements, at "
        f"{amounts.number(row.last_bytes, 2)} bytes each: nothing but what comes after backward "
        f"hides its transfer of {amounts.duration(law_s)} (ρ ÷ 4 × share × bytes × compute)"
    ]


def _next_best(chosen: Row, other: Row) -> str:
    text = f"next best: {other.text}"
    slower = amounts.fold(other.step_s, chosen.step_s)
    if slower is not None and other.step_s is not None and chosen.step_s is not None:
        more = other.step_s - chosen.step_s
        word = "longer" if more > 0 else "shorter"
        if abs(slower - 1) < 0.0005:
            text += ", a step as long"
        else:
            text += f", a step {amounts.duration(abs(more))} {word} ({amounts.error(slower - 1)})"
    if other.kept is not None and chosen.kept is not None:
        points = 100 * (other.kept - chosen.kept)
        word = "more" if points > 0 else "less"
        if abs(points) < 0.005:
            text += ", as much energy kept"
        else:
            text += f", {amounts.number(abs(points), 2)} points {word} energy kept"
    return text


def candidates(plan: Plan) -> list[list[str]]:
    """Rows under ``CANDIDATES``, the chosen plan first, whose worth is 100 %."""
    return [
        [
            row.text,
            amounts.duration(row.step_s),
            amounts.duration(row.exposed_s),
            amounts.size(row.sent_bytes),
            amounts.share(row.kept),
            amounts.share(amounts.fold(row.worth, plan.chosen.worth)),
        ]
        for row in (plan.chosen, *plan.others)
    ]


def candidates_title(plan: Plan) -> str:
    """What the rows are."""
    return f"The candidates at step {amounts.whole(plan.step)}, the chosen one first"


def predictions(history: History) -> list[list[str]]:
    """Rows under ``PREDICTIONS``: one for each plan that ran, by first use."""
    by_plan: dict[str, list[Steps]] = {}
    for one, _ in history.errors():
        by_plan.setdefault(one.plan or "?", []).append(one)
    return [
        [
            plan,
            amounts.whole(sum(one.steps or 0 for one in lines)),
            amounts.duration(amounts.median(one.predicted_s for one in lines)),
            amounts.duration(amounts.median(one.step_s for one in lines)),
            amounts.error(amounts.median(one.error for one in lines)),
        ]
        for plan, lines in by_plan.items()
    ]


def outcome_lines(history: History) -> list[str]:
    """How good the predictions were."""
    errors = history.errors()
    if not errors:
        return ["no step was predicted yet"]
    worst, by = max(errors, key=lambda one: abs(one[1]))
    middle = amounts.median(abs(value) for _, value in errors)
    within = sum(abs(value) <= 0.1 for _, value in errors) / len(errors)
    return [
        f"predictions were off by {amounts.share(middle)} at the median of "
        f"{_count(len(errors), 'stretch') if len(errors) == 1 else f'{len(errors):,} stretches'} "
        f"of steps; {amounts.share(within)} of them by at most 10 %",
        f"worst: {amounts.error(by)} at step {amounts.whole(worst.step)}, "
        f"{amounts.duration(worst.predicted_s)} predicted, {amounts.duration(worst.step_s)} "
        "measured",
    ]


def _outcome(history: History) -> str:
    rows = predictions(history)
    table_text = render(PREDICTIONS, rows) if rows else ""
    return _part("Predicted and measured", outcome_lines(history), table_text)


def guard_lines(history: History) -> list[str]:
    """What the guard did."""
    if not history.guards:
        return ["it never had to act"]
    lines = [
        f"step {amounts.whole(one.step)}: {one.why} ({amounts.duration(one.measured_s)} "
        f"by {one.plan or '?'}, plain {amounts.duration(one.plain_s)})"
        for one in history.guards[-_GUARDS_MAX:]
    ]
    more = len(history.guards) - len(lines)
    return [f"{more:,} earlier events are left out", *lines] if more else lines


def _guard(history: History) -> str:
    return _part("The guard", guard_lines(history))


def now_lines(history: History) -> list[str]:
    """The newest stretch of steps in sentences."""
    if not history.steps:
        return ["no step was reported yet"]
    one = history.steps[-1]
    faster = amounts.fold(history.plain_s, one.step_s)
    less = amounts.fold(one.dense_bytes, one.sent_bytes)
    waiting = amounts.fold(one.exposed_s, one.step_s)
    lines = [
        f"plan: {one.plan or '?'}" + (" (profiles are being taken)" if one.measuring else ""),
        f"a step takes {amounts.duration(one.step_s)}, predicted "
        f"{amounts.duration(one.predicted_s)} ({amounts.error(one.error)}); plain "
        f"{amounts.duration(history.plain_s)}, that is {amounts.times(faster)} this",
        f"{amounts.size(one.sent_bytes)} a step instead of "
        f"{amounts.size(one.dense_bytes)}, {amounts.times(less)} less",
        f"{amounts.duration(one.exposed_s)} wait for the link, {amounts.share(waiting)} of a step",
        f"{amounts.share(one.kept)} of the energy kept; the residual is "
        f"{amounts.times(one.residual)} the gradient",
        f"link {amounts.rate(one.bytes_per_s)}, ρ {amounts.number(one.rho)}",
    ]
    odd = sum(each.nonfinite or 0 for each in history.steps)
    if odd:
        lines.append(f"gradients that were not finite, over the whole run: {odd:,}")
    return lines


def _now(history: History) -> str:
    step = amounts.whole(history.last.step if history.last else 0)
    return _part(f"Now, at step {step}", now_lines(history))
