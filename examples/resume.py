"""Goes on from its checkpoint when torchrun starts it anew after the loss of a rank.

torchrun --standalone --nproc-per-node 2 --max-restarts 3 examples/resume.py /tmp/line.pt
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STEPS = 101
EVERY = 10


def main() -> None:
    """Fit a line through noisy points; rank 0 writes a checkpoint every few steps."""
    checkpoint = Path(sys.argv[1])
    dist.init_process_group("scant")
    rank = dist.get_rank()
    torch.manual_seed(rank)
    model = DistributedDataParallel(nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["next"]
    for step in range(first, STEPS):
        x = torch.randn(64, 1)
        loss = (model(x) - (3 * x + 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and (step + 1) % EVERY == 0:
            state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
            new = checkpoint.with_suffix(".new")
            torch.save({**state, "next": step + 1}, new)
            new.replace(checkpoint)  # a rank that dies here leaves the old one whole
    if rank == 0:
        print(f"steps {first} to {STEPS - 1}: loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
