"""Keeps torch.compile out of methods that hand memory to another thread.

``torch.compiler.disable`` does this too, but imports all of the compiler (2 s) and costs 0.5 µs a
call. Marking the code object does neither; where a torch version lacks the mark, the decorator
is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["not_compiled"]

_F = TypeVar("_F", bound=Callable[..., Any])


def not_compiled(function: _F) -> _F:
    """A graph break when it is called from compiled code; never compiled itself."""
    try:
        from torch._C._dynamo.eval_frame import (
            _FrameAction,
            _FrameExecStrategy,
            set_code_exec_strategy,
        )
    except ImportError:
        disable: Any = torch.compiler.disable
        disabled: _F = disable(function)
        return disabled
    marks: Any = function
    marks._torchdynamo_disable = True
    marks._torchdynamo_disable_msg = "Scant hands memory to its I/O thread"
    marks._torchdynamo_disable_recursive = True
    skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
    set_code_exec_strategy(marks.__code__, skip)
    return function
