"""Records back to arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scant import _scant, checks
from scant._scant import Record
from scant.codec import checked
from scant.errors import InvalidArgument, Mismatch

__all__ = ["accumulate", "decode"]


def decode(record: Any, out: Any = None, like: Any = None) -> Any:
    """A record's values; what was not sent is 0.

    ``out`` is written in place, ``like`` gives shape and library of a new array. Without them a
    NumPy array: rows and columns, flat for one row and for a part of the tensor.
    """
    return accumulate([record], out, 1.0, like=like)


def accumulate(
    records: Iterable[Any],
    out: Any = None,
    weight: float | None = None,
    first: int | None = None,
    elements: int | None = None,
    threads: int = 1,
    *,
    like: Any = None,
) -> Any:
    """``weight * (((0 + r0) + r1) + ...)``, in f32 and in the order given; 1/len unless given.

    ``first`` and ``elements`` cut a slice of the tensor; without them, all that the first record
    covers. ``out`` and ``like`` are as in :func:`decode`.
    """
    taken = [one if isinstance(one, Record) else Record(one) for one in records]
    if not taken:
        raise InvalidArgument("records is empty")
    begin, count = _slice(taken[0], first, elements)
    share = (
        1 / len(taken)
        if weight is None
        else checked.number(weight, "weight", -checked.F32_MAX, checked.F32_MAX)
    )
    target = _target(taken[0], begin, count, out, like)
    address, size, shape = checked.view(target, "out" if like is None else "like", write=True)
    if size != count:
        raise InvalidArgument(
            f"{'out' if like is None else 'like'} has shape {shape}, expected {count} elements"
        )
    _scant.accumulate(taken, begin, address, size, share, checked.as_threads(threads))
    return target


def _slice(record: Record, first: int | None, elements: int | None) -> tuple[int, int]:
    end = record.first + record.elements
    begin = (
        record.first
        if first is None
        else checks.whole(first, "first", 0, checked.ELEMENTS_MAX, None)
    )
    if not record.first <= begin <= end:
        raise Mismatch(f"first {begin} lies outside of record 0: elements {record.first} to {end}")
    if elements is None:
        return begin, end - begin
    count = checks.whole(elements, "elements", 0, checked.ELEMENTS_MAX, None)
    if count > end - begin:
        raise Mismatch(f"elements {count} from {begin} leave record 0, which ends at {end}")
    return begin, count


def _target(record: Record, begin: int, count: int, out: Any, like: Any) -> Any:
    if out is not None and like is not None:
        raise InvalidArgument("out and like: give one of them")
    if out is not None:
        return out
    if checked.is_torch(like):
        import torch

        return torch.empty(like.shape, dtype=torch.float32)
    import numpy as np

    if like is not None:
        return np.empty(np.shape(like), np.float32)
    rows, columns = record.shape
    whole = begin == 0 and count == rows * columns
    return np.empty((rows, columns) if whole and rows != 1 else (count,), np.float32)
