"""Gradients in few bytes, on NumPy arrays and CPU torch tensors of f32.

::

    import numpy as np
    from scant import codec

    encoder = codec.Encoder((512, 512), density=0.01, values="q4")
    record = encoder.encode(gradient)             # keeps what it leaves behind for the next step
    average = codec.accumulate([record, other])   # records of all ranks, in their order

``docs/codec.md`` says what is guaranteed, ``docs/record.md`` what the bytes mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from scant import _scant, arrays, checks
from scant._scant import Block, Record, Report, parse_all
from scant.codes import DType
from scant.errors import InvalidArgument, Mismatch

__all__ = [
    "RESIDUALS",
    "VALUES",
    "Block",
    "Encoder",
    "Record",
    "Report",
    "accumulate",
    "decode",
    "kernels",
    "parse_all",
]

VALUES = tuple(_scant.value_kind_names)
RESIDUALS = tuple(_scant.residual_kind_names)
kernels = _scant.codec_kernels  # the instruction set in use, such as "avx2"

_ELEMENTS_MAX = 2**63 - 1
_THREADS_MAX = 256
_F32_MAX = 3.4028234663852886e38


class Encoder:
    """Turns the gradients of one tensor into records, and keeps what a record leaves behind.

    Args:
        shape: of the tensor; the first dimension counts rows, one dimension is one row.
        tensor: the tensor's number, the same on all ranks.
        density: share of the elements to send, 1 for all; :meth:`encode` can say another.
        values: how values are written, one of :data:`VALUES`; :meth:`encode` can say another.
        residual: how the rest is kept, one of :data:`RESIDUALS`.
        decay: factor of the residual in each step; 1 loses nothing.
        momentum: above 0 for momentum correction.
        mask_momentum: momentum of what was sent begins anew.
        stochastic: codes keep the mean instead of the nearest level.
        evenness: 0 for one threshold in the whole tensor, 1 for equal shares of its blocks.
        seed: of all random draws.
        threads: that share the work; the bytes do not depend on it.
        range: (first, elements) of a part of the tensor; first is a multiple of 64.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        tensor: int = 0,
        density: float = 1.0,
        values: str = "q4",
        residual: str = "f32",
        decay: float = 1.0,
        momentum: float = 0.0,
        mask_momentum: bool = True,
        stochastic: bool = False,
        evenness: float = 0.0,
        seed: int = 1,
        threads: int = 1,
        range: tuple[int, int] | None = None,
    ) -> None:
        self._shape = _shape(shape)
        rows, columns = _fold(self._shape)
        part = None if range is None else _range(range, rows * columns)
        self._set_defaults(density, values, threads)
        self._native = _scant.Encoder(
            {
                "rows": rows,
                "columns": columns,
                "tensor": checks.whole(tensor, "tensor", 0, 2**32 - 1, None),
                "residual": _one_of(residual, "residual", RESIDUALS),
                "decay": _number(decay, "decay", 0, 1),
                "momentum": _number(momentum, "momentum", 0, 1),
                "mask_momentum": _flag(mask_momentum, "mask_momentum"),
                "stochastic": _flag(stochastic, "stochastic"),
                "evenness": _number(evenness, "evenness", 0, 1),
                "seed": checks.whole(seed, "seed", 0, 2**64 - 1, None),
                "range": part,
            }
        )
        self._learn()

    def _set_defaults(self, density: float, values: str, threads: int) -> None:
        self._density = _density(density)
        self._values = _one_of(values, "values", VALUES)
        self._threads = _threads(threads)

    def _learn(self) -> None:
        facts = self._native.describe()
        self.tensor: int = facts["tensor"]
        self.residual_kind: str = facts["residual"]
        self.range: tuple[int, int] = facts["range"]
        self._rows: int = facts["rows"]
        self._columns: int = facts["columns"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape; after :meth:`restore` without one, as rows and columns."""
        return self._shape

    @property
    def step(self) -> int:
        """Records made so far."""
        return int(self._native.describe()["step"])

    @property
    def memory_bytes(self) -> int:
        """What the encoder keeps from step to step: residual, momentum, thresholds."""
        return int(self._native.describe()["memory_bytes"])

    def encode(
        self, gradient: Any, density: float | None = None, values: str | None = None
    ) -> Record:
        """One step: the record of gradient + residual; what it leaves out is kept."""
        address, elements = self._input(gradient, "gradient")
        return self._native.encode(
            address,
            elements,
            self._density if density is None else _density(density),
            self._values if values is None else _one_of(values, "values", VALUES),
            self._threads,
        )

    def residual(self) -> Any:
        """What is kept, as a new NumPy array of the tensor's shape; of a range, flat."""
        import numpy as np

        out = np.empty(self._own_shape(), np.float32)
        self._native.read_residual(out.ctypes.data, out.size)
        return out

    def add_residual(self, addend: Any) -> None:
        """Add to what is kept."""
        self._native.add_residual(*self._input(addend, "addend"))

    def clear(self) -> None:
        """Forget residual and momentum."""
        self._native.clear_residual()

    def take_over(self, other: Encoder) -> None:
        """Add what another encoder of this tensor keeps of the elements that both have."""
        if not isinstance(other, Encoder):
            raise InvalidArgument(f"other must be an Encoder, got {type(other).__name__}")
        self._native.take_over(other._native)

    def save(self) -> bytes:
        """Everything that the next step depends on, but density, values and threads."""
        return self._native.save()

    @staticmethod
    def restore(
        saved: bytes,
        *,
        shape: int | Sequence[int] | None = None,
        density: float = 1.0,
        values: str = "q4",
        threads: int = 1,
    ) -> Encoder:
        """The encoder that :meth:`save` saved; its shape is rows and columns unless given."""
        encoder = Encoder.__new__(Encoder)
        encoder._set_defaults(density, values, threads)
        encoder._native = _scant.Encoder.restore(_plain_bytes(saved, "saved"))
        encoder._learn()
        rows, columns = encoder._rows, encoder._columns
        encoder._shape = (columns,) if rows == 1 else (rows, columns)
        if shape is not None:
            encoder._shape = _shape(shape)
            if _fold(encoder._shape) != (rows, columns):
                raise Mismatch(f"shape {encoder._shape} is not of {rows} rows of {columns}")
        return encoder

    def __reduce__(self) -> tuple[Any, ...]:
        defaults = (self._shape, self._density, self._values, self._threads)
        return _rebuild, (self.save(), *defaults)

    def __repr__(self) -> str:
        return (
            f"<scant.codec.Encoder of tensor {self.tensor}, shape {self._shape}: "
            f"density {self._density:g}, {self._values}, residual {self.residual_kind}>"
        )

    def _own_shape(self) -> tuple[int, ...]:
        first, elements = self.range
        whole = first == 0 and elements == self._rows * self._columns
        return self._shape if whole else (elements,)

    def _input(self, array: Any, name: str) -> tuple[int, int]:
        address, elements, shape = _view(array, name, write=False)
        own = self._own_shape()
        flat = (self.range[1],)
        if shape not in (own, flat) and (own == flat or _fold(shape) != _fold(own)):
            raise InvalidArgument(f"{name} has shape {shape}, this encoder is for {own}")
        return address, elements


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
    share = 1 / len(taken) if weight is None else _number(weight, "weight", -_F32_MAX, _F32_MAX)
    target = _target(taken[0], begin, count, out, like)
    address, size, shape = _view(target, "out" if like is None else "like", write=True)
    if size != count:
        raise InvalidArgument(
            f"{'out' if like is None else 'like'} has shape {shape}, expected {count} elements"
        )
    _scant.accumulate(taken, begin, address, size, share, _threads(threads))
    return target


def _slice(record: Record, first: int | None, elements: int | None) -> tuple[int, int]:
    end = record.first + record.elements
    begin = record.first if first is None else checks.whole(first, "first", 0, _ELEMENTS_MAX, None)
    if not record.first <= begin <= end:
        raise Mismatch(f"first {begin} lies outside of record 0: elements {record.first} to {end}")
    if elements is None:
        return begin, end - begin
    count = checks.whole(elements, "elements", 0, _ELEMENTS_MAX, None)
    if count > end - begin:
        raise Mismatch(f"elements {count} from {begin} leave record 0, which ends at {end}")
    return begin, count


def _target(record: Record, begin: int, count: int, out: Any, like: Any) -> Any:
    if out is not None and like is not None:
        raise InvalidArgument("out and like: give one of them")
    if out is not None:
        return out
    if _is_torch(like):
        import torch

        return torch.empty(like.shape, dtype=torch.float32)
    import numpy as np

    if like is not None:
        return np.empty(np.shape(like), np.float32)
    rows, columns = record.shape
    whole = begin == 0 and count == rows * columns
    return np.empty((rows, columns) if whole and rows != 1 else (count,), np.float32)


def _view(array: Any, name: str, write: bool) -> tuple[int, int, tuple[int, ...]]:
    """(address, elements, shape) of an f32 array."""
    if _is_torch(array) and array.requires_grad:
        array = array.detach()
    address, nbytes, dtype = arrays.view(array, name, write)
    if dtype != DType.F32:
        of = getattr(array, "dtype", arrays.dtype_name(dtype))
        how = f"{name}.float()" if _is_torch(array) else f"{name}.astype(numpy.float32)"
        raise InvalidArgument(f"{name} has dtype {of}, the codec takes f32: pass {how}")
    if address % 4 != 0:
        raise InvalidArgument(f"{name} is not aligned: pass {name}.copy()")
    elements = nbytes // 4
    return address, elements, tuple(getattr(array, "shape", (elements,)))


def _is_torch(array: Any) -> bool:
    return hasattr(array, "requires_grad") and hasattr(array, "detach")


def _shape(shape: Any) -> tuple[int, ...]:
    given = shape if isinstance(shape, Iterable) else (shape,)
    return tuple(checks.whole(size, "shape", 0, _ELEMENTS_MAX, None) for size in given)


def _fold(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns."""
    rows, columns = (shape[0] if len(shape) > 1 else 1), math.prod(shape[1:] or shape)
    if rows * columns > _ELEMENTS_MAX or max(rows, columns) > _ELEMENTS_MAX:
        raise InvalidArgument(f"shape {shape} has 2**63 elements or more")
    return rows, columns


def _range(given: Any, total: int) -> tuple[int, int]:
    try:
        first, elements = given
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"range must be (first, elements), got {given!r}") from error
    begin = checks.whole(first, "range: first", 0, total, None)
    return begin, checks.whole(elements, "range: elements", 0, total - begin, None)


def _number(value: Any, name: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"{name} must be a number, got {value!r}") from error
    if not low <= number <= high:  # not a number compares false
        raise InvalidArgument(f"{name} must lie in {low:g} to {high:g}, got {value!r}")
    return number


def _density(value: Any) -> float:
    number = _number(value, "density", 0, 1)
    if number == 0:
        raise InvalidArgument(f"density must lie above 0, got {value!r}")
    return number


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name} must be True or False, got {value!r}")
    return value


def _one_of(value: Any, name: str, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise InvalidArgument(f"{name} {value!r} is none of {', '.join(known)}")
    return value


def _threads(value: Any) -> int:
    return checks.whole(value, "threads", 1, _THREADS_MAX, None)


def _plain_bytes(data: Any, name: str) -> bytes:
    try:
        return bytes(memoryview(data))
    except TypeError as error:
        text = f"{name} must be bytes-like, got {type(data).__name__}"
        raise InvalidArgument(text) from error


def _rebuild(
    saved: bytes, shape: tuple[int, ...], density: float, values: str, threads: int
) -> Encoder:
    return Encoder.restore(saved, shape=shape, density=density, values=values, threads=threads)
