"""Cases measured in blocks A B B A, as JSON lines: ratios with their spread first, absolutes after.

A row is one case: what was measured, on what machine, every block's numbers and the quantiles of
the ratios of neighbouring blocks. Tables and plots are made from rows alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

Row = dict[str, Any]
Sample = dict[str, float]  # seconds, cpu and wire (bytes sent) of one call, on one rank

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "char_transformer.py"

# Links of the lab, one rank a host. On loopback all ranks share one host instead.
NETWORKS: dict[str, str | None] = {
    "loopback": None,
    "unshaped": None,
    "1gbit": "1gbit",
    "100mbit": "100mbit",
}


# An option's value when it is not given: without and with --quick.
Defaults = dict[str, tuple[Any, Any]]


def all_reduce_bytes(size: float, ranks: int) -> float:
    """What a rank sends at least, of an array of so many bytes."""
    return 2 * (ranks - 1) / ranks * size


def default_text(defaults: Defaults, name: str) -> str:
    """For --help."""
    full, quick = (
        " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        for value in defaults[name]
    )
    return f"(default: {full}; with --quick: {quick})"


def apply_defaults(arguments: argparse.Namespace, defaults: Defaults) -> None:
    """Fills in what the command line left out."""
    for name, (full, quick) in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else full)


class Options:
    """The options that benchmarks have in common, each with its own default in --help."""

    def __init__(self, parser: argparse.ArgumentParser, defaults: Defaults) -> None:
        self._parser = parser
        self._defaults = defaults
        parser.add_argument(
            "--quick", action="store_true", help="a short run, to see that everything works"
        )

    def add(self, name: str, text: str, **more: Any) -> None:
        """One whose default depends on --quick."""
        words = f"{text} {default_text(self._defaults, name.lstrip('-').replace('-', '_'))}"
        self._parser.add_argument(name, help=words.replace("%", "%%"), **more)

    def add_ranks(self) -> None:
        self.add("--ranks", "numbers of ranks", type=int, nargs="+", metavar="N")

    def add_networks(self, names: Sequence[str]) -> None:
        text = f"of {', '.join(names)}"
        self.add("--networks", text, nargs="+", choices=names, metavar="NETWORK")

    def parse(self, written: str, at_least_1: Sequence[str]) -> argparse.Namespace:
        """Adds what all end with, reads the command line, and refuses what is below 1."""
        add = self._parser.add_argument
        text = f"folder for {written} (default: %(default)s)"
        add("--out", default="out/bench", metavar="FOLDER", help=text)
        add("--gate", action="store_true", help="fail when a stated figure is missed")
        add("--worker", help=argparse.SUPPRESS)
        arguments = self._parser.parse_args()
        apply_defaults(arguments, self._defaults)
        for name in at_least_1:
            value = getattr(arguments, name)
            least = min(value) if isinstance(value, list | tuple) else value
            if least < 1:
                self._parser.error(f"--{name.replace('_', '-')}: {least} is below 1")
        return arguments


def quantiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def cpu_model() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def machine() -> Row:
    """What a row says of where it was measured."""
    return {
        "cpu": cpu_model(),
        "kernel": platform.release(),
        "commit": commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def ratios(baseline: Sequence[float], candidate: Sequence[float]) -> list[float]:
    """Of the i-th blocks: neighbours in time in an A B B A order."""
    return [a / b for a, b in zip(baseline, candidate, strict=True) if b > 0]


def sent_bytes() -> int:
    """What this host's interfaces sent, loopback aside, from the kernel."""
    total = 0
    for line in pathlib.Path("/proc/self/net/dev").read_text().splitlines()[2:]:
        name, numbers = line.split(":", 1)
        if name.strip() != "lo":
            total += int(numbers.split()[8])
    return total


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def block(
    call: Callable[[], object],
    count: int,
    settle: Callable[[], object],
    last: Callable[[], object] | None = None,
) -> Sample:
    """So many calls in a row on this rank; the mean of one. ``last`` is part of the last one.

    ``settle`` is a barrier, outside of the time: bytes that still wait in this host's queue when
    its last call returns are on the wire once everybody has what they are part of.
    """
    cpu, wire, began = cpu_seconds(), sent_bytes(), time.perf_counter()
    for _ in range(count):
        call()
    if last is not None:
        last()
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    settle()
    sent = sent_bytes() - wire
    return {"seconds": seconds / count, "cpu": cpu / count, "wire": sent / count}


