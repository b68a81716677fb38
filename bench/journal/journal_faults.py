"""Ranks killed at random moments and journals damaged, again and again: every run must resume.

    ./dev bench journal_faults
    ./dev bench journal_faults --runs 20 --faults 0 --seed 7

A run trains a small model on two ranks with scant.Journal. One rank or all are killed with SIGKILL
a random time after a random step; or the journal's folder is damaged while nobody writes. Then the
ranks start again, are perhaps killed again, and go on to the end. A run is right when each start
finds a whole state that lacks no step rank 0 had completed, with the hash of parameters and
optimizer that was told at that step (fast), or ends with the hash of a run that nothing happened to
(exact); after damage: with the newest state that the damage left, and its place named.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import io
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness

STEPS = 40
PLANS = ("plain", "q4", "1% q4")
BASE_EVERY: list[int | str] = [3, 7, 20, "auto"]
FAULTS = ("full disk", "file size limit", "torn write", "flipped bit", "missing segment")
DELAY_MS_MAX = 12.0  # about four steps
AGAIN = 0.3  # share of runs that are killed twice
CLEAN = 0.25  # share of damaged journals whose training had ended by itself
TMPFS_BYTES = (200_000, 700_000)  # from less than a base to less than three and their logs
FILE_BYTES = (1_000, 45_000)  # always less than a file of the second base

DEFAULTS: harness.Defaults = {"runs": (200, 6), "faults": (50, 4)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument

    def words(name: str, text: str) -> str:
        return f"{text} {harness.default_text(DEFAULTS, name)}"

    add("--quick", action="store_true", help="a short run, to see that everything works")
    add("--runs", type=int, metavar="N", help=words("runs", "with a kill"))
    add("--faults", type=int, metavar="N", help=words("faults", "with a damaged journal"))
    text = "of the moments and places (default: %(default)s)"
    add("--seed", type=int, default=1, metavar="N", help=text)
    text = "folder for rows and table (default: %(default)s)"
    add("--out", default="out/bench", metavar="FOLDER", help=text)
    text = "where journals are written (default: the system's for temporary files)"
    add("--disk", metavar="FOLDER", help=text)
    arguments = parser.parse_args()
    harness.apply_defaults(arguments, DEFAULTS)
    for name in ("runs", "faults"):
        if getattr(arguments, name) < 0:
            parser.error(f"--{name}: {getattr(arguments, name)} is below 0")
    # What harness.run_cases goes through: one machine, two ranks.
    arguments.networks, arguments.ranks, arguments.gate = ["loopback"], [2], True
    return arguments


# ---- one run --------------------------------------------------------------------------------


@dataclass
class Run:
    """Starts of one training, and what is known of its states."""

    training: Any
    reference: dict[int, str]  # hash after each step of a run that nothing happened to
    known: dict[int, str] = field(default_factory=dict)  # of this run, as the ranks told them
    reached: int = 0  # by rank 0: what a start must not lack
    ahead: int = 0  # steps that only another rank had completed, and that were taken again
    starts: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def start(self, moment: Any = None, damage: Any = None, may_fail: bool = False) -> bool:
        """Ranks start and go on until the moment or the end; False: there is nothing to go on."""
        from journal_ranks import launch

        done = launch(self.training, moment)
        restored = [one for rank in range(2) if (one := done.find("restored", rank)) is not None]
        row = {
            "moment": None if moment is None else vars(moment),
            "restored": restored[0]["step"] if restored else None,
            "base": restored[0]["base"] if restored else None,
            "reached": [done.reached(rank) for rank in range(2)],
            "said": done.failures(),
            "seconds": round(done.seconds, 3),
        }
        self.starts.append(row)
        if done.hung:
            self.wrong.append(f"start {len(self.starts)} hung")
        told = restored[0]["problems"] if restored else done.failures()
        if damage is not None and damage.named and not any(damage.named in one for one in told):
            self.wrong.append(f"{damage.text}: {damage.named} is not named in {told}")
        for one in restored:
            self._judge(one, damage, restored[0])
        if not restored and damage is not None and damage.newest is None:
            return False
        self._note(done, restored)
        complete = done.reached() == self.training.steps or (
            bool(restored) and restored[0]["step"] == self.training.steps
        )
        if moment is None and not may_fail and (not complete or any(done.codes)):
            self.wrong.append(f"start {len(self.starts)} ended early: {done.codes} {row['said']}")
        return True

    def _judge(self, one: dict[str, Any], damage: Any, first: dict[str, Any]) -> None:
        """What a rank has restored."""
        step, fast = one["step"], self.training.mode == "fast"
        where = f"start {len(self.starts)}, step {step}"
        if (one["step"], one["hash"]) != (first["step"], first["hash"]):
            self.wrong.append(f"{where}: ranks restored different states")
        if damage is not None:
            if step != (damage.newest or 0):
                self.wrong.append(f"{damage.text}: step {step} restored, not {damage.newest}")
        elif fast and step < self.reached:
            self.wrong.append(f"{where}: rank 0 had completed {self.reached}")
        hashes = self.known if fast else self.reference
        expected = hashes.get(step)
        if step == 0 and one["base"] is None:
            return  # from the beginning
        if expected is None and step > max(hashes, default=0) + 1:
            self.wrong.append(f"{where}: nobody was there")
        if expected is not None and one["hash"] != expected:
            self.wrong.append(f"{where}: hash {one['hash']}, not {expected}")

    def _note(self, done: Any, restored: list[dict[str, Any]]) -> None:
        """What the ranks told of their steps."""
        if restored:
            begun = restored[0]["step"]
            if self.training.mode == "fast":
                self.ahead = max(self.ahead, *(max(self.known, default=0) - begun, 0))
            self.known = {step: one for step, one in self.known.items() if step <= begun}
            self.known.setdefault(begun, restored[0]["hash"])
        for events in done.events:
            for event in events:
                if event["what"] != "step":
                    continue
                told = self.known.setdefault(event["step"], event["hash"])
                if told != event["hash"]:
                    self.wrong.append(f"ranks differ after step {event['step']}")
        self.reached = max(done.reached(), restored[0]["step"] if restored else 0)
        exact = self.training.mode == "exact" or len(self.starts) == 1
        for step, one in self.known.items() if exact else ():
            if one != self.reference.get(step, one):
                self.wrong.append(f"step {step}: hash {one}, uninterrupted {self.reference[step]}")

    def check_end(self) -> None:
        """The journal of a training that has ended is whole."""
        from scant.journal import cli

        with contextlib.redirect_stdout(io.StringIO()) as said:
            status = cli.main(["verify", self.training.path])
        if status != 0 or f"step {self.training.steps} can be restored" not in said.getvalue():
            self.wrong.append(f"at the end: {said.getvalue().splitlines()[-3:]}")


def moment_of(draw: random.Random, ranks: Sequence[int] | None = None) -> Any:
    """Somewhere between the start of the ranks and the end of the training."""
    from journal_ranks import Moment

    if ranks is None:
        ranks = draw.choice([(0,), (1,), (0, 1), (0, 1)])
    return Moment(draw.randrange(STEPS + 2), draw.uniform(0, DELAY_MS_MAX), tuple(ranks))


def run_kill(run: Run, draw: random.Random) -> str:
    run.start(moment_of(draw))
    if draw.random() < AGAIN:
        run.start(moment_of(draw))
    run.start()
    run.check_end()
    return "resumed"


def run_damage(run: Run, draw: random.Random, do: Callable[..., Any]) -> tuple[str, str]:
    """Everything stands still, then the folder is damaged, then training goes on."""
    clean = draw.random() < CLEAN
    begun = replace(moment_of(draw, (0, 1)), events=draw.randrange(6, STEPS))
    run.start(None if clean else begun)
    path = pathlib.Path(run.training.path)
    damage = do(path, draw)
    lacks = (damage.newest or 0) < run.reached
    if damage.named:
        check_told(run, damage)
    run.training = replace(run.training, steps=STEPS + 10)
    again = draw.random() < 0.5
    if not run.start(moment_of(draw) if again else None, damage):
        return damage.text, "refused, and told why"
    if again:
        run.start()
    if not damage.named:
        return damage.text, "older state" if lacks else "resumed"
    return damage.text, ("older state" if lacks else "newest state") + ", damage told"


def check_told(run: Run, damage: Any) -> None:
    """The command names the damage, too."""
    from scant.journal import cli

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = cli.main(["verify", run.training.path])
    if status == 0 or damage.named not in out.getvalue():
        run.wrong.append(f"{damage.text}: verify says {status} {out.getvalue()}")


def run_full(run: Run, draw: random.Random, tmpfs: bool) -> tuple[str, str]:
    """A disk on which there is no room left at some time, and then again."""
    import journal_damage

    with contextlib.ExitStack() as stack:
        if tmpfs:
            disk = pathlib.Path(run.training.path).parent / "disk"
            size = draw.randrange(*TMPFS_BYTES)
            stack.enter_context(journal_damage.small_disk(disk, size))
            run.training = replace(run.training, path=str(disk / "j"))
            text = f"tmpfs of {size} bytes"
        else:
            size = draw.randrange(*FILE_BYTES)
            text = f"files of at most {size} bytes (RLIMIT_FSIZE)"
            run.training = replace(run.training, file_bytes_max=size)
        run.start(may_fail=True)
        said = run.starts[-1]["said"]
        if not any("journal: cannot" in one or "journal: a file" in one for one in said):
            run.wrong.append(f"{text}: ranks said {said}")
        if tmpfs:
            journal_damage.enlarge(disk)
        run.training = replace(run.training, file_bytes_max=0)
        run.start()
        run.check_end()
    return text, "stopped and told, then resumed"


# ---- all runs -------------------------------------------------------------------------------


def options_of(draw: random.Random, path: pathlib.Path, mode: str) -> Any:
    from journal_ranks import Training

    return Training(
        str(path),
        draw.choice(PLANS),
        STEPS,
        mode,
        base_every=draw.choice(BASE_EVERY),
        unsynced_steps=draw.choice([1, 4, 16]),
        keep_bases=draw.choice([1, 2, 3]),
    )


@functools.cache
def reference(plan: str) -> dict[int, str]:
    """Hashes after each step of a training that nothing happens to, without a journal."""
    from journal_ranks import Training, launch

    done = launch(Training("", plan, STEPS))
    steps = [one for one in done.events[0] if one["what"] == "step"]
    assert len(steps) == STEPS and done.codes == [0, 0], done
    return {one["step"]: one["hash"] for one in steps}


def one_run(kind: str, number: int, arguments: argparse.Namespace) -> harness.Row:
    """The row of one run; its seed alone decides everything but the machine's pace."""
    import journal_damage

    seed = f"{arguments.seed}-{kind}-{number}"
    draw = random.Random(seed)
    mode = "fast" if kind != "kill" or draw.random() < 0.5 else "exact"
    text, outcome = "", ""
    with tempfile.TemporaryDirectory(prefix="scant-faults-", dir=arguments.disk) as folder:
        training = options_of(draw, pathlib.Path(folder) / "j", mode)
        run = Run(training, reference(training.plan))
        began = time.monotonic()
        if kind == "kill":
            outcome = run_kill(run, draw)
        elif kind in ("full disk", "file size limit"):
            text, outcome = run_full(run, draw, kind == "full disk")
        else:
            names = {
                "torn write": journal_damage.torn,
                "flipped bit": journal_damage.flipped,
                "missing segment": journal_damage.missing,
            }
            text, outcome = run_damage(run, draw, names[kind])
        seconds = time.monotonic() - began
    return {
        "case": "journal_faults", "fault": kind, "run": number, "seed": seed, "mode": mode,
        "plan": training.plan, "base_every": training.base_every,
        "unsynced_steps": training.unsynced_steps, "keep_bases": training.keep_bases,
        "damage": text, "starts": run.starts, "ahead": run.ahead,
        "outcome": "wrong" if run.wrong else outcome, "wrong": run.wrong, "seconds": seconds,
    }  # fmt: skip


