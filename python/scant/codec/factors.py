"""The strong directions of a matrix: one member's arithmetic, without the exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scant import _scant, checks
from scant.codec import checked
from scant.codec.encoder import Encoder
from scant.errors import InvalidArgument

__all__ = ["Factors"]


class Factors:
    """One member's share in finding a matrix's strong directions and sending them as factors.

    In each step, where A is the gradient plus the residuals of the encoders (times their decay)::

        left = factors.project(gradient, encoders)        # rank x rows; gradient is A now
        factors.set_basis(average of all members' left)
        right = factors.coefficients(gradient, encoders)  # of A in the basis; rank x columns
        record = encoder.encode_rest(factors, right as sent, gradient)
        factors.add(average of all members' right, average of all members' rests)
        factors.learn(average of all members' right)      # the next step's directions

    Args:
        shape: of the tensor; the first dimension counts rows.
        rank: how many directions, at most the rows and columns.
        seed: of the first directions, the same for all members.
        threads: that share the work; the bits do not depend on it.
        range: (first, elements) of a part of the tensor; its rows are those that it touches.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        rank: int,
        *,
        seed: int = _scant.directions_seed,
        threads: int = 1,
        range: tuple[int, int] | None = None,
    ) -> None:
        rows, columns = checked.fold(checked.as_shape(shape))
        whole = (0, rows * columns)
        self.range = whole if range is None else checked.as_range(range, whole[1])
        first, elements = self.range
        if elements == 0:
            raise InvalidArgument(f"shape {shape}, range {range}: there are no elements")
        self.rank = checks.whole(rank, "rank", 1, _scant.rank_max, None)
        self.rows = (first + elements - 1) // columns - first // columns + 1
        self.columns = columns
        self._threads = checked.as_threads(threads)
        drawn = checks.whole(seed, "seed", 0, 2**64 - 1, None)
        self._native = _scant.Factors(rows, columns, first, elements, drawn, self.rank)

    def project(self, gradient: Any, encoders: Encoder | Sequence[Encoder] = ()) -> Any:
        """The left factor, rank x rows: A times the directions. The gradient becomes A."""
        import numpy as np

        left = np.empty((self.rank, self.rows), np.float32)
        address = self._matrix(gradient, write=True)
        self._native.project(_natives(encoders), address, left.ctypes.data, self._threads)
        return left

    def set_basis(self, left: Any) -> None:
        """The average of all members' left factors, made orthonormal."""
        self._native.set_basis(self._factor(left, "left", self.rows))

    def coefficients(self, whole: Any, encoders: Encoder | Sequence[Encoder] = ()) -> Any:
        """The right factor, rank x columns: of A in the basis.

        The sum of each encoder's range is taken apart, so the encoders decide the last bits.
        None if a number is not finite or beyond 2^100. Then send zeros: the rest holds all of A.
        If no rest is sent, send NaN, so that all members see it.
        """
        import numpy as np

        right = np.empty((self.rank, self.columns), np.float32)
        address = self._matrix(whole, write=False)
        usable = self._native.coefficients(
            _natives(encoders), address, right.ctypes.data, self._threads
        )
        return right if usable else None

    def add(
        self, right: Any, out: Any, times: float = 1.0, range: tuple[int, int] | None = None
    ) -> None:
        """Adds basis * right * ``times`` to ``out``, which has the elements of ``range``."""
        first, elements = self.range if range is None else checked.as_range(range, 2**63 - 1)
        begin, all_elements = self.range
        if first < begin or first + elements > begin + all_elements:
            raise InvalidArgument(f"range {range} leaves {self.range}")
        address, size, shape = checked.view(out, "out", write=True)
        if size != elements:
            raise InvalidArgument(f"out has shape {shape}, expected {elements} elements")
        factor = checked.number(times, "times", -checked.F32_MAX, checked.F32_MAX)
        self._native.add(self.right_address(right), factor, first, address, size, self._threads)

    def learn(self, right: Any) -> None:
        """The average of all members' right factors: the next step's directions."""
        self._native.learn(self.right_address(right))

    @property
    def basis(self) -> Any:
        """The basis, rank x rows, orthonormal; a row is zeros if the average had too low a rank."""
        import numpy as np

        out = np.empty((self.rank, self.rows), np.float32)
        self._native.read_basis(out.ctypes.data)
        return out

    @property
    def directions(self) -> Any:
        """The directions that the next step multiplies by, rank x columns, each of length 1."""
        import numpy as np

        out = np.empty((self.rank, self.columns), np.float32)
        self._native.read_directions(out.ctypes.data)
        return out

    @property
    def native(self) -> _scant.Factors:
        """The extension's own object, for its calls."""
        return self._native

    def right_address(self, right: Any) -> int:
        """The address of a right factor, after a check of its shape."""
        return self._factor(right, "right", self.columns)

    def __repr__(self) -> str:
        return f"<scant.codec.Factors of rank {self.rank}: {self.rows} x {self.columns}>"

    def _matrix(self, array: Any, write: bool) -> int:
        address, size, shape = checked.view(array, "gradient", write=write)
        if size != self.range[1]:
            raise InvalidArgument(f"gradient has shape {shape}, expected {self.range[1]} elements")
        return address

    def _factor(self, array: Any, name: str, length: int) -> int:
        address, size, shape = checked.view(array, name, write=False)
        if size != self.rank * length:
            raise InvalidArgument(f"{name} has shape {shape}, expected {(self.rank, length)}")
        return address


def _natives(encoders: Encoder | Sequence[Encoder]) -> list[_scant.Encoder | None]:
    """Of one encoder, of several that cover the range one after the other, or of none."""
    given = [encoders] if isinstance(encoders, Encoder) else list(encoders)
    for one in given:
        if not isinstance(one, Encoder):
            raise InvalidArgument(f"encoders: an Encoder is needed, got {type(one).__name__}")
    return [one.native for one in given] or [None]
