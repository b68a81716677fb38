"""One training of the demo's script in the lab, watched while it runs."""

from __future__ import annotations

import json
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from scant.demo.summary import Run
from scant.lab import Lab
from scant.lab.lab import RankProcess

PATIENCE_S = 120.0  # without a step, before the run is given up
# gloo keeps its threads beyond destroy_process_group: rarely one of them aborts an interpreter that
# is leaving, or keeps it from leaving. The training is whole by then, and so are its figures.
LEAVE_S = 20.0  # for a rank to leave, after rank 0's last line
LAST_LINE_S = 2.0  # for rank 0's last line, after a rank failed


class Progress:
    """One line that is written anew on a terminal, a line every few seconds elsewhere."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._next = 0.0

    def show(self, text: str, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now < self._next:
            return
        self._next = now + (0.2 if self._tty else 5.0)
        width = shutil.get_terminal_size().columns - 1
        start, end = ("\r\x1b[K", "\n" if last else "") if self._tty else ("", "\n")
        print(start + text[:width], end=end, file=sys.stderr, flush=True)


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


def progress_text(run: Run, steps: int, sent: Sequence[int]) -> str:
    if not run.rows:
        return f"{run.backend:>10}  starting"
    row = run.rows[-1]
    wire = f"  {statistics.mean(sent) / 1e6:8.1f} MB sent by a host" if sent else ""
    return (
        f"{run.backend:>10}  step {int(row['step']) + 1}/{steps}  loss {row['loss']:.3f}  "
        f"{1e3 * row['step_s']:5.0f} ms a step{wire}"
    )


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


def train(lab: Lab, name: str, command: Sequence[str], steps: int, folder: pathlib.Path) -> Run:
    """One run of ``command`` (script and options) in the lab; raises RuntimeError when a rank
    fails."""
    run = Run(name)
    log = folder / f"{name.replace(' ', '-')}.jsonl"
    log.unlink(missing_ok=True)
    counters = Counters(lab)
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed below)
    whole = [sys.executable, *command, "--steps", str(steps), "--log", str(log)]
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
            progress.show(progress_text(run, steps, sent))
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
    progress.show(progress_text(run, steps, run.sent_bytes), True)
    return run
