"""Callbacks of futures count as callbacks on whatever thread they run.

What a callback submits goes to the twin of its group (docs/decisions/python-process-group.md), and
all ranks must see it so. torch runs a callback where the future is completed, which is Scant's
completion thread, or, when it came too late for that, at once in the thread that gave it. Which of
the two is a race that each rank runs on its own, and the second case shows nowhere but in ``then``
itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from scant import _scant

__all__ = ["mark"]

_NAMES = ("then", "add_done_callback")


def _marking(method: Callable[[Any, Callable[..., Any]], Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def marked(self: Any, callback: Callable[[Any], Any]) -> Any:
        return method(self, functools.partial(_scant.Executor.run_callback, callback))

    marked.__scant__ = True  # type: ignore[attr-defined]
    return marked


def mark() -> None:
    """From now on, of every Future of torch. Calling it again changes nothing."""
    future: Any = torch._C.Future
    for name in _NAMES:
        method = getattr(future, name)
        if not hasattr(method, "__scant__"):
            setattr(future, name, _marking(method))
