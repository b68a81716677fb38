"""Each optimizer of torch steps averaged gradients as it steps any others, to the bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from ranks import SIZE, run_cases
from torch import nn
from wrapping import GLOO, all_equal, flat, loss_of, network, wrap

STEPS = 4
SPARSE_ONLY = {"SparseAdam"}
MATRICES_ONLY = {"Muon"}


def optimizers() -> dict[str, Callable[[Any], torch.optim.Optimizer]]:
    """Those of this torch that step dense parameters, by name."""
    base = torch.optim.Optimizer
    found = {
        name: one
        for name, one in vars(torch.optim).items()
        if inspect.isclass(one) and issubclass(one, base) and one is not base
    }
    made: dict[str, Callable[[Any], torch.optim.Optimizer]]
    made = {name: one for name, one in found.items() if name not in SPARSE_ONLY}
    made["LBFGS"] = partial(torch.optim.LBFGS, lr=0.05)  # its own 1 diverges here
    return made


def matrices() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 24, bias=False), nn.ReLU(), nn.Linear(24, 4, bias=False))


Seen = tuple[torch.Tensor, list[torch.Tensor]]


def train(model: nn.Module, optimizer: Any, seen: list[Seen]) -> None:
    """Through closures: LBFGS goes backward several times in a step. Notes what they gave."""
    for step in range(STEPS):

        def closure(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            value = loss.detach().clone()
            dist.all_reduce(value, group=GLOO)  # or LBFGS would end at another one on each rank
            seen.append((value / SIZE, [one.grad.clone() for one in model.parameters()]))
            return seen[-1][0]

        optimizer.step(closure)


def replay(model: nn.Module, optimizer: Any, seen: list[Seen]) -> None:
    """The same losses and gradients, in tensors of torch's own."""
    left = iter(seen)

    def closure() -> torch.Tensor:
        value, gradients = next(left)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        return value

    for _ in range(STEPS):
        optimizer.step(closure)
    assert next(left, None) is None


def case_any_optimizer_steps_as_without() -> None:
    known = optimizers()
    assert {"SGD", "AdamW", "LBFGS", "Adafactor", "RAdam", "ASGD", "Rprop"} <= known.keys()
    for plan in ("plain", "q4"):
        for name, make in known.items():
            model_of = matrices if name in MATRICES_ONLY else network
            model, alone = wrap(model_of(), plan=plan), model_of()
            seen: list[Seen] = []
            train(model, make(model.parameters()), seen)
            assert len(seen) > STEPS if name == "LBFGS" else len(seen) == STEPS, name
            replay(alone, make(alone.parameters()), seen)
            assert flat(model).isfinite().all(), (plan, name)
            assert torch.equal(flat(model), flat(alone)), (plan, name)
            assert not torch.equal(flat(model), flat(model_of())), (plan, name)
            all_equal(model)


run_cases(globals(), lambda: dist.barrier(group=GLOO))
dist.destroy_process_group()
