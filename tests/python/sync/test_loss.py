"""A lost peer is an exception that names it: never a crash, a hang or a silent wrong gradient."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import Launch, launch_ranks, worker_path

pytest.importorskip("torch")

NAMED = 7
DEADLINE_S = 60.0
# From the last step that all finished to the exception: the peer timeout of 1.5 s and slack for a
# busy machine. The C++ e2e tests measure the 2 s bound itself.
NOTICE_S = 10.0


def last_stamp(launch: Launch, rank: int, mark: str) -> float:
    """When this rank printed this mark for the last time."""
    lines = [line for line in launch.outputs[rank].splitlines() if line.startswith(mark)]
    assert lines, launch.text()
    return float(lines[-1].split()[2 if mark == "@step" else 1])


def check(place: str, how: str, victim: int, size: int) -> None:
    """Launch, let the victim die, and judge every survivor."""

    def end_victim_after_survivors(processes: list[subprocess.Popen[str]]) -> None:
        if how != "stop":
            return
        for rank, process in enumerate(processes):
            if rank != victim:
                with contextlib.suppress(subprocess.TimeoutExpired):  # judged below
                    process.wait(DEADLINE_S)
        os.kill(processes[victim].pid, signal.SIGKILL)

    launch = launch_ranks(
        [str(worker_path("torch_loss.py")), place, how, str(victim)],
        size,
        DEADLINE_S,
        during=end_victim_after_survivors,
    )
    assert not launch.timed_out, launch.text()
    assert launch.returncodes[victim] == -signal.SIGKILL, launch.text()
    for rank in range(size):
        if rank == victim:
            continue
        assert launch.returncodes[rank] == NAMED, launch.text()
        noticed = last_stamp(launch, rank, "@error") - last_stamp(launch, rank, "@step")
        assert noticed < NOTICE_S, launch.text()


PLACES = ["backward", "wrapped", "late", "planned", "all_reduce", "future", "barrier"]


@pytest.mark.parametrize("place", PLACES)
def test_killed_peer_is_named(place: str) -> None:
    check(place, "kill", victim=1, size=3)


@pytest.mark.parametrize("place", ["backward", "wrapped", "all_reduce"])
def test_stopped_peer_is_named(place: str) -> None:
    check(place, "stop", victim=1, size=3)


def test_killed_rank_zero_is_named() -> None:
    check("backward", "kill", victim=0, size=2)


@pytest.mark.long
@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("victim", [0, 1, 2, 3])
def test_every_rank(place: str, how: str, victim: int) -> None:
    check(place, how, victim, size=4)


def test_interrupt_ends_a_wait(tmp_path: Path) -> None:
    """Ctrl-C while an operation waits for a peer raises KeyboardInterrupt at once."""
    script = tmp_path / "interrupt.py"
    script.write_text(
        "import os, signal, threading, time\n"
        "import numpy as np, scant\n"
        # A program started in the background by a script inherits an ignored SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "comm = scant.Communicator.from_env()\n"
        "if comm.rank == 0:\n"
        "    pid, sent = os.getpid(), time.monotonic()\n"
        "    threading.Timer(0.3, os.kill, (pid, signal.SIGINT)).start()\n"
        "    try:\n"
        "        comm.recv(np.zeros(1), 1)\n"
        "    except KeyboardInterrupt:\n"
        "        assert time.monotonic() - sent < 5\n"
        "        print('interrupted', flush=True)\n"
        "comm.barrier(timeout=30)\n"
    )
    launch = launch_ranks([str(script)], 2, 60)
    assert launch.returncodes == [0, 0], launch.text()
    assert "interrupted" in launch.outputs[0]


def test_program_that_raises_leaves_without_hanging(tmp_path: Path) -> None:
    """A rank that ends with an exception leaves; the others hear of it."""
    script = tmp_path / "raises.py"
    script.write_text(
        "import numpy as np, scant, sys\n"
        "comm = scant.Communicator.from_env()\n"
        "if comm.rank == 1:\n"
        "    raise SystemExit(3)\n"
        "try:\n"
        "    comm.all_reduce(np.ones(10))\n"
        "except scant.Error as error:\n"
        "    print(repr(error), error.code, error.peer, flush=True)\n"
        "    sys.exit(4)\n"
    )
    launch = launch_ranks([str(script)], 2, 60)
    assert launch.returncodes == [4, 3], launch.text()
    assert "rank 1" in launch.outputs[0], launch.text()
