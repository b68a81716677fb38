"""Plans follow a link that drops from 1 Gb/s to 50 Mb/s and recovers, within 50 steps each."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import mode
from typing import Any

import pytest
from lab_support import needs_namespaces

pytest.importorskip("torch")

from scant.lab import Lab, LinkOptions
from scant.lab.units import parse_rate
from scant.runlog import Plan, Profile, Steps, read

WORKER = Path(__file__).parent / "workers" / "link_drop.py"
STEPS = 50
PATIENCE_S = 240.0  # for what takes some 15 s on an idle machine

pytestmark = pytest.mark.alone


class Reader:
    """The latest step that rank 0 printed."""

    def __init__(self, stream: Any) -> None:
        self.step = 0
        self.words: list[str] = []
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: Any) -> None:
        for line in iter(stream.readline, b""):
            words = line.decode().split()
            self.words = words
            if words[:1] == ["step"]:
                self.step = int(words[1])

    def join(self) -> None:
        self._thread.join(PATIENCE_S)


def wait_for(what: Any, processes: Any) -> Any:
    """The first value of ``what()`` that is not None."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        assert all(process.poll() in (None, 0) for process in processes), "a rank failed"
        found = what()
        if found is not None:
            return found
        time.sleep(0.1)
    raise AssertionError("nothing happened")


class Log:
    """The run log, which may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self, kind: type) -> list[Any]:
        if not self._path.exists():
            return []
        return [line for line in read(self._path) if isinstance(line, kind)]

    def settled(self) -> float | None:
        """Step of a period by a chosen plan."""
        return next((line.step for line in self.lines(Steps) if not line.measuring), None)

    def compressed(self) -> Any:
        """A period by a chosen plan that sent less than half of what plain does."""
        lines = [line for line in self.lines(Steps) if not line.measuring]
        return next((line for line in lines if line.sent_bytes < 0.5 * line.dense_bytes), None)

    def changed_after(self, step: float) -> Any:
        return next((line for line in self.lines(Plan) if line.changed and line.step > step), None)

    def after(self, step: float) -> Any:
        return next((line for line in self.lines(Steps) if line.step > step), None)


def end(folder: Path, processes: Any, reader: Reader) -> None:
    """The training looks whether its gradients were averaged, and ends."""
    (folder / "stop").touch()
    assert [process.wait(PATIENCE_S) for process in processes] == [0] * len(processes)
    reader.join()
    assert reader.words == ["whole"]


@needs_namespaces
def test_a_link_that_drops_and_recovers(tmp_path: Path) -> None:
    log = Log(tmp_path / "run.jsonl")
    fast, slow = (LinkOptions(parse_rate(rate)) for rate in ("1gbit", "50mbit"))
    with Lab(2, fast) as lab:
        processes = lab.run([sys.executable, str(WORKER), str(tmp_path)], stdout=subprocess.PIPE)
        reader = Reader(processes[0].stdout)
        wait_for(log.settled, processes)
        sent = []
        for link in (slow, fast):
            for host in range(2):
                lab.set_link(host, link)
            step = reader.step
            plan = wait_for(lambda step=step: log.changed_after(step), processes)
            assert plan.step <= step + STEPS, (plan, step)
            wait_for(lambda step=step: log.after(step + STEPS), processes)
            by_choice = [line for line in log.lines(Steps) if not line.measuring]
            sent.append(by_choice[-1].sent_bytes)
        end(tmp_path, processes, reader)
    assert sent[0] < 0.7 * sent[1], "fewer bytes on the slow link"


@pytest.mark.long
@needs_namespaces
def test_eight_ranks_of_which_one_computes_and_one_sends_slowly(tmp_path: Path) -> None:
    log = Log(tmp_path / "run.jsonl")
    with Lab(8, LinkOptions(parse_rate("1gbit"))) as lab:
        lab.set_link(5, LinkOptions(parse_rate("20mbit")))
        command = [sys.executable, str(WORKER), str(tmp_path), "2"]
        processes = lab.run(command, stdout=subprocess.PIPE)
        reader = Reader(processes[0].stdout)
        # Plain would take 2.7 s a step on the slow link; it may be tried, for a few steps.
        wait_for(log.compressed, processes)
        end(tmp_path, processes, reader)
    named = [line.slowest_rank for line in log.lines(Profile)]
    assert named, "no choice without a profile"
    assert mode(named) == 2, named  # it sleeps 0.4 s longer than the others in each step
