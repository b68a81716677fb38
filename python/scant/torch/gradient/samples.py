"""How many samples a rank's gradients are of: what its user says, else what its forwards got."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from scant.errors import InvalidArgument

__all__ = ["Samples"]

_MAX = 2**48  # so the sum over all ranks fits into 64 bits


class Samples:
    """Those of the next average of one model."""

    def __init__(self) -> None:
        self._said: int | None = None
        self._seen = 0

    def say(self, count: Any) -> None:
        """So many more. What forwards get does not count in this average."""
        try:
            number = -1 if isinstance(count, bool) else operator.index(count)
        except TypeError:
            number = -1
        total = (self._said or 0) + number
        if number < 0 or total > _MAX:
            raise InvalidArgument(f"samples: a whole number from 0 on is needed, got {count!r}")
        self._said = total

    def forward(self, args: Sequence[Any], more: Mapping[str, Any]) -> None:
        """A forward got these arguments: the first tensor among them has a sample a row. What a
        trace gets is no sample."""
        if torch.jit.is_tracing():  # type: ignore[no-untyped-call]
            return
        for one in (*args, *more.values()):
            if isinstance(one, torch.Tensor):
                self._seen += one.size(0) if one.dim() > 0 else 0  # nested ones have no shape
                return

    def take(self) -> int:
        """Of the average that begins; those of the next are counted anew."""
        count = self._seen if self._said is None else self._said
        self._said, self._seen = None, 0
        return count
