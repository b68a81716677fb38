"""Gradients over Scant, everything else over gloo (or NCCL).

torchrun --standalone --nproc-per-node 2 examples/ddp_hook.py
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import scant.torch


def main() -> None:
    """One step, and a look at the averaged gradient."""
    dist.init_process_group("gloo")
    group = dist.new_group(backend="scant")
    model = DistributedDataParallel(nn.Linear(4, 1, bias=False))
    model.register_comm_hook(group, scant.torch.ddp_hook)
    rank = dist.get_rank()
    model(torch.full((1, 4), float(rank))).sum().backward()
    if rank == 0:
        print("gradient, averaged over the ranks:", model.module.weight.grad.tolist())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
