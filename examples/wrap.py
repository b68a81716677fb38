"""Gradients averaged while backward goes on, as the network asks for: wrap instead of DDP.

torchrun --standalone --nproc-per-node 2 examples/wrap.py
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

import scant.torch


def main() -> None:
    """Learn which quarter of the plane a point lies in, each rank with its own points."""
    dist.init_process_group("scant")
    rank = dist.get_rank()
    network = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
                            nn.Linear(512, 4))  # fmt: skip
    model = scant.torch.wrap(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(rank)
    for step in range(101):
        x = torch.randn(64, 2, generator=draw)
        loss = nn.functional.cross_entropy(model(x), 2 * (x[:, 0] > 0) + (x[:, 1] > 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and step % 50 == 0:
            sent = model.last_step["sent_bytes"] if model.last_step else 0
            print(f"step {step}: loss {loss.item():.3f}, {sent:,} bytes sent")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
