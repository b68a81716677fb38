"""Notices that a backward reached no parameter of a wrapped model on this rank alone: an optimizer
steps after a forward that no average followed, while the other ranks wait for this one's part.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

__all__ = ["Unreached", "is_ours"]


class Unreached:
    """Of one wrapped model, which tells what happens to it.

    Args:
        parameters: ids of those that are averaged.
        take_part: averages with the other ranks, without a gradient of this one.
    """

    def __init__(self, parameters: Collection[int], take_part: Callable[[], None]) -> None:
        self._parameters = parameters
        self._take_part = take_part
        self._open = False  # a forward has asked for gradients, and none came
        self._averaged = False  # since an optimizer stepped
        _watch(self)

    def forward(self) -> None:
        """A forward is over that a backward may follow."""
        self._open = True

    def gradient(self) -> None:
        """Backward reached a parameter."""
        self._open = False

    def averaged(self) -> None:
        """This rank took part in an average."""
        self._averaged = True

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer, perhaps of this model, is about to step."""
        if not self._open and not self._averaged:
            return
        groups = optimizer.param_groups
        if not any(id(one) in self._parameters for group in groups for one in group["params"]):
            return
        if self._open and not self._averaged:
            self._take_part()
        self._open = self._averaged = False


_watched: weakref.WeakSet[Unreached] = weakref.WeakSet()
_hook: Any = None  # one serves all


def _watch(one: Unreached) -> None:
    global _hook
    _watched.add(one)
    if _hook is None:
        before: Any = _before_step
        _hook = register_optimizer_step_pre_hook(before)


def _before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for one in list(_watched):
        one.before_step(optimizer)


def is_ours(hook: Any) -> bool:
    """Whether a hook before steps is this module's, which does not look at gradients."""
    return hook is _before_step
