"""The kernels that serving computes with: one set for each instruction set that the CPU has.

All give the same bits, except that weights of bf16 have two orders of additions (docs/serve.md,
"Products"). ``SCANT_KERNELS`` names another set than the best, to compare them or to see what
another CPU would do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from scant import _scant
from scant.errors import InvalidArgument

__all__ = ["VARIABLE", "chosen", "known"]

VARIABLE = "SCANT_KERNELS"


def known() -> list[str]:
    """Names of the sets that this CPU has, the best first."""
    return _scant.serve_kernels()


def chosen(environ: Mapping[str, str] | None = None) -> str:
    """The name of the set in use: the variable's, or the best.

    Raises :class:`scant.InvalidArgument` where this CPU has none of the variable's name.
    """
    names = known()
    name = (os.environ if environ is None else environ).get(VARIABLE) or names[0]
    if name not in names:
        raise InvalidArgument(f"{VARIABLE}={name}: this CPU has {', '.join(names)}")
    return name
