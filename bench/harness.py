"""Cases measured in blocks A B B A, as JSON lines: ratios with their spread first, absolutes after.

A row is one case: what was measured, on what machine, every block's numbers and the quantiles of
the ratios of neighbouring blocks. Tables and plots are made from rows alone.
"""

from __future__ import annotations

import json
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]


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


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
