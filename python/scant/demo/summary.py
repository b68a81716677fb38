"""What a run of the demo measured, the table of two runs and the page that shows them."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from scant.report import Page, Series, bar_plot, line_plot

WARM_UP_STEPS = 3  # the first steps build buckets and connections


@dataclasses.dataclass
class Run:
    """One way of averaging, and its training."""

    backend: str
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    sent_bytes: list[int] = dataclasses.field(default_factory=list)  # by host, from the kernel
    cpu_s: float = 0.0  # of all ranks together

    @staticmethod
    def from_json(entry: dict[str, Any]) -> Run:
        return Run(**{field.name: entry[field.name] for field in dataclasses.fields(Run)})

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def whole(self) -> bool:
        """All ranks took all steps: the last line, written after them, is there."""
        return self.cpu_s > 0

    @property
    def step_s(self) -> list[float]:
        """Of each step after the warm-up: none when the run was that short."""
        return [row["step_s"] for row in self.rows[WARM_UP_STEPS:]]

    def quartiles(self) -> tuple[float, float, float] | None:
        """Of the step times, in seconds; None without any."""
        values = self.step_s
        if len(values) < 2:
            return (values[0], values[0], values[0]) if values else None
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return low, middle, high

    @property
    def mb_per_step(self) -> float | None:
        """Sent by an average host; unknown where the lab has no counters."""
        if not self.sent_bytes or not self.rows:
            return None
        return statistics.mean(self.sent_bytes) / len(self.rows) / 1e6

    @property
    def final_loss(self) -> float:
        tail = [row["loss"] for row in self.rows[-10:]]
        return statistics.mean(tail) if tail else float("nan")


def _megabytes(run: Run) -> str:
    return "–" if run.mb_per_step is None else f"{run.mb_per_step:.2f}"


def _step_ms(run: Run) -> str:
    quartiles = run.quartiles()
    if quartiles is None:
        return "–"
    low, middle, high = (1e3 * value for value in quartiles)
    return f"{middle:.0f} ({low:.0f}–{high:.0f})"


def table(runs: list[Run]) -> tuple[list[str], list[list[str]]]:
    """Ratios to the first run, then absolutes."""
    base = runs[0]
    head = ["", *(run.backend for run in runs)]
    median = [(run.quartiles() or (0.0, 0.0, 0.0))[1] for run in runs]

    def ratio(values: list[float]) -> list[str]:
        known = values[0] > 0
        return [f"{values[0] / value:.2f}×" if known and value else "–" for value in values]

    rows = [
        [f"step time, {base.backend} ÷ this", *ratio(median)],
        [f"CPU, {base.backend} ÷ this", *ratio([run.cpu_s for run in runs])],
        ["step, median (quartiles), ms", *(_step_ms(run) for run in runs)],
        ["sent by a host, MB a step", *(_megabytes(run) for run in runs)],
        ["CPU of all ranks, s", *(f"{run.cpu_s:.1f}" for run in runs)],
        ["loss, mean of the last 10 steps", *(f"{run.final_loss:.3f}" for run in runs)],
        ["steps", *(str(len(run.rows)) for run in runs)],
    ]
    return head, rows


def _ecdf(run: Run) -> Series:
    values = sorted(1e3 * s for s in run.step_s)
    share = [100 * (i + 1) / len(values) for i in range(len(values))]
    return Series(run.backend, values, share)


def build_page(runs: list[Run], setting: str) -> Page:
    """The report: table, loss over time, bytes, step times, and the numbers themselves."""
    page = Page("Scant demo: " + " against ".join(run.backend for run in runs), setting)
    head, rows = table(runs)
    page.table(head, rows)
    page.text(
        "The runs came one after the other, with the same seed, data and model. gloo and scant "
        "move plain dense f32: expect equal loss and bytes, and, where the link is the limit, "
        "equal time. scant.wrap sends what hides under compute, as it measured in its first steps."
    )
    page.heading("Loss against time")
    curves = [
        Series(r.backend, [row["wall_s"] for row in r.rows], [row["loss"] for row in r.rows])
        for r in runs
    ]
    page.plot(line_plot("Loss against time", curves, "seconds", "loss, nats a byte"))
    timed = [_ecdf(run) for run in runs if run.step_s]
    if timed:
        page.heading("Step time, share of steps that are faster")
        page.plot(line_plot("Step times", timed, "milliseconds", "% of steps"))
    known = [run for run in runs if run.mb_per_step is not None]
    if known:
        page.heading("Bytes that a host sent, as its kernel counted them")
        page.plot(
            bar_plot(
                "Bytes",
                [r.backend for r in known],
                [r.mb_per_step or 0.0 for r in known],
                "MB a step",
            )
        )
    page.data("runs", [run.to_json() for run in runs])
    return page
