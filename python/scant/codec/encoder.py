"""The encoder: gradients of one tensor in, records out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scant import _scant, checks
from scant._scant import Record
from scant.codec import checked
from scant.errors import InvalidArgument, Mismatch

if TYPE_CHECKING:
    from scant.codec.factors import Factors

__all__ = ["Encoder"]


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
        self._shape = checked.as_shape(shape)
        rows, columns = checked.fold(self._shape)
        part = None if range is None else checked.as_range(range, rows * columns)
        self._set_defaults(density, values, threads)
        self._native = _scant.Encoder(
            {
                "rows": rows,
                "columns": columns,
                "tensor": checks.whole(tensor, "tensor", 0, 2**32 - 1, None),
                "residual": checked.one_of(residual, "residual", checked.RESIDUALS),
                "decay": checked.number(decay, "decay", 0, 1),
                "momentum": checked.number(momentum, "momentum", 0, 1),
                "mask_momentum": checked.flag(mask_momentum, "mask_momentum"),
                "stochastic": checked.flag(stochastic, "stochastic"),
                "evenness": checked.number(evenness, "evenness", 0, 1),
                "seed": checks.whole(seed, "seed", 0, 2**64 - 1, None),
                "range": part,
            }
        )
        self._learn()

    def _set_defaults(self, density: float, values: str, threads: int) -> None:
        self._density = checked.as_density(density)
        self._values = checked.one_of(values, "values", checked.VALUES)
        self._threads = checked.as_threads(threads)

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
            self._density if density is None else checked.as_density(density),
            self._values if values is None else checked.one_of(values, "values", checked.VALUES),
            self._threads,
        )

    def encode_rest(
        self,
        factors: Factors,
        right: Any,
        whole: Any,
        density: float | None = None,
        values: str | None = None,
    ) -> Record:
        """One step of a matrix whose factors are sent: the record of what they leave, the rest.

        Args:
            factors: with the basis of this step.
            right: this member's coefficients, as the other members decode them.
            whole: gradient + decay * residual, as ``factors.project`` made it; it may change.
            density, values: as in :meth:`encode`; density 0 sends no rest and keeps it.
        """
        address, size, shape = checked.view(whole, "whole", write=True)
        if size != self.range[1]:
            raise InvalidArgument(f"whole has shape {shape}, expected {self.range[1]} elements")
        share = self._density if density is None else density
        how = self._values if values is None else checked.one_of(values, "values", checked.VALUES)
        at_right = factors.right_address(right)
        if share == 0:
            share, how = 0.0, "f32"
        else:
            share = checked.as_density(share)
        return factors.native.encode_rest(
            self._native, address, size, at_right, share, how, self._threads
        )

    @property
    def native(self) -> _scant.Encoder:
        """The extension's own object, for its calls."""
        return self._native

    def native_probe(
        self, gradient: Any, points: list[tuple[float, str]] | None, threads: int
    ) -> tuple[float, list[tuple[float, str, float, float]]]:
        """Energy, and the fields of each CurvePoint; see :func:`probe`."""
        return self._native.probe(*self._input(gradient, "gradient"), points, threads)

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
        saved: Any,
        *,
        shape: int | Sequence[int] | None = None,
        density: float = 1.0,
        values: str = "q4",
        threads: int = 1,
    ) -> Encoder:
        """The encoder that :meth:`save` saved; its shape is rows and columns unless given."""
        encoder = Encoder.__new__(Encoder)
        encoder._set_defaults(density, values, threads)
        encoder._native = _scant.Encoder.restore(checked.plain_bytes(saved, "saved"))
        encoder._learn()
        rows, columns = encoder._rows, encoder._columns
        encoder._shape = (columns,) if rows == 1 else (rows, columns)
        if shape is not None:
            encoder._shape = checked.as_shape(shape)
            if checked.fold(encoder._shape) != (rows, columns):
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
        address, elements, shape = checked.view(array, name, write=False)
        own = self._own_shape()
        flat = (self.range[1],)
        if shape not in (own, flat) and (own == flat or checked.fold(shape) != checked.fold(own)):
            raise InvalidArgument(f"{name} has shape {shape}, this encoder is for {own}")
        return address, elements


def _rebuild(
    saved: bytes, shape: tuple[int, ...], density: float, values: str, threads: int
) -> Encoder:
    return Encoder.restore(saved, shape=shape, density=density, values=values, threads=threads)
