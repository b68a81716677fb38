"""One rank of journal.py: blocks of steps with and without one way to keep their state.

Rank 0 writes a JSON line for each way, with the numbers of all ranks.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import pathlib
import shutil
import time
from typing import Any

import harness
import torch
import torch.distributed as dist
from journal_sides import NONE, Fresh, Keeper, Spec, Training, keeper_of
from train_tasks import Text
from worker import Groups, hand_in, join, tell

WARM_UP = 5  # steps; DDP settles its buckets in two
SETTLE = 8  # steps with the way at work before it is timed: what is made once is there then


def peak_bytes(reset: bool = False) -> int:
    """The most memory that was resident since the last reset."""
    if reset:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(
            0
        )  # what another way has freed would hide what this one takes
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def written_bytes() -> int:
    """What this process has given to storage, as the kernel counts it."""
    for line in pathlib.Path("/proc/self/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    return 0


def peak_without(steps: int, training: Training) -> int:
    """Of some steps of a training whose state is not kept yet."""
    peak_bytes(reset=True)
    for _ in range(steps):
        training.step()
    return peak_bytes()


def recover(keeper: Keeper, plan: dict[str, Any], groups: Groups) -> dict[str, Any]:
    """As after a kill of all ranks: how long until the newest state is back, and which it is."""
    training = keeper.training
    keeper.save_now()
    fresh = Fresh(Text(plan["quick"]))
    dist.barrier(group=groups["gloo"])
    begun = time.perf_counter()
    step = keeper.load(fresh)
    seconds = time.perf_counter() - begun
    same = all(torch.equal(a, b) for a, b in zip(training.tensors(), fresh.tensors(), strict=True))
    return {
        "seconds": seconds, "same": same, "lost": training.steps - step,
        "replayed": keeper.replayed,
    }  # fmt: skip


def measure(
    spec: Spec, bare: Training, plan: dict[str, Any], groups: Groups, folder: pathlib.Path
) -> dict[str, Any]:
    """This rank's blocks of one way beside those without; every rank runs the same ones."""
    barrier = functools.partial(dist.barrier, group=groups["gloo"])
    training = Training(Text(plan["quick"]), plan["seed"], plan["plan"], groups)
    for _ in range(WARM_UP):
        training.step()
    before = peak_without(SETTLE, training)
    barrier()
    keeper = keeper_of(spec, training, folder, groups, plan["base_every"])
    peak_bytes(reset=True)
    for _ in range(max(SETTLE, plan["settle"])):
        training.step()
    keeper.settle()
    keeper.take_stalls()
    samples: dict[str, list[harness.Sample]] = {NONE: [], spec.name: []}
    steps_s: dict[str, list[float]] = {NONE: [], spec.name: []}
    stalls: list[float] = []
    wrote = [0, 0]
    figures = keeper.figures() if spec.kind == "journal" else {}
    for name in harness.palindrome([NONE, spec.name]) * plan["repeats"]:
        side = bare if name == NONE else training
        barrier()
        side.step_s.clear()
        wrote[0] = written_bytes()
        samples[name].append(harness.block(side.step, plan["steps"], barrier))
        steps_s[name] += side.step_s
        if name != NONE:
            stalls += keeper.take_stalls()
            keeper.settle()
            wrote[1] += written_bytes() - wrote[0]
        barrier()
    peak = peak_bytes()
    found = {
        "samples": samples, "step_s": steps_s, "stall_s": stalls, "rss_bytes": peak - before,
        "written_bytes": wrote[1], "before": figures, "figures": keeper.figures(),
        "recovery": recover(keeper, plan, groups),
    }  # fmt: skip
    barrier()
    keeper.close()
    training.close()
    return found


def work(plan: dict[str, Any]) -> None:
    """Measures all ways and gives the numbers to rank 0."""
    groups = join() | {"checkpoints": dist.new_group(backend="gloo")}
    bare = Training(Text(plan["quick"]), plan["seed"], plan["plan"], groups)
    for _ in range(WARM_UP):
        bare.step()
    disk = pathlib.Path(plan["disk"])
    for number, one in enumerate(plan["specs"]):
        spec = Spec(**one)
        folder = disk / str(number)
        hand_in(plan, {"spec": one}, measure(spec, bare, plan, groups, folder), groups)
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        tell(f"{spec.name}: measured")
        dist.barrier(group=groups["gloo"])
