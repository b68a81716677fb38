"""What the workers of step_in_forward share: models that step late and at once, and optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from wrapping import loss_of

import scant.torch

Make = Callable[[Any], torch.optim.Optimizer]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 0.01)


def in_small_buffers(options: dict[str, Any]) -> dict[str, Any]:
    """By q4 unless told otherwise; what chooses its own buffers is left alone."""
    options = {"plan": "q4", **options}
    if isinstance(options["plan"], str) and options["plan"] != "auto":
        options = {"buffer_bytes": 4096, "first_buffer_bytes": 1, **options}
    return options


def late(module: nn.Module, make: Make = adamw, **options: Any) -> Any:
    """(the wrapped model, its optimizer); several buffers, so that some come before others."""
    options = in_small_buffers(options)
    optimizer = make(module.parameters())
    return scant.torch.wrap(module, optimizer, step_in_forward=True, **options), optimizer


def at_once(module: nn.Module, make: Make = adamw, **options: Any) -> Any:
    model, optimizer = late(module, make, **options)
    model.close()
    options = in_small_buffers(options)
    return scant.torch.wrap(module, optimizer, **options), optimizer


def losses(model: Any, optimizer: Any, steps: int = 6, **more: Any) -> list[float]:
    found = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, step, **more)
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def same_state(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    for mine, theirs in zip(one.state.values(), other.state.values(), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, theirs[name]), name
            else:
                assert value == theirs[name], name


OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 0.1, 0.9, nesterov=True),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 0.01, amsgrad=True),
    "AdamW, foreach": lambda parameters: torch.optim.AdamW(parameters, 0.01, foreach=True),
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, 0.01, fused=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, 0.01),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, 0.01, momentum=0.9),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, 0.01),
    "Adadelta": lambda parameters: torch.optim.Adadelta(parameters, 0.1),
    "Adamax": lambda parameters: torch.optim.Adamax(parameters, 0.01),
}


class OneByOne:
    """An averager that says of nothing that it is there before it was waited for."""

    def __init__(self, averager: Any) -> None:
        self._averager = averager
        self.waited: list[int] = []

    def wait_for(self, tensors: list[int]) -> bool:
        self.waited += tensors
        there: bool = self._averager.wait_for(tensors)
        return there

    def arrived(self) -> list[int]:
        here = [one for one in self._averager.arrived() if one in self.waited]
        self.waited = []
        return here


def one_by_one(model: Any) -> None:
    """Forward finds nothing there that it has not waited for."""
    model._late._averager = OneByOne(model._averager)
