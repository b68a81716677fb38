"""A run as a page: its words, and plots of what happened step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from scant import amounts
from scant.report import Page, Series, line_plot, point_plot
from scant.runlog import served_picture, words
from scant.runlog.history import History
from scant.runlog.lines import Guard, Plan, Profile, Steps

__all__ = ["draw"]

_PLACES_MAX = 400  # across a plot of 640 units; of more, the least and the most are drawn
_MARKS_MAX = 24
_DATA_LINES_MAX = 5_000  # newest of a kind, about 2 MB


def draw(history: History) -> Page:
    """The whole page."""
    run = history.run
    if run is not None and run.serves is not None:
        return served_picture.draw(history)
    title = f"Scant run of {words.started(run)}" if run is not None else "Scant run"
    page = Page(title, words.run_line(run) if run is not None else "")
    _now(page, history)
    marks = _marks(history)
    _plots(page, history, marks)
    _choices(page, history)
    page.heading("Predicted and measured")
    page.points(words.outcome_lines(history))
    rows = words.predictions(history)
    if rows:
        page.table(words.PREDICTIONS, rows)
    page.heading("The guard")
    page.points(words.guard_lines(history))
    if history.notes:
        page.heading("Notes")
        page.points([f"step {amounts.whole(note.step)}: {note.text}" for note in history.notes])
    _data(page, history)
    return page


def _now(page: Page, history: History) -> None:
    last = history.last
    if last is not None:
        page.heading(f"At step {amounts.whole(last.step)}, after {amounts.span(last.at_s)}")
    page.points(words.now_lines(history))
    if history.profile is not None:
        page.heading("What was measured")
        page.points(words.measured_lines(history.profile))


def _marks(history: History) -> list[tuple[float, str]]:
    changes = [(float(one.plan.step), str(i)) for i, one in enumerate(history.changes, 1)]
    guards = [(float(one.step), "guard") for one in history.guards]
    return [*changes[-_MARKS_MAX:], *guards[-_MARKS_MAX:]]


def _plots(page: Page, history: History, marks: Sequence[tuple[float, str]]) -> None:
    page.heading("Step by step")
    if not history.steps:
        page.text("No step was reported yet.")
        return
    if marks:
        page.text(
            "Dotted lines with a number are plans, listed below under this number; with the word "
            "guard, places where the guard acted."
        )
    times = [
        _plain(history),
        _series("predicted", history.steps, _predicted),
        _series("measured", history.steps, lambda one: one.step_s),
    ]
    longest = max((max(one.y) for one in times if one.y), default=0.0)
    scale, unit = (1.0, "seconds a step") if longest >= 1 else (1e3, "ms a step")
    _line(page, "Step time", times, scale, unit, marks, True)
    exposed = [_series("exposed", history.steps, lambda one: one.exposed_s)]
    _line(page, "Exposed communication", exposed, 1e3, "ms a step", marks, True)
    sent = [
        _series("sent", history.steps, lambda one: one.sent_bytes),
        _series("dense", history.steps, lambda one: one.dense_bytes),
    ]
    _line(page, "Sent by a rank", sent, 1e-6, "MB a step", marks, True)
    kept = [_series("kept", history.steps, lambda one: one.kept)]
    _line(page, "Energy kept", kept, 100.0, "% of the energy", marks, False)
    rate = [_series("link", history.steps, lambda one: one.bytes_per_s)]
    usual = amounts.median(rate[0].y) or 0.0
    scale, unit = (8e-9, "Gb/s") if 8 * usual >= 1e9 else (8e-6, "Mb/s")
    _line(page, "Link rate", rate, scale, unit, marks, True)


def _predicted(one: Steps) -> float | None:
    return None if one.measuring else one.predicted_s


def _series(name: str, lines: Sequence[Steps], value: Callable[[Steps], float | None]) -> Series:
    known = [(float(one.step), number) for one in lines if (number := value(one)) is not None]
    return _thinned(name, known)


def _plain(history: History) -> Series:
    """Plain's step time: what was said last holds until something else is said."""
    said: list[Profile | Guard] = [*history.profiles, *history.guards]
    known = sorted((float(one.step), one.plain_s) for one in said if one.plain_s is not None)
    places: list[tuple[float, float]] = []
    for step, value in known:
        if places:
            places.append((step, places[-1][1]))
        places.append((step, value))
    if places and history.steps:
        places.append((max(float(history.steps[-1].step), places[-1][0]), places[-1][1]))
    return _thinned("plain", places)


def _thinned(name: str, places: Sequence[tuple[float, float]]) -> Series:
    """At most twice so many points as a plot can show: of each stretch the least and the most."""
    drawn = list(places)
    if len(drawn) > 2 * _PLACES_MAX:
        drawn = []
        for i in range(_PLACES_MAX):
            first = i * len(places) // _PLACES_MAX
            stretch = range(first, (i + 1) * len(places) // _PLACES_MAX)
            ends = {min(stretch, key=lambda at: places[at][1])}
            ends.add(max(stretch, key=lambda at: places[at][1]))
            drawn += [places[at] for at in sorted(ends)]
    return Series(name, [x for x, _ in drawn], [y for _, y in drawn])


def _line(
    page: Page,
    title: str,
    series: Sequence[Series],
    scale: float,
    unit: str,
    marks: Sequence[tuple[float, str]],
    from_zero: bool,
) -> None:
    drawn = [
        dataclasses.replace(one, y=[scale * value for value in one.y]) for one in series if one.x
    ]
    page.subheading(title)
    page.plot(line_plot(title, drawn, "step", unit, from_zero, marks))


def _choices(page: Page, history: History) -> None:
    page.heading("What was chosen, and why")
    changes = history.changes
    if not changes:
        page.text("No plan is in the log yet.")
        return
    for number, one in enumerate(changes, 1):
        if number == 1 or number > len(changes) - _MARKS_MAX:
            page.subheading(f"{number}. {words.choice_title(one)}")
            page.points(words.choice_lines(one))
    _candidates(page, history.choices[-1].plan)


def _candidates(page: Page, plan: Plan) -> None:
    rows = (plan.chosen, *plan.others)
    page.heading(words.candidates_title(plan))
    points = [
        (1e3 * row.step_s, 100 * row.kept, f"{i}" if i else "chosen")
        for i, row in enumerate(rows)
        if row.step_s is not None and row.kept is not None
    ]
    known = plan.chosen.step_s is not None and plan.chosen.kept is not None
    x_name, y_name = "predicted ms a step", "% of the energy kept"
    page.plot(point_plot("Candidates", points, 0 if known else -1, x_name, y_name, 100.0))
    page.text("To the left is faster, further up keeps more. Numbers are rows of the table.")
    page.table(words.CANDIDATES, _numbered(plan))


def _numbered(plan: Plan) -> list[list[str]]:
    chosen, *others = words.candidates(plan)
    return [chosen, *([f"{i}. {name}", *rest] for i, (name, *rest) in enumerate(others, 1))]


def _data(page: Page, history: History) -> None:
    """The numbers that were drawn; of a long run, the newest."""
    value: dict[str, Any] = {
        "run": None if history.run is None else dataclasses.asdict(history.run),
        "profiles": [dataclasses.asdict(one) for one in history.profiles[-_DATA_LINES_MAX:]],
        "plans": [dataclasses.asdict(one.plan) for one in history.choices[-_DATA_LINES_MAX:]],
        "steps": [vars(one) for one in history.steps[-_DATA_LINES_MAX:]],
        "guards": [dataclasses.asdict(one) for one in history.guards[-_DATA_LINES_MAX:]],
    }
    page.data("run", value)