def run_all(arguments: argparse.Namespace, recorder: harness.Recorder) -> None:
    import journal_ranks

    journal_ranks.warm_up()
    kinds = list(FAULTS)
    if os.geteuid() != 0:
        kinds.remove("full disk")
        print("no root: no run on a small tmpfs, more with a limit of file sizes", file=sys.stderr)
    wanted = [("kill", number) for number in range(arguments.runs)]
    wanted += [(kinds[number % len(kinds)], number) for number in range(arguments.faults)]
    where = harness.machine()
    for kind, number in wanted:
        row = one_run(kind, number, arguments)
        recorder.add({**row, **where})
        if row["wrong"]:
            print(f"{row['seed']}: {'; '.join(row['wrong'])}", file=sys.stderr, flush=True)


def table(rows: Sequence[harness.Row]) -> str:
    head = ["fault", "mode", "runs", "starts", "outcomes", "wrong", "steps taken again", "s a run"]
    groups: dict[tuple[str, str], list[harness.Row]] = collections.defaultdict(list)
    for row in rows:
        fault = row["fault"]
        if fault == "kill":
            ranks = {len(one["moment"]["ranks"]) for one in row["starts"] if one["moment"]}
            fault = "kill -9 of all ranks" if ranks == {2} else "kill -9 of one rank"
            fault = "kill -9 twice" if len(row["starts"]) > 2 else fault
        groups[fault, row["mode"]].append(row)
    lines = []
    for (fault, mode), of in sorted(groups.items()):
        outcomes = collections.Counter(row["outcome"] for row in of)
        lines.append(
            [
                fault, mode, str(len(of)), str(sum(len(row["starts"]) for row in of)),
                ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())),
                str(sum(bool(row["wrong"]) for row in of)),
                str(max(row["ahead"] for row in of)) if mode == "fast" else "since the base",
                f"{statistics.median(row['seconds'] for row in of):.2f}",
            ]
        )  # fmt: skip
    return harness.markdown(head, lines)


def gate(rows: Sequence[harness.Row], wanted: int) -> list[str]:
    """Always applied: a wrong run is a fault of the journal."""
    missed = [f"{row['seed']}: {'; '.join(row['wrong'])}" for row in rows if row["wrong"]]
    if len(rows) < wanted:
        missed.append(f"{len(rows)} rows of {wanted}")
    return missed


def main() -> int:
    """Returns the exit status."""
    arguments = parse()
    return harness.run_cases(
        "journal_faults",
        arguments,
        lambda _network, _ranks, recorder: run_all(arguments, recorder),
        lambda rows, _: table(rows),
        lambda rows: gate(rows, arguments.runs + arguments.faults),
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
