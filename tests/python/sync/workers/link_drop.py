"""A training whose links the test changes, or makes unequal; the test reads the run log.

Arguments: a folder, and perhaps a rank that computes slowly. Prints each step; ends when a file
"stop" lies in the folder. Checks at the end that nothing of any gradient was lost or sent twice by
whatever plans there were.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import scant.torch

FOLDER = Path(sys.argv[1])
SLOW = int(sys.argv[2]) if len(sys.argv) > 2 else None
STEPS_MAX = 400
COMPUTE_S = 0.2

torch.set_num_threads(1)
dist.init_process_group("scant")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(1)
network = nn.Sequential(*[nn.Linear(400, 400) for _ in range(6)])
model = scant.torch.wrap(network, log=str(FOLDER / "run.jsonl"), check_every=1)
parameters = list(network.parameters())
given = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
applied = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]


def note(index: int) -> object:
    def hook(gradient: torch.Tensor) -> None:
        given[index].add_(gradient)

    return hook


for index, parameter in enumerate(parameters):
    parameter.register_hook(note(index))
draw = torch.Generator().manual_seed(rank)


def step() -> None:
    time.sleep(COMPUTE_S * (3 if rank == SLOW else 1))
    model.zero_grad()
    x = torch.randn(8, 400, generator=draw)
    model(x).square().mean().backward()
    with torch.no_grad():
        for total, parameter in zip(applied, parameters, strict=True):
            total.add_(parameter.grad)
            parameter.add_(parameter.grad, alpha=-0.01)


stop = torch.zeros(1)
for number in range(1, STEPS_MAX + 1):
    step()
    if rank == 0:
        print(f"step {number}", flush=True)
        stop.fill_((FOLDER / "stop").exists())
    dist.broadcast(stop, 0)
    if stop.item():
        break
model.set_plan("plain")  # what was kept goes into the last average
step()
for total in given:
    dist.all_reduce(total)
    total.div_(size)
error = max(float((a - b).norm() / (a.norm() + 1e-12)) for a, b in zip(given, applied, strict=True))
assert error < 1e-4, f"what was applied differs from the averages by {error}"
print("whole", flush=True)
dist.destroy_process_group()
