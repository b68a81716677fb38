"""What the codec takes: f32 arrays, shapes, names and numbers. Errors name argument and value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from scant import _scant, arrays, checks
from scant.codes import DType
from scant.errors import InvalidArgument

__all__ = [
    "ELEMENTS_MAX",
    "F32_MAX",
    "RESIDUALS",
    "VALUES",
    "as_density",
    "as_range",
    "as_shape",
    "as_threads",
    "flag",
    "fold",
    "is_torch",
    "number",
    "one_of",
    "plain_bytes",
    "view",
]

VALUES = tuple(_scant.value_kind_names)
RESIDUALS = tuple(_scant.residual_kind_names)
ELEMENTS_MAX = 2**63 - 1
F32_MAX = 3.4028234663852886e38
_THREADS_MAX = 256  # of a pool of workers


def view(array: Any, name: str, write: bool) -> tuple[int, int, tuple[int, ...]]:
    """(address, elements, shape) of an f32 array."""
    if is_torch(array) and array.requires_grad:
        array = array.detach()
    address, nbytes, dtype = arrays.view(array, name, write)
    if dtype != DType.F32:
        of = getattr(array, "dtype", arrays.dtype_name(dtype))
        how = f"{name}.float()" if is_torch(array) else f"{name}.astype(numpy.float32)"
        raise InvalidArgument(f"{name} has dtype {of}, the codec takes f32: pass {how}")
    if address % 4 != 0:
        raise InvalidArgument(f"{name} is not aligned: pass {name}.copy()")
    elements = nbytes // 4
    return address, elements, tuple(getattr(array, "shape", (elements,)))


def is_torch(array: Any) -> bool:
    """Whether this is a tensor of torch, which need not be installed."""
    return hasattr(array, "requires_grad") and hasattr(array, "detach")


def as_shape(shape: Any) -> tuple[int, ...]:
    """The sizes of a tensor, of which one may stand alone."""
    given = shape if isinstance(shape, Iterable) else (shape,)
    return tuple(checks.whole(size, "shape", 0, ELEMENTS_MAX, None) for size in given)


def fold(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns."""
    rows, columns = (shape[0] if len(shape) > 1 else 1), math.prod(shape[1:] or shape)
    if rows * columns > ELEMENTS_MAX or max(rows, columns) > ELEMENTS_MAX:
        raise InvalidArgument(f"shape {shape} has 2**63 elements or more")
    return rows, columns


def as_range(given: Any, total: int) -> tuple[int, int]:
    """(first, elements) within so many elements."""
    try:
        first, elements = given
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"range must be (first, elements), got {given!r}") from error
    begin = checks.whole(first, "range: first", 0, total, None)
    return begin, checks.whole(elements, "range: elements", 0, total - begin, None)


def number(value: Any, name: str, low: float, high: float) -> float:
    """A number within limits, as a float."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"{name} must be a number, got {value!r}") from error
    if not low <= found <= high:  # not a number compares false
        raise InvalidArgument(f"{name} must lie in {low:g} to {high:g}, got {value!r}")
    return found


def as_density(value: Any) -> float:
    """A share of the elements: above 0, up to 1."""
    found = number(value, "density", 0, 1)
    if found == 0:
        raise InvalidArgument(f"density must lie above 0, got {value!r}")
    return found


def flag(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name} must be True or False, got {value!r}")
    return value


def one_of(value: Any, name: str, known: tuple[str, ...]) -> str:
    """A name among those known."""
    if not isinstance(value, str) or value not in known:
        raise InvalidArgument(f"{name} {value!r} is none of {', '.join(known)}")
    return value


def as_threads(value: Any) -> int:
    """How many threads share the work."""
    return checks.whole(value, "threads", 1, _THREADS_MAX, None)


def plain_bytes(data: Any, name: str) -> bytes:
    """The bytes of whatever offers the buffer protocol."""
    try:
        return bytes(memoryview(data))
    except TypeError as error:
        text = f"{name} must be bytes-like, got {type(data).__name__}"
        raise InvalidArgument(text) from error
