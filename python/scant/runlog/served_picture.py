"""A server's run as a page: what it served in all, and plots over time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from scant.report import Page, Series, line_plot
from scant.runlog import serving, words
from scant.runlog.history import History
from scant.runlog.lines import Served

__all__ = ["draw"]

_DATA_LINES_MAX = 5_000  # newest periods, about 2 MB

Value = Callable[[Served], float | None]
# Title, unit, factor, and the curves with their names.
_PLOTS: list[tuple[str, str, float, list[tuple[str, Value]]]] = [
    ("Tokens answered", "tokens/s", 1.0, [("tokens", lambda one: one.tokens_per_s)]),
    (
        "Time to the first token, and between later ones (means)", "ms", 1e3,
        [("first", lambda one: one.first_s), ("later", lambda one: one.token_s)],
    ),
    (
        "Requests at the end of a period", "requests", 1.0,
        [("running", lambda one: one.running), ("waiting", lambda one: one.waiting)],
    ),
    ("Memory for keys and values", "% in use", 100.0, [("used", lambda one: one.kv_used)]),
    ("Resident memory", "MB", 1e-6, [("resident", lambda one: one.rss_bytes)]),
]  # fmt: skip


def draw(history: History) -> Page:
    """The whole page."""
    run = history.run
    assert run is not None
    page = Page(f"Scant server of {words.started(run)}", words.run_line(run))
    page.heading("What it served")
    page.points(serving.totals(history.served))
    page.heading("Over time")
    if not history.served:
        page.text("No period was reported yet: there is one every 10 seconds.")
    for title, unit, factor, curves in _PLOTS if history.served else []:
        series = [_series(name, history.served, value, factor) for name, value in curves]
        page.subheading(title)
        drawn = [one for one in series if one.x]
        page.plot(line_plot(title, drawn, "seconds after the start", unit, True))
    page.data(
        "run",
        {
            "run": dataclasses.asdict(run),
            "served": [dataclasses.asdict(one) for one in history.served[-_DATA_LINES_MAX:]],
        },
    )
    return page


def _series(name: str, served: Sequence[Served], value: Value, factor: float) -> Series:
    known = [(one.at_s, factor * found) for one in served if (found := value(one)) is not None]
    return Series(name, [x for x, _ in known], [y for _, y in known])
