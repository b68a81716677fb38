"""What the demo measured: tunings, trainings, the table of them and the page that shows all."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from scant.report import Page, Racer, Series, bar_plot, line_plot, race_plot
from scant.report.losses import TARGET_AT, WINDOW, smoothed, steps_to, target_loss

WARM_UP_STEPS = 3  # the first steps build buckets and connections
STEPS_LEAST = 20  # a shorter training has no target worth the name
FASTER_SHOWN = 0.95  # of the steps, in the plot of their times

MEANS = {
    "gloo": "gloo: DistributedDataParallel, exact f32.",
    "gloo fp16": "gloo fp16: with torch's fp16 hook, which rounds what is sent.",
    "PowerSGD": "PowerSGD: on gloo, with torch's hook that sends two factors of each matrix and "
    "keeps what they miss for the next step; the first two steps are exact; all in one bucket, "
    "since on gloo the hook's messages of several may cross.",
    "scant": "scant: DistributedDataParallel on scant in place of gloo, exact f32.",
    "scant.wrap": "scant.wrap: scant.torch.wrap, which chooses what to send by what it measures, "
    "and keeps the rest for the next step; its measuring is part of the run.",
}


def target_of(losses: Sequence[float]) -> float | None:
    """What every way has to reach, from the losses of the first; None where they are too few."""
    return target_loss(losses) if len(losses) >= STEPS_LEAST else None


@dataclasses.dataclass
class Tuning:
    """What was tried before the trainings, and what they use."""

    name: str
    step_s: list[tuple[int, float]]  # each value's median
    chosen: int
    why: str

    @staticmethod
    def from_json(entry: dict[str, Any] | None) -> Tuning | None:
        if entry is None:
            return None
        return Tuning(**{field.name: entry[field.name] for field in dataclasses.fields(Tuning)})

    def sentence(self) -> str:
        tried = ", ".join(f"{value}: {1e3 * seconds:.0f} ms" for value, seconds in self.step_s)
        return f"{self.name} – {tried}. Taken: {self.chosen}, {self.why}."


@dataclasses.dataclass
class Run:
    """One way of averaging, and its training."""

    backend: str
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    sent_bytes: list[int] = dataclasses.field(default_factory=list)  # by host, from the kernel
    cpu_s: float = 0.0  # of all ranks together, from the first step to the last
    link_mb_per_s: float | None = None  # sent by an average host from the first step to the last
    size: str = ""  # of its buckets or its factors

    @staticmethod
    def from_json(entry: dict[str, Any]) -> Run:
        return Run(**{field.name: entry[field.name] for field in dataclasses.fields(Run)})

    @property
    def whole(self) -> bool:
        """All ranks took all steps: the last line, written after them, is there."""
        return self.cpu_s > 0

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.rows]

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

    def seconds_to(self, target: float | None) -> float | None:
        """From the start of the first step to the end of the one whose smoothed loss is there."""
        if target is None:
            return None
        steps = steps_to(self.losses, target)
        return None if steps is None else self.rows[steps - 1]["wall_s"]

    @property
    def mb_per_step(self) -> float | None:
        """Sent by an average host; unknown where the lab has no counters."""
        if not self.sent_bytes or not self.rows:
            return None
        return statistics.mean(self.sent_bytes) / len(self.rows) / 1e6

    @property
    def final_loss(self) -> float:
        return smoothed(self.losses)[-1] if self.rows else float("nan")


@dataclasses.dataclass
class Demo:
    """All of one call: what ``demo.json`` holds."""

    setting: str = ""
    limit_mb_per_s: float | None = None  # of each host's link
    untuned: str = ""  # why nothing was tuned
    bucket: Tuning | None = None
    rank: Tuning | None = None
    runs: list[Run] = dataclasses.field(default_factory=list)

    @staticmethod
    def from_json(entry: dict[str, Any]) -> Demo:
        runs = [Run.from_json(run) for run in entry["runs"]]
        bucket, rank = Tuning.from_json(entry["bucket"]), Tuning.from_json(entry["rank"])
        plain = {name: entry[name] for name in ("setting", "limit_mb_per_s", "untuned")}
        return Demo(**plain, bucket=bucket, rank=rank, runs=runs)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def tunings(self) -> list[Tuning]:
        return [found for found in (self.bucket, self.rank) if found]

    @property
    def target(self) -> float | None:
        """The loss that every way has to reach."""
        return target_of(self.runs[0].losses)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _ratios(values: Sequence[float | None]) -> list[str]:
    first = values[0]
    return [f"{first / value:.2f}×" if first and value else "–" for value in values]


def _times(demo: Demo) -> list[tuple[float, Run]]:
    """The ways that came to the target, the first one there first."""
    found = [(run.seconds_to(demo.target), run) for run in demo.runs]
    there = [(seconds, run) for seconds, run in found if seconds is not None]
    return sorted(there, key=lambda pair: pair[0])


def _tuned_name(run: Run) -> str:
    return f"{run.backend} ({run.size})" if run.size.startswith("rank") else run.backend


def headline(demo: Demo) -> str:
    """Who was there first, in a sentence; whoever it was."""
    times = _times(demo)
    if demo.target is None or len(demo.runs) < 2 or not times:
        return f"Below {STEPS_LEAST} steps, or of one way alone, nothing is compared."
    base = demo.runs[0].backend
    base_s = demo.runs[0].seconds_to(demo.target)
    (best_s, best), *rest = times
    text = f"{_tuned_name(best)} is first at the same loss ({demo.target:.2f}): {best_s:.0f} s"
    if base_s and best.backend != base:
        text += f", {base_s / best_s:.1f} times as fast as {base} ({base_s:.0f} s)"
    others = [f"{_tuned_name(run)} {seconds:.0f} s" for seconds, run in rest if run.backend != base]
    return text + (f"; {', '.join(others)}." if others else ".")


def _race(demo: Demo) -> str:
    base = demo.runs[0].backend
    base_s = demo.runs[0].seconds_to(demo.target)
    racers = []
    for number, run in enumerate(demo.runs):
        seconds = run.seconds_to(demo.target)
        text = f"not there after {len(run.rows)} steps"
        if seconds is not None:
            text = f"{seconds:.1f} s"
            if base_s and run.backend != base:
                text += f", {base_s / seconds:.2f}× as fast as {base}"
        racers.append(Racer(run.backend, seconds, text, number))
    return race_plot("Time to the same loss", racers)


def table(demo: Demo) -> tuple[list[str], list[list[str]]]:
    """Ratios to the first run, then absolutes."""
    runs, target = demo.runs, demo.target
    base = runs[0].backend
    seconds = [run.seconds_to(target) for run in runs]
    quartiles = [run.quartiles() for run in runs]
    middle = [found[1] if found else None for found in quartiles]
    spread = [f"{1e3 * q[0]:.0f}–{1e3 * q[2]:.0f}" if q else "–" for q in quartiles]
    cpu = [run.cpu_s / len(run.rows) if run.rows else None for run in runs]
    limit = demo.limit_mb_per_s
    link = "no limit" if limit is None else f"limit {limit:.4g}"
    rates = [run.link_mb_per_s if len(run.rows) >= STEPS_LEAST else None for run in runs]
    rows = [
        [f"time to the same loss, {base} ÷ this", *_ratios(seconds)],
        [f"step time, {base} ÷ this", *_ratios(middle)],
        [f"CPU a step, {base} ÷ this", *_ratios(cpu)],
        [f"seconds to a loss of {_number(target, 3)}", *(_number(s, 1) for s in seconds)],
        ["step, median, ms", *(_number(s and 1e3 * s, 0) for s in middle)],
        ["step, quartiles, ms", *spread],
        ["sent by a host, MB a step", *(_number(run.mb_per_step, 2) for run in runs)],
        [f"a host sends, MB/s ({link})", *(_number(rate, 1) for rate in rates)],
        ["CPU of all ranks, s a step", *(_number(seconds, 2) for seconds in cpu)],
        [f"loss, mean of the last {WINDOW} steps", *(f"{run.final_loss:.3f}" for run in runs)],
        ["steps", *(str(len(run.rows)) for run in runs)],
        ["buckets, or PowerSGD's rank", *(run.size for run in runs)],
    ]
    return ["", *(run.backend for run in runs)], rows


def _ecdf(run: Run) -> Series:
    """Without the slowest steps, or a single one would leave the rest no room."""
    values = sorted(1e3 * s for s in run.step_s)
    shown = range(math.ceil(FASTER_SHOWN * len(values)))
    share = [100 * (i + 1) / len(values) for i in shown]
    return Series(run.backend, [values[i] for i in shown], share)


def _loss_plot(demo: Demo) -> str:
    lines = [
        Series(run.backend, [row["wall_s"] for row in run.rows], smoothed(run.losses))
        for run in demo.runs
    ]
    if demo.target is not None:
        end = max(run.rows[-1]["wall_s"] for run in demo.runs)
        lines.append(Series("target", [0.0, end], [demo.target] * 2))
    return line_plot("Loss against time", lines, "seconds", "loss, nats a byte")


def _explained(demo: Demo) -> list[str]:
    base = demo.runs[0].backend
    lines = [MEANS[run.backend] for run in demo.runs if run.backend in MEANS]
    lines.append(
        "One training of each, one after the other, with the same seed, data and model: a tenth "
        "of the time may be noise, more on a busy machine, and one seed says little about small "
        "differences of loss."
    )
    if demo.target is None:
        lines.append(f"Below {STEPS_LEAST} steps no time to the same loss and no rate are given.")
    else:
        lines.append(
            f"The same loss: what {base} has after {TARGET_AT:.0%} of its steps, as the mean of "
            f"{WINDOW} steps. The others stop as soon as they have it; – is a way that did not "
            f"come that far in half as many steps again as {base} took."
        )
    lines.append(
        f"Step times leave out the first {WARM_UP_STEPS} steps. MB a step are those of the whole "
        "run, its start included; MB/s those between the ends of the first and the last step; both "
        "as the host's kernel counted them, with all headers."
    )
    return lines


def build_page(demo: Demo) -> Page:
    """The report: who was first, then all that shows why, and the numbers themselves."""
    runs = demo.runs
    names = [run.backend for run in runs]
    page = Page("Scant demo: " + ", ".join(names), demo.setting)
    page.headline(headline(demo))
    if demo.target is not None:
        page.heading(f"Time to a loss of {demo.target:.3f}")
        page.plot(_race(demo))
    page.heading(f"Loss against time, mean of {WINDOW} steps")
    page.plot(_loss_plot(demo))
    page.heading("All figures")
    page.table(*table(demo))
    timed = [_ecdf(run) for run in runs]
    if any(series.x for series in timed):
        page.heading(f"Step time, share of steps that are faster, up to {FASTER_SHOWN:.0%}")
        page.plot(line_plot("Step times", timed, "milliseconds", "% of steps"))
    sent = [run.mb_per_step for run in runs]
    if any(value is not None for value in sent):
        page.heading("Bytes that a host sent, as its kernel counted them")
        page.plot(bar_plot("Bytes", names, sent, "MB a step"))
    page.heading("How it was compared")
    page.points(_explained(demo))
    if demo.untuned or demo.tunings:
        page.heading("Tuned before, in short trainings in the same lab")
        page.points([tuning.sentence() for tuning in demo.tunings] or [f"Nothing: {demo.untuned}."])
    page.data("demo", demo.to_json())
    return page
