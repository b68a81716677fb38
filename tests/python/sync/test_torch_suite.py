"""PyTorch's own distributed_test.py; exclusions.txt says what is left out and why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")

SUITE = Path(__file__).parent / "torch_suite"
# How many passed with torch 2.13 without CUDA; fewer means that something is skipped silently.
PASSED_WITH_2_13 = {("named", 2): 66, ("gloo", 4): 88, ("mpi", 4): 90}


def excluded(mode: str) -> set[str]:
    """The tests that this mode leaves out."""
    rows = [line.split(maxsplit=2) for line in (SUITE / "exclusions.txt").read_text().splitlines()]
    return {row[1] for row in rows if row and row[0] == mode}


def test_every_exclusion_has_a_reason() -> None:
    for line in (SUITE / "exclusions.txt").read_text().splitlines():
        assert line.startswith("#") or len(line.split(maxsplit=2)) == 3, line


def run(mode: str, size: int, tests: list[str], timeout_s: float) -> Counter[str]:
    """Run the tests (all when the list is empty) and count the outcomes."""
    command = [sys.executable, str(SUITE / "run_suite.py"), mode, str(size), *tests]
    environment = {**os.environ, "SCANT_EXCLUDE": ",".join(sorted(excluded(mode)))}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"not done after {timeout_s} s\n{output[-6000:]}", pytrace=False)
    counts: Counter[str] = Counter()
    for line in output.splitlines():
        if line.startswith("@test "):
            counts[line.split(maxsplit=2)[2].split()[0]] += 1
    print(f"{mode}, {size} ranks: {dict(counts)}")
    assert process.returncode == 0 and counts["failed"] == 0, output[-12_000:]
    return counts


def test_fast_subset() -> None:
    lines = (SUITE / "fast.txt").read_text().splitlines()
    tests = [line for line in lines if line and not line.startswith("#")]
    counts = run("named", 2, tests, 200)
    assert counts["passed"] == len(tests), counts


@pytest.mark.long
@pytest.mark.parametrize(("mode", "size"), list(PASSED_WITH_2_13))
def test_all(mode: str, size: int) -> None:
    counts = run(mode, size, [], 1500)
    assert counts["passed"] > 0
    if torch.__version__.startswith("2.13") and not torch.cuda.is_available():
        assert counts["passed"] >= PASSED_WITH_2_13[(mode, size)], counts
