"""Tables and plots of rows of train.py: time to the target loss, never worse, step times."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Sequence

import harness
import replay_figures
from train_figures import (
    OURS,
    Curves,
    Outcome,
    Rows,
    good,
    never_worse,
    outcomes,
    prediction_errors,
    silent_share,
    where,
)
from train_sides import CHECK_EVERY

from scant.report import Page, Series, bar_plot, line_plot
from scant.report.losses import TARGET_AT, WINDOW, smoothed

Table = tuple[list[str], list[list[str]]]

EXPLAINED = (
    f"Target: the training loss, smoothed over {WINDOW} steps, that plain has after "
    f"{TARGET_AT:.0%} of its steps. Share of the limit: plain's steps to the target, each without "
    "communication, ÷ the time that scant.wrap took. ρ: an f32 all-reduce of all gradients ÷ a "
    "step without communication. Exposed: beyond a step without communication; waited: after "
    "backward, by scant's own clock. Sent ÷ budget: bytes of scant's sides ÷ what their plan asks "
    "for. Sent nothing: parts of tensors that had something to send and sent nothing in a step. "
    f"In a training all ranks' parameters are compared after every {CHECK_EVERY}th step. Compute "
    "replayed: backward waits as long as a recorded one took and hands out recorded gradients, as "
    "on a host whose cores idle while an accelerator computes; step time alone, no progress."
)


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def outcome_table(found: Sequence[Outcome]) -> Table:
    head = ["model", "ranks", "network", "ρ", "plan of scant.wrap", "target"]
    head += ["steps to it, plain", "scant", "s, limit"]
    head += ["s, scant", "share of the limit", "best peer", "s", "peer ÷ scant"]
    head += ["held-out loss, plain (seeds)", "scant", "seeds"]
    lines = []
    for one in found:
        row, peer = one.row, one.best_peer
        plain = sorted(one.plain_final)
        line = [row["model"], str(row["ranks"]), row["network"], number(row.get("rho"), 2)]
        line += [one.ours, number(one.target), str(one.plain_steps), str(one.auto_steps or "–")]
        line += [number(one.limit_s, 1), number(one.auto_s, 1), number(one.share)]
        peer_s = one.peers[peer] if peer else None
        line.append(peer or ("no peer reaches it" if one.no_peer else "–"))
        line += [number(peer_s, 1), number(one.peer_ratio, 2)]
        spread = "–"
        if plain:
            spread = f"{statistics.fmean(plain):.3f} ({plain[0]:.3f}–{plain[-1]:.3f})"
        line += [spread, number(one.final), str(len(one.seeds))]
        lines.append(line)
    return head, lines


def worse_table(rows: Rows) -> Table:
    head = ["model", "ranks", "network", "ρ", "chosen plan", "kept", "ms"]
    head += ["best plan by hand of at least its fidelity", "ms", "chosen ÷ by hand"]
    lines = []
    for one in sorted(never_worse(rows), key=lambda one: -one.ratio):
        row, sides = one.row, one.row["sides"]
        line = [row["model"], str(row["ranks"]), row["network"], number(row["rho"], 2)]
        plan = one.plan if one.ours == OURS[0] else f"{one.plan} ({one.ours})"
        line += [plan, number(one.kept), number(1e3 * sides[one.ours]["seconds"][1], 1)]
        line += [one.pinned, number(1e3 * sides[one.pinned]["seconds"][1], 1), number(one.ratio)]
        lines.append(line)
    return head, lines


def step_table(row: harness.Row) -> Table:
    """All sides of one row."""
    head = ["side", "ms a step (quartiles)", "ms exposed", "ms waited", "CPU s, all ranks"]
    head += ["MB sent by a rank", "sent ÷ budget", "sent nothing", "encoded in backward"]
    head += ["kept", "predicted ÷ measured", "plan"]
    lines = []
    for name, side in row["sides"].items():
        low, middle, high = (f"{1e3 * one:,.1f}" for one in side["seconds"])
        said = side.get("said", {})
        ratio = None
        if said.get("predicted_s") and said.get("step_s"):
            ratio = said["predicted_s"] / said["step_s"]
        line = [name, f"{middle} ({low}–{high})", number(1e3 * side["exposed_s"], 1)]
        waited = side.get("waited_s")
        line += [number(None if waited is None else 1e3 * waited, 1), number(side["cpu_s"], 2)]
        line.append(number(side["wire_bytes_per_rank"] / 1e6, 2))
        silent = silent_share(side)
        line.append(number(said.get("sent_to_budget")))
        line.append("–" if silent is None else f"{silent:.2%}")
        line.append(number(side.get("encode_overlapped"), 2))
        line += [number(said.get("kept")), number(ratio, 2), said.get("plan") or ""]
        lines.append(line)
    return head, lines


def sentences(rows: Rows) -> list[str]:
    """Never worse and predictions over all rows."""
    found = []
    worse = never_worse(rows)
    if worse:
        worst = max(worse, key=lambda one: one.ratio)
        middle = statistics.median(one.ratio for one in worse)
        found.append(
            f"Step time of the planner's choice ÷ the best plan given by hand of at least its "
            f"fidelity: median {middle:.3f}, worst {worst.ratio:.3f} ({where(worst.row)}, by hand "
            f"{worst.pinned})."
        )
    errors = prediction_errors(rows)
    if errors:
        name, most = max(errors, key=lambda one: abs(one[1]))
        middle = statistics.median(abs(error) for _, error in errors)
        found.append(
            f"Predicted against measured step time: off by {middle:.1%} at the median of "
            f"{len(errors)}, at most {most:+.1%} ({name})."
        )
    return found


def shown_sides(row: harness.Row) -> list[str]:
    """Without communication, the planner, and of each family of others the fastest."""
    families = ["DDP, ", "fp16, ", "PowerSGD ", "DDP on scant"]
    names = ["alone", *OURS, "plain"]
    for family in families:
        own = [name for name in row["sides"] if name.startswith(family)]
        if own:
            names.append(min(own, key=lambda name: float(row["sides"][name]["seconds"][1])))
    return [name for name in names if name in row["sides"]]


def against_time(one: Outcome, curves: Curves) -> list[Series]:
    """Smoothed loss by seconds: the planner's by its own clock, others by their step times."""
    series = [Series("scant.wrap", one.at_s, smoothed(one.loss))]
    plain = curves.loss(one.row, "f32", one.seeds)
    assert plain is not None
    plain = plain[: len(one.loss)]
    step_s = one.limit_s / one.plain_steps
    series.append(Series("without communication", _times(len(plain), step_s), smoothed(plain)))
    peers: list[str] = []
    for family in ("DDP, ", "fp16, ", "PowerSGD "):
        own = {
            name: seconds if seconds is not None else float("inf")
            for name, seconds in one.peers.items()
            if name.startswith(family)
        }
        if own:
            peers.append(min(own, key=lambda name: own[name]))
    for name in peers:
        loss = curves.loss(one.row, one.row["curves"][name], one.seeds)
        assert loss is not None
        seconds = one.row["sides"][name]["seconds"][1]
        cut = smoothed(loss[: len(one.loss)])
        series.append(Series(name, _times(len(cut), seconds), cut))
    return series


