"""Refuses what the program gets wrong, before anything is sent: names the argument and the rank.

The extension takes what C++ calls its types; what does not fit them must be stopped here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

from scant import arrays
from scant.codes import ReduceOp
from scant.errors import InvalidArgument

__all__ = ["Checked", "options", "rank_and_size", "rank_of_group", "seconds", "whole"]

_Result = TypeVar("_Result")

# Thirty years: the extension counts nanoseconds in 64 bits, from a beginning of its own.
_LONGEST_S = 1e9
_INT_MAX = 2**31 - 1
_SIZE_MAX = 65535

# Narrower limits are the extension's to explain.
_WHOLE = {
    "port": (0, 65535),
    "connections_per_pair": (-_INT_MAX, _INT_MAX),
    "io_cpu": (-_INT_MAX, _INT_MAX),
    "rate_limit_bytes_per_second": (0, 2**63 - 1),
}
_TEXTS = ("job", "address")


def whole(value: Any, name: str, low: int, high: int, rank: int | None) -> int:
    """The value as an int; whatever counts as one to Python will do."""
    try:
        number = operator.index(value)
    except TypeError as error:
        text = f"{name} must be a whole number, got {value!r}"
        raise InvalidArgument(text, rank=rank) from error
    if not low <= number <= high:
        raise InvalidArgument(f"{name} {number} lies outside {low} to {high}", rank=rank)
    return number


def seconds(value: Any, name: str, rank: int | None) -> float:
    """A time that an operation may take, as a float."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        text = f"{name} must be a number of seconds, got {value!r}"
        raise InvalidArgument(text, rank=rank) from error
    if not 0 < number <= _LONGEST_S:  # not a number compares false
        text = f"{name} must be positive and at most {_LONGEST_S:g} seconds, got {value}"
        raise InvalidArgument(text, rank=rank)
    return number


def rank_and_size(rank: Any, size: Any) -> tuple[int, int]:
    """Both as ints that fit each other."""
    own = whole(rank, "rank", -_INT_MAX, _INT_MAX, None)
    count = whole(size, "size", 1, _SIZE_MAX, own)
    if not 0 <= own < count:
        raise InvalidArgument(f"rank {own} is out of range for {count} ranks", rank=own)
    return own, count


def rank_of_group(value: Any, name: str, size: int, rank: int) -> int:
    """The value as the rank of a member of a group of this size."""
    number = whole(value, name, -_INT_MAX, _INT_MAX, rank)
    if not 0 <= number < size:
        text = f"{name} {number} is out of range: the group has ranks 0 to {size - 1}"
        raise InvalidArgument(text, rank=rank)
    return number


def options(given: dict[str, Any], rank: int) -> dict[str, Any]:
    """The options that are set, each of the type that the extension takes."""
    return {key: _option(key, value, rank) for key, value in given.items() if value is not None}


def _option(key: str, value: Any, rank: int) -> Any:
    if key in _WHOLE:
        return whole(value, key, *_WHOLE[key], rank)
    if key in _TEXTS:
        return _text(value, key, rank)
    if key.endswith("timeout"):
        return seconds(value, key, rank)
    if not isinstance(value, bool):
        raise InvalidArgument(f"{key} must be True or False, got {value!r}", rank=rank)
    return value


def _text(value: Any, name: str, rank: int) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} must be a str, got {value!r}", rank=rank)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{name} {value!r} is no UTF-8 text", rank=rank) from error
    return value


class Checked:
    """What has a rank and a size, and checks the arguments of its calls."""

    rank: int
    size: int

    def _root(self, root: Any, name: str = "root") -> int:
        return rank_of_group(root, name, self.size, self.rank)

    def _tag(self, tag: Any) -> int:
        return whole(tag, "tag", 0, 2**32 - 1, self.rank)

    def _limit(self, timeout: Any) -> float:
        """Seconds; 0 means that the call names none."""
        return 0.0 if timeout is None else seconds(timeout, "timeout", self.rank)

    def _view(self, array: Any, name: str, write: bool) -> tuple[int, int, int]:
        return self._told(arrays.view, array, name, write)

    def _reducible(self, dtype: int, array: Any, name: str) -> int:
        return self._told(arrays.reducible, dtype, array, name)

    def _op(self, op: ReduceOp | str) -> int:
        return self._told(arrays.op_code, op)

    def _told(self, check: Callable[..., _Result], *arguments: Any) -> _Result:
        try:
            return check(*arguments)
        except InvalidArgument as error:
            error.rank = self.rank
            raise

    def _same(self, a: tuple[int, int, int], b: tuple[int, int, int], text: str) -> None:
        if a[1] != b[1] or a[2] != b[2]:
            raise InvalidArgument(
                f"{text} differ: {a[1]} bytes of {arrays.dtype_name(a[2])} and "
                f"{b[1]} bytes of {arrays.dtype_name(b[2])}",
                rank=self.rank,
            )
