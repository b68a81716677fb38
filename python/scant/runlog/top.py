"""``scant top run.jsonl``: a run as it goes, redrawn when its log grows."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence

from scant import amounts
from scant.errors import reason
from scant.report.text import sparkline
from scant.runlog import serving
from scant.runlog.explain import terminal
from scant.runlog.history import History
from scant.runlog.lines import Guard, Line, Note, Plan, Run, Served, Steps
from scant.runlog.reader import BadLogError, Follower, read
from scant.runlog.words import run_line, started

__all__ = ["main"]

_INTERVAL_S_MIN, _INTERVAL_S_MAX = 0.05, 3600.0
_BARS_MAX = 44  # a terminal of 80 columns also shows what they range over
_LABEL = 10  # columns of what a row is called
_UP, _ERASE_LINE, _ERASE_BELOW = "\x1b[{}A\r", "\x1b[K", "\x1b[J"


def main(argv: Sequence[str]) -> int:
    """Returns the exit status; Ctrl-C is how this program ends, so it is 0 then."""
    parser = argparse.ArgumentParser(
        prog="scant top",
        description="Show a run of scant.torch.wrap(model, log=...) or scant serve --log as it "
        "goes; Ctrl-C ends it.",
    )
    parser.add_argument("log", help="the run log; may not be there yet")
    parser.add_argument("--once", action="store_true", help="show what is there now and end")
    parser.add_argument(
        "--interval", type=_interval, default=1.0, metavar="S", help="seconds between looks (1)"
    )
    arguments = parser.parse_args(argv)
    try:
        with terminal():
            if arguments.once:
                print("\n".join(snapshot(History.of(read(arguments.log)), arguments.log)))
            else:
                _Live(arguments.log, arguments.interval).run()
    except BadLogError as error:
        print(f"scant top: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        print(f"scant top: {arguments.log}: {reason(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not _INTERVAL_S_MIN <= value <= _INTERVAL_S_MAX:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number from {_INTERVAL_S_MIN:g} to {_INTERVAL_S_MAX:g}"
        )
    return value


class _Live:
    """Looks at the file again and again: redraws a terminal, else prints a line for each line."""

    def __init__(self, path: str, interval_s: float) -> None:
        self._path = path
        self._interval_s = interval_s
        self._history = History()
        self._redraws = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._drawn = 0  # lines that the next picture replaces

    def run(self) -> None:
        waiting = False
        with Follower(self._path) as follower:
            while True:
                lines = follower.poll()
                for line in lines:
                    self._add(line)
                if self._history.run is None and not waiting:
                    waiting = True
                    print(f"scant top: waiting for {self._path}", file=sys.stderr, flush=True)
                if self._redraws and self._history.run is not None:
                    self._draw()
                sys.stdout.flush()
                time.sleep(self._interval_s)

    def _add(self, line: Line) -> None:
        if isinstance(line, Run):
            self._history = History()
        self._history.add(line)
        if not self._redraws:
            text = one_line(line, self._history)
            if text:
                print(text)

    def _draw(self) -> None:
        size = shutil.get_terminal_size()
        shown = snapshot(self._history, self._path)[: max(size.lines - 1, 1)]
        up = _UP.format(self._drawn) if self._drawn else ""
        text = "".join(f"{line[: size.columns - 1]}{_ERASE_LINE}\n" for line in shown)
        sys.stdout.write(f"{up}{text}{_ERASE_BELOW}")
        self._drawn = len(shown)


def one_line(line: Line, history: History) -> str:
    """A line of the log for a terminal that cannot be redrawn; empty for what is not shown."""
    step = f"step {amounts.whole(line.step)}"
    if isinstance(line, Run):
        return f"run of {started(line)}: {run_line(line)}"
    if isinstance(line, Plan):
        word = "plan" if line.changed else "same plan"
        return f"{step}: {word}: {line.chosen.text}: {line.why}"
    if isinstance(line, Guard):
        return f"{step}: guard: {line.why}"
    if isinstance(line, Note):
        return f"{step}: {line.text}"
    if isinstance(line, Served):
        return serving.one_line(line)
    if isinstance(line, Steps):
        return (
            f"{step}: {amounts.duration(line.step_s)} (predicted "
            f"{amounts.duration(line.predicted_s)}, plain {amounts.duration(history.plain_s)}), "
            f"exposed {amounts.duration(line.exposed_s)}, "
            f"{amounts.size(line.sent_bytes)} of {amounts.size(line.dense_bytes)}, "
            f"kept {amounts.share(line.kept)}, ρ {amounts.number(line.rho)}, "
            f"{amounts.rate(line.bytes_per_s)}, {line.plan or '?'}"
        )
    return ""


def snapshot(history: History, path: str) -> list[str]:
    """The whole view, a line each."""
    run, last = history.run, history.last
    if run is None or last is None:
        return [f"{path}: no run yet"]
    age = _age_s(path)
    ago = "" if age is None else f", last heard {amounts.span(max(age, 0.0))} ago"
    lines = [
        f"{path}: {run_line(run)}",
        f"host {run.host}, process {run.pid or '?'}: step {amounts.whole(last.step)} "
        f"after {amounts.span(last.at_s)}{ago}",
        "",
    ]
    lines += [f"{name:{_LABEL}}{text}" for name, text in _rows(history)]
    return lines


def _rows(history: History) -> list[tuple[str, str]]:
    if history.run is not None and history.run.serves is not None:
        return serving.rows(history.served, _BARS_MAX)
    if not history.steps:
        return [("steps", "none reported yet")]
    one = history.steps[-1]
    faster = amounts.fold(history.plain_s, one.step_s)
    less = amounts.fold(one.dense_bytes, one.sent_bytes)
    waiting = amounts.fold(one.exposed_s, one.step_s)
    recent = [each.step_s for each in history.steps if each.step_s is not None][-_BARS_MAX:]
    spread = ""
    if recent:
        low, high = amounts.duration(min(recent)), amounts.duration(max(recent))
        spread = f"  {low} to {high}" if low != high else f"  {low}"
    rows = [
        ("plan", (one.plan or "?") + (" (measuring)" if one.measuring else "")),
        (
            "step",
            f"{amounts.duration(one.step_s)}, predicted {amounts.duration(one.predicted_s)} "
            f"({amounts.error(one.error)}), plain {amounts.duration(history.plain_s)} "
            f"({amounts.times(faster)})",
        ),
        ("exposed", f"{amounts.duration(one.exposed_s)}, {amounts.share(waiting)} of a step"),
        (
            "sent",
            f"{amounts.size(one.sent_bytes)} a step, dense "
            f"{amounts.size(one.dense_bytes)} ({amounts.times(less)})",
        ),
        (
            "kept",
            f"{amounts.share(one.kept)} of the energy, residual {amounts.times(one.residual)} "
            "the gradient",
        ),
        ("link", f"{amounts.rate(one.bytes_per_s)}, ρ {amounts.number(one.rho)}"),
        ("steps", sparkline(recent) + spread),
    ]
    if history.guards:
        guard = history.guards[-1]
        rows.append(("guard", f"step {amounts.whole(guard.step)}: {guard.why}"))
    return rows


def _age_s(path: str) -> float | None:
    try:
        return time.time() - os.stat(path).st_mtime  # noqa: PTH116 - of whatever kind it is
    except OSError:
        return None
