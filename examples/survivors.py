"""Goes on in the same processes, without the rank that was lost.

For launchers that leave the other ranks alone when one ends (torchrun ends them all: resume.py).
Rank 0 holds the rendezvous, so it must survive. RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are
set as for any script.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import scant

STEPS = 101


def train(module: nn.Module, progress: torch.Tensor) -> None:
    """Train up to the last step; all ranks begin with what rank 0 has."""
    model = DistributedDataParallel(module)
    dist.broadcast(progress, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    while progress.item() < STEPS:
        x = torch.randn(64, 1)
        loss = (model(x) - (3 * x + 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress += 1
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} ranks: loss {loss.item():.4f}")


def lost_rank() -> int:
    """Who was lost. Every call after a loss says it, as an exception with its class."""
    try:
        dist.barrier()
    except scant.PeerLost as error:
        if error.peer is not None:
            return error.peer
    raise RuntimeError("no rank is lost")


def main() -> None:
    """Train, and after each loss once more with those who are left."""
    me, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=me == 0, wait_for_workers=False)
    members = list(range(size))
    module, progress = nn.Linear(1, 1), torch.zeros(1)
    while True:
        dist.init_process_group(
            "scant",
            store=dist.PrefixStore(f"members {members}", store),
            rank=members.index(me),
            world_size=len(members),
        )
        try:
            train(module, progress)
            break
        except (scant.PeerLost, RuntimeError) as error:
            if "peer_lost" not in str(error):
                raise
            del members[lost_rank()]
            dist.destroy_process_group()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
