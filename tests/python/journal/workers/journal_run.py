"""A training under a journal, as any number of ranks: journal_run.py FOLDER STEPS [DIE].

Prints a line of JSON: where it began, and digests of what it restored and ended with. DIE is
"RANK:STEP:WHERE": that rank (or each, "all") kills itself there, "backward" or "step".
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import sys
from typing import Any

import torch
import torch.distributed as dist
from ranks import RANK, SIZE
from wrapping import GLOO, Net, loss_of, wrap

import scant
from scant import _scant

PLAN = os.environ.get("PLAN", "5% bf16, gather")
_DIRECTIONS = 2
_HEAD, _ENTRY = struct.Struct("<IIIIQ"), struct.Struct("<IIQ")


def residuals(averager: Any) -> dict[str, list[list[float]]]:
    """Of this rank, by kind: sums of each tensor's values, and of their squares."""
    saved = averager.save()
    count = _HEAD.unpack_from(saved)[4]
    at = _HEAD.size
    sums = {kind: [[0.0, 0.0] for _ in range(64)] for kind in ("worker", "owner")}
    for _ in range(count):
        kind, _, size = _ENTRY.unpack_from(saved, at)
        at += _ENTRY.size
        if kind == _DIRECTIONS:
            at += size
            continue
        encoder = _scant.Encoder.restore(saved[at : at + size])
        at += size
        told = encoder.describe()
        values = torch.zeros(told["range"][1])
        encoder.read_residual(values.data_ptr(), values.numel())
        into = sums["owner" if kind else "worker"][told["tensor"]]
        weighted = values.double() * (1 + told["range"][0] + torch.arange(len(values)))
        into[0] += float(values.double().sum())
        into[1] += float(weighted.sum())  # where a value lies counts, too
    return sums


def digest(model: Any, optimizer: torch.optim.Optimizer) -> str:
    state = optimizer.state_dict()["state"]
    tensors = [*model.module.parameters()]
    tensors += [one for key in sorted(state) for _, one in sorted(state[key].items())]
    content = hashlib.sha256()
    for one in tensors:
        content.update(one.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:16]


def main() -> None:
    folder, steps = sys.argv[1], int(sys.argv[2])
    who, when, where = (sys.argv[3] if len(sys.argv) > 3 else "none:0:step").split(":")
    torch.manual_seed(os.getpid())
    model = wrap(Net(), plan=PLAN)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)

    def die_in(place: str, step: int) -> None:
        if who in (str(RANK), "all") and step == int(when) and where == place:
            os.kill(os.getpid(), signal.SIGKILL)

    journal = scant.Journal(folder, base_every=5, log="always").attach(model, optimizer)
    restored = journal.restore()
    told: dict[str, Any] = {"rank": RANK, "ranks": SIZE, "first": journal.step}
    told["base"] = restored.base_step if restored is not None else None
    told["restored"] = digest(model, optimizer)
    told["residuals"] = residuals(model._averager)
    print(json.dumps(told), flush=True)
    now = {"step": 0}
    last = model._parameters_in_order[-1]
    last.register_post_accumulate_grad_hook(lambda _: die_in("backward", now["step"]))
    for step in range(journal.step + 1, steps + 1):
        now["step"] = step
        optimizer.zero_grad()
        loss_of(model, step).backward()
        die_in("step", step)
        optimizer.step()
        done = {"step": step, "is": digest(model, optimizer)}
        if step % 5 == 0:  # a base's: residuals as they are copied
            done["residuals"] = residuals(model._averager)
        print(json.dumps(done), flush=True)
    journal.close()
    dist.barrier(group=GLOO)
    model.close()
    dist.destroy_process_group()


main()
