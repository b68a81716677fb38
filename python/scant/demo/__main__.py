"""``./dev demo``: the same script on gloo, on scant and with its plans, on links of one gigabit."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from scant.demo.summary import Run, build_page, table
from scant.lab import Lab, LabError, LinkOptions, UsageError
from scant.lab.lab import RankProcess
from scant.lab.units import format_rate, parse_rate
from scant.report.text import render

# Name -> the script's options.
WAYS = {
    "gloo": ["--backend", "gloo"],
    "gloo fp16": ["--backend", "gloo", "--average", "fp16"],
    "PowerSGD": ["--backend", "gloo", "--average", "powersgd-4"],
    "scant": ["--backend", "scant"],
    "scant.wrap": ["--backend", "scant", "--average", "wrap"],
}
DEFAULT_WAYS = ("gloo", "scant", "scant.wrap")
WORKLOAD = "a character transformer of 3.2 million parameters, AdamW"
RUN_LOG = "run.jsonl"
PATIENCE_S = 120.0  # without a step, before the run is given up
# After a rank failed: has rank 0 written its last line? gloo keeps its threads beyond
# destroy_process_group, and rarely one of them aborts an interpreter that is leaving. The training
# is whole by then, and so are its figures.
LAST_LINE_S = 2.0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rate", default="1gbit", help="of each host's link; 'none' for no limit")
    steps = os.environ.get("SCANT_DEMO_STEPS", "120")
    parser.add_argument("--steps", type=int, default=steps, help="of each run (120)")
    text = f"of {', '.join(WAYS)}; PowerSGD is of rank 4 ({' '.join(DEFAULT_WAYS)})"
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=DEFAULT_WAYS, metavar="WAY", help=text
    )
    parser.add_argument("--out", default="out/demo", help="folder for the report (out/demo)")
    parser.add_argument("--script", default="examples/char_transformer.py")
    return parser.parse_args(argv)


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


def progress_text(run: Run, steps: int, megabytes: float | None) -> str:
    if not run.rows:
        return f"{run.backend:>10}  starting"
    row = run.rows[-1]
    wire = "" if megabytes is None else f"  {megabytes:8.1f} MB sent by a host"
    return (
        f"{run.backend:>10}  step {int(row['step']) + 1}/{steps}  loss {row['loss']:.3f}  "
        f"{1e3 * row['step_s']:5.0f} ms a step{wire}"
    )


def check(run: Run, processes: Sequence[RankProcess], errors: IO[bytes]) -> None:
    """Raises RuntimeError unless the training came to its end."""
    failed = [process.rank for process in processes if process.poll()]
    if run.whole and not any(process.poll() is None for process in processes):
        for rank in failed:
            print(
                f"{run.backend}: rank {rank} failed while leaving, after all steps", file=sys.stderr
            )
        return
    errors.seek(0)
    tail = errors.read().decode(errors="replace").strip().splitlines()[-12:]
    what = f"rank {failed[0]} failed" if failed else f"no step for {PATIENCE_S:.0f} s"
    raise RuntimeError("\n".join([f"{run.backend}: {what}", *tail]))


def train(lab: Lab, backend: str, arguments: argparse.Namespace, folder: pathlib.Path) -> Run:
    """One run in the lab; raises RuntimeError when a rank fails."""
    run = Run(backend)
    log = folder / f"{backend.replace(' ', '-')}.jsonl"
    log.unlink(missing_ok=True)
    before = lab.bytes() if lab.isolated else []
    command = [sys.executable, arguments.script, *WAYS[backend]]
    if backend == "scant.wrap":
        command += ["--run-log", str(folder / RUN_LOG)]
    command += ["--steps", str(arguments.steps), "--log", str(log)]
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed below)
    processes = lab.run(command, stdout=errors, stderr=errors)
    progress = Progress()
    offset, heard, failed = 0, time.monotonic(), 0.0
    try:
        while any(process.poll() is None for process in processes):
            time.sleep(0.1)
            seen, now = offset, time.monotonic()
            offset = read_rows(log, run, offset)
            heard = now if offset != seen else heard
            sent: float | None = None
            if lab.isolated:
                sent = sum(end[0] - was[0] for end, was in zip(lab.bytes(), before, strict=True))
                sent = sent / lab.hosts / 1e6
            progress.show(progress_text(run, arguments.steps, sent))
            if not failed and any(process.poll() for process in processes):
                failed = now
            if now - heard > PATIENCE_S or (
                failed and not run.whole and now - failed > LAST_LINE_S
            ):
                break
        read_rows(log, run, offset)
        check(run, processes, errors)
    finally:
        for process in processes:
            process.kill()
            process.wait(10)
            process.close()
        errors.close()
    if lab.isolated:
        run.sent_bytes = [end[0] - was[0] for end, was in zip(lab.bytes(), before, strict=True)]
    progress.show(
        progress_text(run, arguments.steps, run.mb_per_step and run.mb_per_step * len(run.rows)),
        True,
    )
    return run


def open_lab(arguments: argparse.Namespace) -> tuple[Lab, str]:
    limit = None if arguments.rate == "none" else parse_rate(arguments.rate)
    link = LinkOptions(rate_bits_per_second=limit)
    speed = "links without a limit" if limit is None else f"links of {format_rate(limit)}"
    try:
        return Lab(arguments.ranks, link), f"{arguments.ranks} hosts in network namespaces, {speed}"
    except LabError as error:
        print(
            f"no lab ({error});\non loopback now: only scant is slowed, so compare nothing",
            file=sys.stderr,
        )
        return Lab(arguments.ranks, link, mode="loopback"), f"{arguments.ranks} ranks on loopback"


def prepare(folder: pathlib.Path) -> None:
    """The folder exists and takes a file, before minutes of training depend on it."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".probe"
    probe.write_bytes(b"x" * 65536)
    probe.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = parse(argv)
    folder = pathlib.Path(arguments.out)
    runs: list[Run] = []
    try:
        prepare(folder)
        lab, where = open_lab(arguments)
        with lab:
            setting = f"{where}; {WORKLOAD}"
            print(setting, file=sys.stderr)
            for backend in arguments.ways:
                runs.append(train(lab, backend, arguments, folder))
        recorded = {"setting": setting, "runs": [run.to_json() for run in runs]}
        (folder / "demo.json").write_text(json.dumps(recorded))
        build_page(runs, setting).write(folder / "report.html")
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; finished runs: {len(runs)} of {len(arguments.ways)}, "
            f"their steps are in {folder}/",
            file=sys.stderr,
        )
        return 130
    except OSError as error:
        print(f"demo: {error.filename or folder}: {error.strerror or error}", file=sys.stderr)
        return 1
    except (LabError, UsageError, RuntimeError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(render(*table(runs)))
    print(f"report: {folder / 'report.html'}")
    if "scant.wrap" in arguments.ways:
        print(f"what scant.wrap chose, and why: scant explain {folder / RUN_LOG}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
