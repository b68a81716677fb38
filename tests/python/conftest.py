"""Runs worker programs as ranks: one launch per worker file and world size, one test per case.

A worker file (PLANE/workers/*.py) has functions ``case_*``; every rank runs all of them in order
and writes one line per case. A launch has a deadline; what is left then is killed and its cases
fail.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# Jobs that a shell put into the background ignore Ctrl-C, and so would every program under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def folders() -> list[str]:
    """The folders of tests, each a plane or a part of the package; also marks of their tests."""
    return sorted({path.parent.name for path in HERE.glob("*/test_*.py")})


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--name``: what ``./dev test --only`` asks for; unlike ``-k`` it looks at no folder."""
    parser.addoption("--name", help="pattern in the names of a file, a test or its parameters")


def pytest_configure(config: pytest.Config) -> None:
    for folder in folders():
        config.addinivalue_line("markers", f"{folder}: tests of tests/python/{folder}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks each test by its folder; drops those that ``--name`` does not mean."""
    for item in items:
        item.add_marker(item.path.parent.name)
    # What launches ranks takes longest. Begun first, it leaves no process alone at the end.
    items.sort(key=lambda item: not (item.path.parent / "workers").is_dir())
    name = config.getoption("--name")
    if name is None:
        return
    kept = [item for item in items if re.search(name, item.path.stem) or re.search(name, item.name)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The cases of one launch go to one process, and those of one file that launches nothing."""
    from xdist.scheduler import LoadScopeScheduling

    class ByLaunch(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            worker = re.search(r"\[(\w+\.py)", nodeid)
            return nodeid.split("::")[0] + (worker[1] if worker else "")

    return ByLaunch(config, log)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Launch:
    """What the ranks of one launch did."""

    returncodes: list[int | None] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    timed_out: bool = False
    seconds: float = 0.0

    def case_results(self, rank: int) -> dict[str, str]:
        """Case name to "ok", "skip: why" or the traceback."""
        results: dict[str, str] = {}
        for line in self.outputs[rank].splitlines():
            if line.startswith("@case "):
                record = json.loads(line[len("@case ") :])
                results[record["name"]] = record["outcome"]
        return results

    def text(self) -> str:
        """All that the ranks printed."""
        parts = []
        for rank, output in enumerate(self.outputs):
            parts.append(f"--- rank {rank}, exit {self.returncodes[rank]} ---\n{output[-6000:]}")
        if self.timed_out:
            parts.append("--- killed at the deadline ---")
        return "\n".join(parts)


def rank_environment(rank: int, size: int, port: int, store: str) -> dict[str, str]:
    """The environment of one rank, as torchrun would set it."""
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "SCANT_STORE": store,
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
    }


def launch_ranks(
    arguments: Sequence[str],
    size: int,
    timeout_s: float,
    env: dict[str, str] | None = None,
    during: Callable[[list[subprocess.Popen[str]]], Any] | None = None,
) -> Launch:
    """Run ``python *arguments`` as ranks, wait for all, kill what is left at the deadline.

    ``during`` is called once all are started; tests that kill a rank do it there.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="scant-test-") as directory:
        store = str(Path(directory) / "store")
        files = [(Path(directory) / f"rank{rank}.log").open("w+") for rank in range(size)]
        begin = time.monotonic()
        processes = [
            subprocess.Popen(
                [sys.executable, *arguments],
                env={**rank_environment(rank, size, port, store), **(env or {})},
                stdout=files[rank],
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            for rank in range(size)
        ]
        result = Launch()
        try:
            if during is not None:
                during(processes)
            for process in processes:
                left = timeout_s - (time.monotonic() - begin)
                try:
                    process.wait(max(left, 0.01))
                except subprocess.TimeoutExpired:
                    result.timed_out = True
        finally:
            for process in processes:
                if process.poll() is None:
                    # Python stack traces first: they say where it hung.
                    process.send_signal(signal.SIGABRT)
                    try:
                        process.wait(3)
                    except subprocess.TimeoutExpired:
                        os.killpg(process.pid, signal.SIGKILL)
                        process.wait()
        result.seconds = time.monotonic() - begin
        for rank, file in enumerate(files):
            file.flush()
            file.seek(0)
            result.outputs.append(file.read())
            result.returncodes.append(processes[rank].returncode)
            file.close()
        return result


def worker_path(name: str) -> Path:
    """Of a worker file, whose name is its own in all planes."""
    (found,) = HERE.glob(f"*/workers/{name}")
    return found


def case_names(worker: str) -> list[str]:
    """The cases of a worker file, without importing it."""
    text = worker_path(worker).read_text()
    return re.findall(r"^def (case_\w+)\(", text, flags=re.MULTILINE)


_launches: dict[tuple[str, int], Launch] = {}


def launch_of(worker: str, size: int, timeout_s: float = 240.0) -> Launch:
    """The one launch of this worker on so many ranks."""
    key = (worker, size)
    if key not in _launches:
        _launches[key] = launch_ranks([str(worker_path(worker))], size, timeout_s)
    return _launches[key]


def check_case(worker: str, size: int, case: str, timeout_s: float = 240.0) -> None:
    """Judges one case of the worker."""
    launch = launch_of(worker, size, timeout_s)
    outcomes = [launch.case_results(rank).get(case) for rank in range(size)]
    failed = [
        f"{case}: rank {rank}\n{outcome}"
        for rank, outcome in enumerate(outcomes)
        if outcome and outcome != "ok" and not outcome.startswith("skip: ")
    ]
    if failed:  # on all ranks: the others may merely have lost the one that knows why
        pytest.fail("\n".join(failed), pytrace=False)
    for rank, outcome in enumerate(outcomes):
        if outcome is None:
            pytest.fail(f"{case}: rank {rank} did not finish it\n{launch.text()}", pytrace=False)
    skipped = [outcome for outcome in outcomes if outcome and outcome.startswith("skip: ")]
    if skipped:
        pytest.skip(skipped[0].removeprefix("skip: "))


def check_exit(worker: str, size: int) -> None:
    """All ranks left with status 0, in time."""
    launch = launch_of(worker, size)
    assert launch.returncodes == [0] * size and not launch.timed_out, launch.text()


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory for this test."""
    yield tmp_path
