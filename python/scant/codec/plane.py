"""The plane of codecs: what a point costs and keeps, budgets, and the selections of others."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scant import _scant, checks
from scant.codec import checked
from scant.codec.encoder import Encoder
from scant.errors import InvalidArgument

__all__ = [
    "Allocation",
    "Curve",
    "CurvePoint",
    "allocate",
    "default_points",
    "probe",
    "random_k",
    "row_top_k",
    "threshold_select",
    "top_k",
]


class CurvePoint(NamedTuple):
    """What a record at one point of the plane would take and keep."""

    density: float
    values: str
    bytes: float
    energy_kept: float  # share of the curve's energy


# A probe makes dozens within a fraction of a millisecond: _make() would take more than the rest.
_curve_point = functools.partial(tuple.__new__, CurvePoint)


@dataclass(frozen=True)
class Curve:
    """The points of one tensor; ``energy`` is that of gradient + residual."""

    energy: float
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Allocation:
    """Of each curve one point: their numbers in ``choice``, and what they sum to.

    No choice within the budget keeps more than ``energy_bound``.
    """

    choice: tuple[int, ...]
    points: tuple[CurvePoint, ...]
    bytes: float
    energy: float
    energy_bound: float


def default_points() -> list[tuple[float, str]]:
    """The points that :func:`probe` looks at: densities and kinds of value."""
    return _scant.default_points()


def probe(
    gradient: Any,
    encoder: Encoder | None = None,
    points: Iterable[tuple[float, str]] | None = None,
    threads: int = 1,
) -> Curve:
    """Estimate from a sample what each point would cost and keep; the encoder does not change.

    Without an encoder, as if it were the first step of one.
    """
    pairs = None if points is None else [_point(point) for point in points]
    if encoder is None:
        shape = checked.view(gradient, "gradient", write=False)[2]
        encoder = Encoder(shape, residual="none")
    elif not isinstance(encoder, Encoder):
        raise InvalidArgument(f"encoder must be an Encoder, got {type(encoder).__name__}")
    energy, rows = encoder.native_probe(gradient, pairs, checked.as_threads(threads))
    return Curve(energy, tuple(map(_curve_point, rows)))


def allocate(curves: Sequence[Curve], budget_bytes: float) -> Allocation:
    """Choose a point of each curve, so that within the budget the most energy is kept."""
    budget = checked.number(budget_bytes, "budget_bytes", 0, float("inf"))
    given = []
    for number, curve in enumerate(curves):
        if not isinstance(curve, Curve):
            raise InvalidArgument(f"curve {number} must be a Curve, got {type(curve).__name__}")
        rows = [
            (*_point(point[:2]), float(point.bytes), float(point.energy_kept) * curve.energy)
            for point in curve.points
        ]
        given.append((float(curve.energy), rows))
    choice, size, energy, bound = _scant.allocate(given, budget)
    chosen = tuple(curves[i].points[one] for i, one in enumerate(choice))
    return Allocation(tuple(choice), chosen, size, energy, bound)


def top_k(values: Any, count: int) -> Any:
    """Flat positions of the ``count`` largest magnitudes, ascending."""
    address, elements, _ = checked.view(values, "values", write=False)
    return _positions(_scant.select_top_k(address, elements, _count(count)))


def row_top_k(values: Any, density: float) -> Any:
    """Flat positions of the largest magnitudes of each row, at least one (ADTopk)."""
    address, elements, shape = checked.view(values, "values", write=False)
    columns = checked.fold(shape)[1]
    if elements == 0:
        return _positions(b"")
    share = checked.as_density(density)
    return _positions(_scant.select_row_top_k(address, elements, columns, share))


def random_k(elements: int, count: int, seed: int = 1, step: int = 0) -> Any:
    """``count`` of so many positions, each set equally likely; ascending."""
    total = checks.whole(elements, "elements", 0, checked.ELEMENTS_MAX, None)
    drawn = checks.whole(count, "count", 0, total, None)
    key = checks.whole(seed, "seed", 0, 2**64 - 1, None)
    turn = checks.whole(step, "step", 0, 2**64 - 1, None)
    return _positions(_scant.select_random_k(total, drawn, key, turn))


def threshold_select(values: Any, threshold: float) -> Any:
    """Flat positions of all magnitudes not below the threshold, NaN included."""
    address, elements, _ = checked.view(values, "values", write=False)
    limit = checked.number(threshold, "threshold", 0, float("inf"))
    return _positions(_scant.select_threshold(address, elements, limit))


def _count(value: Any) -> int:
    return checks.whole(value, "count", 0, checked.ELEMENTS_MAX, None)


def _point(given: Any) -> tuple[float, str]:
    try:
        density, values = given
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"points: {given!r} is no (density, values)") from error
    return checked.as_density(density), checked.one_of(values, "values", checked.VALUES)


def _positions(packed: bytes) -> Any:
    import numpy as np

    return np.frombuffer(packed, np.uint64).astype(np.int64)
