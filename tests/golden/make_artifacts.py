"""Writes what users keep: journals, checkpoints, residuals, plans, records, a run log.

PYTHONPATH=tests/python:tests/python/workers torchrun --standalone --nproc-per-node 2 \
    tests/golden/make_artifacts.py tests/golden/artifacts/VERSION

FOLDER must not exist. What lies in tests/golden/artifacts was written once, by the version that its
folder names, and is never written again: a version with another format gets a folder of its own.
tests/python/journal/test_golden_artifacts.py loads all of them.

The optimizer's products are exact (its numbers are powers of two), so that any CPU that replays a
log computes the same bits.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ranks import RANK
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from wrapping import GLOO, Net, loss_of, wrap

import scant
import scant.torch
from scant import _scant, codec

WIDTH = 32
STEPS = 12
JOURNALS = {"split": "q4", "gather": "5% bf16, gather", "plain": "plain"}


def digest(tensors: Iterable[Any]) -> str:
    """Of the bits of tensors or arrays, one behind the other."""
    content = hashlib.sha256()
    for one in tensors:
        array = one.detach().cpu().numpy() if isinstance(one, torch.Tensor) else np.asarray(one)
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]


def state_digest(module: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Of parameters, on rank 0 buffers, and the optimizer's tensors.

    Rank 0's buffers are given to all before each forward, so a journal keeps no others.
    """
    buffers = list(module.buffers()) if RANK == 0 else []
    state = optimizer.state_dict()["state"]
    momenta = [state[key]["momentum_buffer"] for key in sorted(state)]
    return digest([*module.parameters(), *buffers, *momenta])


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.125, momentum=0.5)


def network() -> Net:
    torch.manual_seed(1)
    return Net(width=WIDTH)


def step(model: Any, optimizer: torch.optim.Optimizer, number: int, clip: bool = False) -> None:
    optimizer.zero_grad()
    loss_of(model, number).backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
    optimizer.step()


def write_journal(at: Path, plan: str) -> dict[str, Any]:
    model = wrap(network(), plan=plan)
    optimizer = optimizer_of(model)
    facts: dict[str, Any] = {"steps": STEPS, "base": 10, "plan": plan}
    place = {"batch": 0}
    with scant.Journal(at, job="golden", base_every=5, log="always") as journal:
        journal.attach(model, optimizer, cursor=lambda: dict(place))
        journal.restore()
        for number in range(1, STEPS + 1):
            place["batch"] = number
            step(model, optimizer, number, clip=number % 3 == 0)
            if number == facts["base"]:
                facts["at_base"] = gathered(state_digest(model.module, optimizer))
                facts["residuals"] = gathered(model._averager.residual_energy)
    facts["at_end"] = gathered(state_digest(model.module, optimizer))
    model.close()
    return facts


def write_checkpoints(at: Path) -> dict[str, Any]:
    """Of a wrapped model, as it is saved in a training; and of the hook of DDP."""
    model = wrap(network(), plan="5% q4")
    optimizer = optimizer_of(model)
    for number in range(1, 6):
        step(model, optimizer, number)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 5}
    torch.save(saved, at / f"wrapped-{RANK}.pt")
    facts: dict[str, Any] = {
        "wrapped": gathered(state_digest(model.module, optimizer)),
        "wrapped_residuals": gathered(model._averager.residual_energy),
    }
    model.close()
    ddp = DistributedDataParallel(network(), process_group=GLOO)
    state = scant.torch.HookState(dist.group.WORLD, plan="q3")
    ddp.register_comm_hook(state, scant.torch.ddp_hook)
    optimizer = optimizer_of(ddp)
    for number in range(1, 7):
        step(ddp, optimizer, number)
    (at / f"hook-{RANK}.residuals").write_bytes(state.save())
    assert state._averaging is not None
    facts["hook_residuals"] = gathered(state._averaging.averager.residual_energy)
    state.close()
    return facts


def write_codec(at: Path) -> dict[str, Any]:
    """Records and an encoder's state, of each kind of value, dense and sparse."""
    facts: dict[str, Any] = {}
    draw = np.random.default_rng(20261130)
    gradients = [draw.standard_normal((3, 700), dtype=np.float32) for _ in range(3)]
    for values in codec.VALUES:
        for density in (1.0, 0.05):
            encoder = codec.Encoder((3, 700), values=values, density=density)
            records = [encoder.encode(one) for one in gradients]
            name = f"{values}-{density}"
            (at / f"{name}.record").write_bytes(bytes(records[-1]))
            (at / f"{name}.encoder").write_bytes(encoder.save())
            facts[name] = {
                "entries": records[-1].entries,
                "decoded": digest([codec.decode(records[-1])]),
                "residual": digest([encoder.residual()]),
                "step": encoder.step,
            }
    return facts


def write_plan(at: Path) -> dict[str, Any]:
    shapes = [(1, 10), (300, 200), (1, 300), (64, 640)]
    layout = _scant.GradientLayout(shapes, 3)
    parts = len(layout.parts)
    point = (0.05, "q4 by row", 1.0, "q8")
    buffers: list[Any] = [("split", 2, [point] * 2), ("all_reduce", 1, [])]
    buffers.append(("gather", parts - 3, [(1.0, "bf16", 1.0, "f32")] * (parts - 3)))
    made = _scant.FusionPlan.make(layout, buffers, 2)
    (at / "plan.bin").write_bytes(made.serialise(layout))
    return {"shapes": shapes, "ranks": 3, "reversed": made.reversed, "buffers": made.buffers}


def write_run_log(at: Path) -> dict[str, Any]:
    model = wrap(network(), plan="auto", log=str(at))
    optimizer = optimizer_of(model)
    for number in range(1, 121):
        step(model, optimizer, number)
    model.close()
    dist.barrier(group=GLOO)
    lines = [json.loads(text) for text in at.read_text().splitlines()]
    return {"kinds": [line["kind"] for line in lines], "last_step": lines[-1]["step"]}


def gathered(value: Any) -> list[Any]:
    """Of all ranks."""
    all_values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_values, value, group=GLOO)
    return all_values


def main() -> None:
    root = Path(sys.argv[1])
    if RANK == 0:
        for name in ("journals", "checkpoints", "codec"):
            (root / name).mkdir(parents=True)
    dist.barrier(group=GLOO)
    facts: dict[str, Any] = {"version": scant.__version__, "width": WIDTH}
    facts["journals"] = {
        name: write_journal(root / "journals" / name, plan) for name, plan in JOURNALS.items()
    }
    facts["checkpoints"] = write_checkpoints(root / "checkpoints")
    facts["run_log"] = write_run_log(root / "run.jsonl")
    if RANK == 0:
        facts["codec"] = write_codec(root / "codec")
        facts["plan"] = write_plan(root)
        for name in JOURNALS:
            (root / "journals" / name / "LOCK").unlink(missing_ok=True)
        (root / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    dist.barrier(group=GLOO)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
