"""The computation of torch's PowerSGD hook for one matrix ÷ a memcpy of it: one thread, one rank.

The hook itself runs in a group of one rank, so no message is sent. It adds its residual, multiplies
twice, makes two factors orthonormal, and multiplies the factors to get what they leave.
`factors_bench` (bench/micro) times the same step of scant at the same sizes.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import connection
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness

SHAPES, QUICK_SHAPES = ((512, 512), (2048, 512), (1024, 1024)), ((64, 64),)
RANKS = (4, 8, 16)
CALLS, QUICK_CALLS = 60, 4


class Bucket:
    """One matrix, with the calls that a hook expects of DDP's buckets."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def buffer(self) -> torch.Tensor:
        """All elements."""
        return self.matrix.view(-1)

    def gradients(self) -> list[torch.Tensor]:
        """The one tensor."""
        return [self.matrix]

    def index(self) -> int:
        """The only one."""
        return 0

    def is_last(self) -> bool:
        """It is."""
        return True


def seconds(call: Callable[[], object]) -> float:
    """Of one call, on all threads of this process: the group's own thread takes part."""
    began = time.process_time()
    call()
    return time.process_time() - began


def hook_row(shape: tuple[int, int], rank: int, calls: int) -> harness.Row:
    """The least of many calls, as in the micro-benchmarks; copies and steps alternate."""
    drawn = torch.randn(shape)
    bucket = Bucket(drawn.clone())
    target = torch.empty_like(drawn)
    state = powerSGD_hook.PowerSGDState(
        None,
        matrix_approximation_rank=rank,
        start_powerSGD_iter=2,
        use_error_feedback=True,
        warm_start=True,
    )
    state.iter = 2

    def copy() -> None:
        ctypes.memmove(target.data_ptr(), drawn.data_ptr(), drawn.nbytes)

    def step() -> None:
        powerSGD_hook.powerSGD_hook(state, cast(Any, bucket)).wait()

    base, own = [], []
    for _ in range(calls):
        bucket.matrix.copy_(drawn)
        base.append(seconds(copy))
        own.append(seconds(step))
    return {
        "case": "hook",
        "shape": list(shape),
        "rank": rank,
        "ratio_of_least": min(own) / min(base),
        "seconds_least": min(own),
        "memcpy_seconds_least": min(base),
    } | harness.machine()


def measure(quick: bool, rows: connection.Connection) -> None:
    """Sends all rows, and ends the process. Its group stays, since gloo's threads use it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(pathlib.Path(folder) / "store"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        for shape in QUICK_SHAPES if quick else SHAPES:
            for rank in RANKS:
                rows.send(hook_row(shape, rank, QUICK_CALLS if quick else CALLS))
    rows.send(None)
    rows.close()
    os._exit(0)


def run(quick: bool, recorder: harness.Recorder) -> None:
    """All shapes and ranks, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=measure, args=(quick, theirs))
    child.start()
    theirs.close()
    while (row := ours.recv()) is not None:
        recorder.add(row)
    child.join()


def report(rows: list[harness.Row]) -> str:
    """The table of these rows."""
    head = ["PowerSGD's hook", "rank", "time ÷ memcpy (least of each)", "µs"]
    lines = [
        [f"{row['shape'][0]} × {row['shape'][1]}", str(row["rank"]),
         f"{row['ratio_of_least']:.2f}", f"{row['seconds_least'] * 1e6:.0f}"]
        for row in rows if row["case"] == "hook"
    ]  # fmt: skip
    return harness.markdown(head, lines) if lines else ""
