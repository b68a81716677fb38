"""A rank dies or stops in the middle of training; the others must say who, and leave.

Arguments: where the victim dies ("backward" of DDP, "wrapped" and "planned": of scant.torch.wrap
by a plan given by hand and by its own, "late": by hand, stepped in the next forward, "all_reduce",
"future", "barrier"), how ("kill", "stop"), and who. A survivor that sees a Python exception which
names the victim prints it and ends with status 7; no other status is right.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from ranks import RANK
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

import scant.torch

place, how, victim = sys.argv[1], sys.argv[2], int(sys.argv[3])
NAMED = 7
UNNAMED = 8
SILENT = 9
STEPS = 200
DEADLY_STEP = 3


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    time.sleep(60)


def distributed(network: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
    if place == "backward":
        return DDP(network, bucket_cap_mb=0.02)
    if place == "planned":
        return scant.torch.wrap(network)
    # Two matrices in a buffer: the victim's last one stays open.
    late = place == "late"
    sizes = {"buffer_bytes": 32_768, "first_buffer_bytes": 32_768}
    return scant.torch.wrap(network, optimizer, plan="q4", step_in_forward=late, **sizes)


def train() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*[nn.Linear(64, 64) for _ in range(8)])
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    model = distributed(network, optimizer)
    step = 0
    if victim == RANK:
        middle = network[4].weight
        middle.register_hook(lambda _: die() if step == DEADLY_STEP else None)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(torch.ones(4, 64)).sum().backward()
        optimizer.step()
        print(f"@step {step} {time.time()}", flush=True)


def others() -> None:
    for step in range(STEPS):
        if victim == RANK and step == DEADLY_STEP:
            die()
        tensor = torch.ones(100_000)
        if place == "all_reduce":
            dist.all_reduce(tensor)
        elif place == "future":
            dist.all_reduce(tensor, async_op=True).get_future().then(lambda f: f.value()).wait()
        else:
            dist.barrier()
        print(f"@step {step} {time.time()}", flush=True)


dist.init_process_group("scant", timeout=timedelta(seconds=60))
try:
    if place in ("backward", "wrapped", "late", "planned"):
        train()
    else:
        others()
    status = SILENT
except Exception as error:
    text = f"{type(error).__name__}: {error}"
    print(f"@error {time.time()} {text}", flush=True)
    status = NAMED if f"rank {victim}" in text else UNNAMED
sys.exit(status)
