"""A run in words, as a table for a terminal and as a page with plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scant import amounts
from scant.report import Page, Series, line_plot
from scant.report.text import render
from scant.serve.replay.figures import LATE_MAX_S, Figures, quantile

__all__ = ["page", "table", "verdicts"]

_STEPS = 200  # points of a distribution's line
_PERIODS = 60  # stretches of a run over which a plot takes quantiles


def verdicts(figures: Figures, cut_short: bool) -> list[str]:
    """What a reader must know before any number."""
    lines = []
    if cut_short:
        lines.append("Cut short: the run was ended before its last request.")
    late = figures.late_p99_s
    if late is None:
        lines.append("INVALID: no request was sent.")
    elif not figures.valid:
        lines.append(
            f"INVALID: 1 % of the sends were more than {amounts.duration(late)} late; at most "
            f"{amounts.duration(LATE_MAX_S)} is allowed. This was not the trace's load. Run with "
            "a lower --speed, or send from another machine."
        )
    words = [said for kind, said in figures.words.items() if kind in ("http 400", "http 422")]
    if any("ignore_eos" in said for said in words):
        lines.append("The server does not know ignore_eos: run again with --no-ignore-eos.")
    return lines


def _times(figures: Figures) -> list[list[str]]:
    named = [
        ("time to the first token (TTFT)", figures.first),
        ("time per token after it (TPOT)", figures.token),
        ("whole request", figures.total),
        ("lateness of sends", figures.late),
    ]
    return [
        [name, *(amounts.duration(quantile(values, at)) for at in (0.5, 0.9, 0.99))]
        for name, values in named
    ]


_TIMES_HEAD = ["", "p50", "p90", "p99"]


def _amounts(figures: Figures, cost: Mapping[str, Any]) -> list[list[str]]:
    good = figures.good / figures.count if figures.count else None
    rows = [
        ["requests", amounts.whole(figures.count)],
        ["whole answers", amounts.whole(figures.whole)],
        [
            f"goodput (TTFT ≤ {amounts.duration(figures.slo.first_s)}, "
            f"TPOT ≤ {amounts.duration(figures.slo.token_s)})",
            f"{amounts.number(figures.rate(figures.good))} requests/s, {amounts.share(good)}",
        ],
        ["tokens in", f"{amounts.number(figures.rate(figures.tokens_in))} /s"],
        ["tokens out", f"{amounts.number(figures.rate(figures.tokens_out))} /s"],
        ["time, to the last answer", amounts.duration(figures.end_s)],
    ]
    if figures.cut:
        rows.append(["lengths cut by --prompt-max, --answer-max", amounts.whole(figures.cut)])
    if figures.shorter:
        rows.append(["answers shorter than asked", amounts.whole(figures.shorter)])
    cpu_s, joules = cost.get("cpu_s"), cost.get("joules")
    if cpu_s is not None:
        rows.append([f"CPU of the server ({cost['cpu_source']})", amounts.duration(cpu_s)])
        per = amounts.fold(figures.tokens_out, cpu_s)
        rows.append(["tokens out per CPU second", amounts.number(per)])
    if joules is not None:
        rows.append(["energy of this machine", f"{amounts.number(joules)} J"])
        per = amounts.fold(joules, figures.whole)
        rows.append(["energy per whole answer", f"{amounts.number(per)} J"])
    return rows


def _errors(figures: Figures) -> list[list[str]]:
    rows = [
        [kind, amounts.whole(count), figures.words.get(kind, "")[:100] or amounts.UNKNOWN]
        for kind, count in sorted(figures.errors.items())
    ]
    if figures.retry_after:
        rows.append(
            ["of these with Retry-After", amounts.whole(figures.retry_after), "not retried"]
        )
    return rows


def table(figures: Figures, cost: Mapping[str, Any], cut_short: bool) -> str:
    """For a terminal."""
    parts = [
        render(_TIMES_HEAD, _times(figures)),
        render(["", ""], _amounts(figures, cost)).lstrip("\n "),
    ]
    if figures.errors:
        rows = [row[:2] for row in _errors(figures)]
        parts.append(render(["errors", "count"], rows))
        parts += [f"{kind}: {said[:200]}" for kind, said in figures.words.items() if said]
    return "\n\n".join([*parts, *verdicts(figures, cut_short)])


def page(
    title: str, lead: str, figures: Figures, cost: Mapping[str, Any], notes: Sequence[str],
    cut_short: bool,
) -> Page:  # fmt: skip
    """With plots, and the figures as JSON inside."""
    out = Page(title, lead)
    told = verdicts(figures, cut_short)
    for line in told:
        out.headline(line)
    if notes:
        out.points(notes)
    out.heading("Times")
    out.table(_TIMES_HEAD, _times(figures))
    out.heading("Amounts")
    out.table(["", "value"], _amounts(figures, cost))
    if figures.errors:
        out.heading("Errors")
        out.table(["kind", "count", "first one's words"], _errors(figures))
    out.heading("Over the run")
    for name, at, values, scale, unit in (
        ("Time to the first token", figures.first_at, figures.first, 1.0, "s"),
        ("Time per token after it", figures.token_at, figures.token, 1e3, "ms"),
    ):
        out.subheading(name)
        out.plot(_over_time(name, at, values, figures.end_s, scale, unit))
    out.subheading("Requests sent")
    out.plot(_rate_plot(figures))
    out.heading("Distributions")
    out.text("How many percent of the answers were at most so slow.")
    out.plot(_shares("Time to the first token", figures.first, 1.0, "seconds"))
    out.plot(_shares("Time per token after it", figures.token, 1e3, "milliseconds"))
    out.subheading("Lateness of sends")
    out.text(
        f"How long after its time a request was sent. At p99 a valid run has at most "
        f"{amounts.duration(LATE_MAX_S)}."
    )
    out.plot(_shares("Lateness of sends", figures.late, 1e3, "milliseconds"))
    out.data("figures", {**figures.summary(), "cost": dict(cost), "cut_short": cut_short})
    return out


def _over_time(
    title: str, at: Sequence[float], values: Sequence[float], end_s: float, scale: float, unit: str
) -> str:
    # Few answers make few periods: a quantile of one answer is no curve.
    period_s = max(end_s / min(_PERIODS, max(len(values) // 5, 5)), 1e-9)
    periods: dict[int, list[float]] = {}
    for when, value in zip(at, values, strict=True):
        periods.setdefault(int(when / period_s), []).append(value)
    x = [(number + 0.5) * period_s for number in sorted(periods)]
    series = [
        Series(name, x, [scale * (quantile(periods[n], share) or 0.0) for n in sorted(periods)])
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ]
    return line_plot(title, series if x else [], "seconds after the start", unit, from_zero=True)


def _rate_plot(figures: Figures) -> str:
    if not figures.sent_at:
        return line_plot("Requests sent", [], "", "")
    period_s = max(max(figures.sent_at) / _PERIODS, 1e-3)
    counts = [0] * (int(max(figures.sent_at) / period_s) + 1)
    for when in figures.sent_at:
        counts[max(int(when / period_s), 0)] += 1
    x = [(number + 0.5) * period_s for number in range(len(counts))]
    series = [Series("sent", x, [count / period_s for count in counts])]
    return line_plot(
        "Requests sent", series, "seconds after the start", "requests/s", from_zero=True
    )


def _shares(title: str, values: Sequence[float], scale: float, unit: str) -> str:
    ranked = sorted(values)
    count = min(len(ranked), _STEPS)
    places = [round(i * (len(ranked) - 1) / max(count - 1, 1)) for i in range(count)]
    x = [scale * ranked[place] for place in places]
    y = [100 * (place + 1) / len(ranked) for place in places]
    return line_plot(title, [Series(title, x, y)] if x else [], unit, "%", from_zero=True)
