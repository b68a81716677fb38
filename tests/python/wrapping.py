"""What the workers of scant.torch.wrap share: a started group, a model, data and checks.

Importing it joins the group.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from ranks import RANK, SIZE
from torch import nn

import scant.torch

torch.set_num_threads(1)
dist.init_process_group("scant", timeout=timedelta(seconds=60))
GLOO = dist.new_group(backend="gloo")


def wrap(model: nn.Module, *more: Any, **options: Any) -> scant.torch.Wrapped:
    """scant.torch.wrap with the exact plan, unless another is asked for."""
    if not more and "options" not in options:
        options.setdefault("plan", "plain")
    return scant.torch.wrap(model, *more, **options)


class Net(nn.Module):
    """Matrices, vectors, a norm with buffers, and a branch that need not be used."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.first = nn.Linear(16, width)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.branch = nn.Linear(width, width)
        self.last = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor, branch: bool = True) -> torch.Tensor:
        hidden = self.norm(F.relu(self.first(x)))
        hidden = F.relu(self.second(hidden))
        if branch:
            hidden = hidden + self.branch(hidden)
        out: torch.Tensor = self.last(hidden)
        return out


def network(**options: Any) -> Net:
    torch.manual_seed(1)
    return Net(**options)


def batch(step: int, rank: int = RANK) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(16, 16, generator=generator)
    return x, x[:, :4].argmax(1)


def loss_of(model: nn.Module, step: int, **options: Any) -> torch.Tensor:
    x, y = batch(step)
    return F.cross_entropy(model(x, **options), y)


def train(model: nn.Module, steps: int = 5, **options: Any) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, step, **options)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1).float() for parameter in module.parameters()])


def all_equal(module: nn.Module) -> None:
    """All ranks hold the same bits."""
    mine = flat(module)
    copies = [torch.empty_like(mine) for _ in range(SIZE)]
    dist.all_gather(copies, mine, group=GLOO)
    for rank, other in enumerate(copies):
        assert torch.equal(other, mine), f"rank {rank} differs from rank {RANK}"
