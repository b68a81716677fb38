"""One training of the demo's script in the lab, watched while it runs."""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from scant.demo.summary import Run
from scant.lab import Lab
from scant.lab.lab import RankProcess
from scant.report.losses import WINDOW

PATIENCE_S = 120.0  # without a step, before the run is given up
# gloo keeps its threads beyond destroy_process_group: rarely one of them aborts an interpreter that
# is leaving, or keeps it from leaving. The training is whole by then, and so are its figures.
LEAVE_S = 20.0  # for a rank to leave, after rank 0's last line
LAST_LINE_S = 2.0  # for rank 0's last line, after a rank failed


def columns() -> int:
    """Of the terminal behind standard error."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def fitting(parts: Sequence[tuple[int, str]], room: int) -> str:
    """The parts in their order, without as many of the least important ones as have no room.

    Each has its importance in front; the most important one is cut only where it stands alone.
    """
    kept = list(parts)
    while len(kept) > 1 and len("  ".join(text for _, text in kept)) > room:
        kept.remove(min(kept, key=lambda part: part[0]))
    return "  ".join(text for _, text in kept)[:room]


class Progress:
    """One line that is written anew on a terminal; elsewhere a line every few seconds."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._next = 0.0
        self._shown = ""

    def show(self, parts: Sequence[tuple[int, str]], last: bool = False) -> None:
        now = time.monotonic()
        if not last and now < self._next:
            return
        self._next = now + (0.2 if self._tty else 5.0)
        # One column stays free: a full line would go on in the next one, and be left behind there.
        text = fitting(parts, columns() - 1 if self._tty else 1000)
        if self._tty:
            print("\r\x1b[K" + text, end="\n" if last else "", file=sys.stderr, flush=True)
        elif text != self._shown:
            print(text, file=sys.stderr, flush=True)
        self._shown = text


class Counters:
    """What each host sent since this object was made; nothing where the lab has no counters."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._before = lab.bytes() if lab.isolated else []
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)

    def sent(self) -> list[int]:
        ends = self._lab.bytes() if self._before else []
        return [end[0] - was[0] for end, was in zip(ends, self._before, strict=True)]

    def mark(self, now: float, sent: Sequence[int]) -> None:
        """A step was seen to be over at ``now``, with ``sent`` bytes."""
        if sent:
            self._last = (now, statistics.mean(sent) / 1e6)
            self._first = self._first or self._last

    def mb_per_s(self) -> float | None:
        """Sent by an average host from the first mark to the last."""
        if self._first is None or self._last == self._first:
            return None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])


def read_rows(log: pathlib.Path, run: Run, offset: int) -> int:
    """Adds the whole lines that came since ``offset``; returns the next offset."""
    if not log.exists():
        return offset
    with log.open("rb") as file:
        file.seek(offset)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.splitlines():
        row = json.loads(line)
        if "step" in row:
            run.rows.append(row)
        else:
            run.cpu_s = row["cpu_s"]
    return offset + len(whole)


def progress_parts(
    run: Run, steps: int, sent: Sequence[int], until: float | None = None
) -> list[tuple[int, str]]:
    """What is known of a training that runs, each with its importance."""
    name = (5, f"{run.backend:>10}")
    if not run.rows:
        return [name, (4, "starting")]
    row = run.rows[-1]
    taken = int(row["step"]) + 1
    goal = "" if until is None else f" of {until:.3f}"
    parts = [
        name,
        (4, f"step {taken}" if until is not None else f"step {taken}/{steps}"),
        (3, f"loss {row['loss']:.3f}{goal}"),
        (2, f"{1e3 * row['step_s']:5.0f} ms a step"),
    ]
    if sent:
        parts.append((1, f"{statistics.mean(sent) / 1e6:8.1f} MB sent by a host"))
    return parts


def check(run: Run, processes: Sequence[RankProcess], errors: IO[bytes]) -> None:
    """Raises RuntimeError unless the training came to its end."""
    failed = [process.rank for process in processes if process.poll()]
    if run.whole:
        for process in processes:
            if process.poll() != 0:
                how = "failed while leaving" if process.poll() else "does not leave"
                print(f"{run.backend}: rank {process.rank} {how}, after all steps", file=sys.stderr)
        return
    errors.seek(0)
    tail = errors.read().decode(errors="replace").strip().splitlines()[-12:]
    what = f"rank {failed[0]} failed" if failed else f"no step for {PATIENCE_S:.0f} s"
    raise RuntimeError("\n".join([f"{run.backend}: {what}", *tail]))


def train(
    lab: Lab,
    name: str,
    command: Sequence[str],
    steps: int,
    folder: pathlib.Path,
    until: float | None = None,
) -> Run:
    """One run of ``command`` (script and options) in the lab, over when its smoothed loss is at
    ``until`` or after ``steps``; raises RuntimeError when a rank fails."""
    run = Run(name)
    log = folder / f"{name.replace(' ', '-')}.jsonl"
    log.unlink(missing_ok=True)
    counters = Counters(lab)
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed below)
    whole = [sys.executable, *command, "--steps", str(steps), "--log", str(log)]
    if until is not None:
        whole += ["--until", repr(until), "--window", str(WINDOW)]
    processes = lab.run(whole, stdout=errors, stderr=errors)
    progress = Progress()
    offset, heard, failed = 0, time.monotonic(), 0.0
    try:
        while any(process.poll() is None for process in processes):
            time.sleep(0.1)
            seen, stepped = offset, len(run.rows)
            offset = read_rows(log, run, offset)
            now, sent = time.monotonic(), counters.sent()
            heard = now if offset != seen else heard
            if len(run.rows) > stepped:
                counters.mark(now, sent)
            progress.show(progress_parts(run, steps, sent, until))
            if not failed and any(process.poll() for process in processes):
                failed = now
            if now - heard > (LEAVE_S if run.whole else PATIENCE_S):
                break
            if failed and not run.whole and now - failed > LAST_LINE_S:
                break
        read_rows(log, run, offset)
        check(run, processes, errors)
    finally:
        for process in processes:
            process.kill()
            process.wait(10)
            process.close()
        errors.close()
    run.sent_bytes, run.link_mb_per_s = counters.sent(), counters.mb_per_s()
    progress.show(progress_parts(run, steps, run.sent_bytes, until), True)
    return run