def palindrome(names: Sequence[str]) -> list[str]:
    """A B B A for two, A B C C B A for three: a drift of the machine hits all alike."""
    return [*names, *reversed(names)]


def of_all_ranks(ranks: Sequence[Sequence[Sample]]) -> Row:
    """One side's blocks: the slowest rank's time, the CPU seconds and wire bytes of all."""
    blocks = list(zip(*ranks, strict=True))
    seconds = [max(sample["seconds"] for sample in one) for one in blocks]
    wire = statistics.median(sum(sample["wire"] for sample in one) for one in blocks)
    return {
        "seconds": quantiles(seconds),
        "samples": seconds,
        "cpu_s": statistics.median(sum(sample["cpu"] for sample in one) for one in blocks),
        "wire_bytes_per_rank": wire / len(ranks),
    }


def load_example() -> Any:
    """The demo's script as a module: its model, its samples and its step."""
    spec = importlib.util.spec_from_file_location("char_transformer", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def open_lab(network: str, ranks: int) -> Any:
    """The lab of one of NETWORKS."""
    from scant.lab import Lab, LinkOptions
    from scant.lab.units import parse_rate

    if network == "loopback":
        return Lab(1, LinkOptions(), processes_per_host=ranks)
    rate = NETWORKS[network]
    return Lab(ranks, LinkOptions(rate_bits_per_second=parse_rate(rate) if rate else None))


def read_rows(paths: Iterable[pathlib.Path]) -> list[Row]:
    """Of files of JSON lines."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def draw_rows(description: str | None, draw: Callable[[list[Row]], str]) -> int:
    """Command line of a script that makes a picture of rows."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0] or None)
    parser.add_argument("rows", nargs="+", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    arguments.out.write_text(draw(read_rows(arguments.rows)), encoding="utf-8")
    return 0


def model_of(row: Row) -> str:
    """The model of a training's row. A row that names none is of the transformer."""
    return str(row.get("model", "transformer"))


def run_workers(lab: Any, script: str, plan: Row, patience_s: float) -> tuple[list[Row], list[int]]:
    """The script with --worker on each rank of a lab: what rank 0 handed in, and exit codes.

    A worker gets the plan and where its lines go: worker.py.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = pathlib.Path(folder) / "results"
        told = json.dumps({**plan, "results": str(results)})
        processes = lab.run([sys.executable, script, "--worker", told], stdout=2)
        codes = [process.wait(patience_s) for process in processes]
        return read_rows([results]) if results.exists() else [], codes


def leave() -> NoReturn:
    """Ends a worker that has handed in its numbers, without tearing the interpreter down.

    gloo keeps its threads beyond destroy_process_group, and rarely one of them aborts an
    interpreter that is leaving.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Recorder:
    """Writes rows as they come, so that an interrupted run keeps what it has."""

    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(json.dumps(row), file=self._file, flush=True)

    def close(self) -> None:
        self._file.close()


def record(
    name: str,
    arguments: argparse.Namespace,
    run: Callable[[Recorder], None],
    report: Callable[[Sequence[Row], pathlib.Path], str],
    gate: Callable[[Sequence[Row]], list[str]],
) -> int:
    """Writes the rows that ``run`` adds, and a table; returns the exit status.

    An interrupted run reports what it has. ``report`` returns the table and may write more.
    """
    folder = pathlib.Path(arguments.out)
    recorder = Recorder(folder / f"{name}.jsonl")
    try:
        run(recorder)
    finally:
        recorder.close()
        text = report(recorder.rows, folder)
        (folder / f"{name}.md").write_text(text + "\n")
        print(text)
        print(f"all that was written: {folder}/{name}.*", file=sys.stderr)
    missed = gate(recorder.rows) if arguments.gate else []
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed or any("error" in row for row in recorder.rows) else 0


def run_cases(
    name: str,
    arguments: argparse.Namespace,
    run_network: Callable[[str, int, Recorder], None],
    report: Callable[[Sequence[Row], pathlib.Path], str],
    gate: Callable[[Sequence[Row]], list[str]],
) -> int:
    """Every network with every number of ranks, as ``record`` does it."""

    def run(recorder: Recorder) -> None:
        for network in arguments.networks:
            for ranks in arguments.ranks:
                print(f"{name}: {network}, {ranks} ranks", file=sys.stderr)
                run_network(network, ranks, recorder)

    return record(name, arguments, run, report, gate)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