def _times(count: int, step_s: float) -> list[float]:
    return [step_s * (i + 1) for i in range(count)]


def page(rows: Rows, curves: Curves, text: Sequence[str]) -> Page:
    found, _ = outcomes(rows, curves)
    made = Page("Training on links of several rates", EXPLAINED)
    made.points(text)
    if found:
        made.heading("Time to the target loss")
        made.table(*outcome_table(found))
        for one in found:
            made.subheading(f"{where(one.row)}, {one.ours}")
            series = against_time(one, curves)
            made.plot(line_plot("Smoothed training loss", series, "seconds", "loss"))
    if never_worse(rows):
        made.heading("The planner's choice beside plans given by hand")
        made.table(*worse_table(rows))
    if good(rows, "replay"):
        made.heading("Compute replayed: share of a free network's step")
        made.table(*replay_figures.table(rows))
    for row in (*good(rows, "steps"), *good(rows, "replay")):
        made.heading(f"Step times: {where(row)}, ρ {row['rho']:.2f}")
        names = shown_sides(row)
        times = [1e3 * row["sides"][name]["seconds"][1] for name in names]
        made.plot(bar_plot("Milliseconds a step", names, times, "ms"))
        made.table(*step_table(row))
    return made


def write(rows: Rows, recorded: Rows, folder: pathlib.Path) -> str:
    """train.html; returns the tables as text. `recorded`: curves beside those of `rows`."""
    curves = Curves([*recorded, *rows])
    found, missing = outcomes(rows, curves)
    said = sentences(rows)
    said += [
        f"{where(one.row)}: no recorded training of {', '.join(one.unknown)}"
        for one in found
        if one.unknown
    ]
    said += [*missing, *replay_figures.sentences(rows)]
    said += [f"{where(row)}: {row['error']}" for row in rows if "error" in row]
    parts = [EXPLAINED, *said]
    if found:
        parts.append(harness.markdown(*outcome_table(found)))
    if never_worse(rows):
        parts.append(harness.markdown(*worse_table(rows)))
    if good(rows, "replay"):
        parts.append(harness.markdown(*replay_figures.table(rows)))
    for row in (*good(rows, "steps"), *good(rows, "replay")):
        title = "compute replayed: " if row["case"] == "replay" else ""
        title += f"{where(row)}, ρ {row['rho']:.2f}; with no communication a step takes "
        title += f"{1e3 * row['sides']['alone']['seconds'][1]:,.1f} ms"
        parts += [title, harness.markdown(*step_table(row))]
    page(rows, curves, said).write(folder / "train.html")
    return "\n\n".join(parts)
