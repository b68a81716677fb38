"""Element types and reductions, as the names and numbers that the extension knows."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["DType", "ReduceOp"]


class DType(IntEnum):
    """Element types that Scant can reduce."""

    F32 = 0
    F64 = 1
    BF16 = 2
    F16 = 3
    I8 = 4
    I32 = 5
    I64 = 6
    U8 = 7
    BOOL = 8


class ReduceOp(IntEnum):
    """Reductions. ``AVERAGE`` divides the sum by the group's size; integers truncate to zero."""

    SUM = 0
    AVERAGE = 1
    PRODUCT = 2
    MIN = 3
    MAX = 4
    BIT_AND = 5
    BIT_OR = 6
    BIT_XOR = 7
