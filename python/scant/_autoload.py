"""What torch calls at the end of its own import (entry point ``torch.backends``)."""

from __future__ import annotations

import sys

__all__ = ["register"]


def register() -> None:
    """Make ``"scant"`` known to torch.distributed.

    Where ``import scant.torch`` is what made torch load, that import goes on and registers itself.
    """
    if "scant.torch" not in sys.modules:
        import scant.torch  # noqa: F401
