"""Notices that a backward reached no parameter of a wrapped model on this rank alone: an optimizer
steps after a forward that no average followed, while the other ranks wait for this one's part.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from scant.torch.backend.compiler import not_compiled

__all__ = ["Unreached", "is_ours"]


class Unreached:
    """Of one wrapped model, which tells what happens to it.

    Args:
        parameters: ids of those that are averaged.
        take_part: begins to average with the other ranks, without a gradient of this one; what it
            returns waits for the end.
    """

    def __init__(
        self, parameters: Collection[int], take_part: Callable[[], Callable[[], None]]
    ) -> None:
        self.take_part = take_part
        self._parameters = parameters
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

    def missing(self) -> bool:
        """Whether the others may wait for this rank."""
        return self._open and not self._averaged

    def stepping(self) -> bool:
        """The same, where an optimizer steps: what comes then is another step."""
        missing = self.missing()
        self._open = self._averaged = False
        return missing

    def belongs_to(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it steps parameters of this model, and there is anything to ask."""
        if not self._open and not self._averaged:
            return False
        groups = optimizer.param_groups
        return any(id(one) in self._parameters for group in groups for one in group["params"])


# In the order in which they were made, which is the same on all ranks.
_watched: weakref.WeakValueDictionary[int, Unreached] = weakref.WeakValueDictionary()
_numbers = itertools.count()
_hook: Any = None  # one serves all


def _watch(one: Unreached) -> None:
    global _hook
    _watched[next(_numbers)] = one
    if _hook is None:
        before: Any = _before_step
        _hook = register_optimizer_step_pre_hook(before)


@not_compiled
def _before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """None waits before all are told: the other ranks may be at another model."""
    its = [one for _, one in sorted(_watched.items()) if one.belongs_to(optimizer)]
    waits = [one.take_part() for one in its if one.stepping()]
    for wait in waits:
        wait()


def is_ours(hook: Any) -> bool:
    """Whether a hook before steps is this module's, which does not look at gradients."""
    return hook is _before_step
