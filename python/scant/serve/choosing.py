"""Which point each matrix of a model gets, so that a file of a given size says what the model says.

A point is a kind, and of sparse kinds a density. Each matrix has a curve: the bytes of its points,
and what they lose, weighted by the activations that enter the matrix. How much a loss matters is
measured. The allocator that shares out a link's bytes chooses. docs/packed.md, "Fewer bytes", has
the arithmetic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy

from scant import _scant, amounts
from scant.errors import InvalidArgument
from scant.serve import packing
from scant.serve.decoding import ActivationSum
from scant.serve.packing import Choice
from scant.serve.sources import Source, SourceTensor

__all__ = [
    "Chosen",
    "Curve",
    "Point",
    "as_bits",
    "bytes_of",
    "choose",
    "curves_of",
    "groups_of",
    "only_sparse",
    "with_weights",
]

_CODES = ("q8", "q4", "q3", "q2")
_DENSITIES = (0.5,)  # of sparse points, where none is asked for
_PAGE = 65_536
_ALIGN = 64
_STEPS = 8192  # budgets of the matrices, at most, that are tried
_STEP_MIN = 1024  # bytes between them


@dataclass(frozen=True)
class Point:
    """A way to write a matrix: its bytes, and the share of its result that is lost."""

    choice: Choice
    bytes: int
    error: float  # squared error of the product, as a share of the product's energy

    @property
    def name(self) -> str:
        """As it is told."""
        choice = self.choice
        return choice.kind if choice.density == 1 else f"{choice.kind}, {choice.density:.0%} kept"


@dataclass(frozen=True)
class Curve:
    """A matrix and its points."""

    tensor: SourceTensor
    weight: float  # how much of what the model says depends on this product
    points: tuple[Point, ...]


@dataclass
class Chosen:
    """A point of each curve."""

    points: list[Point]
    bytes: int  # of the whole file
    error: float  # weighted sum
    choices: dict[str, Choice] = field(default_factory=dict)


# ---- curves ------------------------------------------------------------------------------------


_TOGETHER = {
    "attn_q": "attn_qkv", "attn_k": "attn_qkv", "attn_v": "attn_qkv",
    "ffn_gate": "ffn_up",
}  # fmt: skip


def groups_of(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Matrices that read the same activations, together."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        at, _, name = curve.tensor.name.removesuffix(".weight").rpartition(".")
        groups.setdefault(f"{at}.{_TOGETHER.get(name, name)}", []).append(curve)
    return list(groups.values())


def with_weights(
    groups: Sequence[Sequence[Curve]], divergences: Sequence[float], coarse: str
) -> list[Curve]:
    """The curves, each with the divergence that its error caused where the group was coarse."""
    curves = []
    for group, divergence in zip(groups, divergences, strict=True):
        errors = (
            next(one.error for one in curve.points if one.choice.kind == coarse) for curve in group
        )
        weight = divergence / (sum(errors) or 1.0)
        curves += [dataclasses.replace(curve, weight=weight) for curve in group]
    return curves


def _candidates(
    tensor: SourceTensor, sparsity: float | None, codes: Sequence[str]
) -> list[tuple[str, float]]:
    """Points besides that of the source."""
    whole = tensor.name in packing.WHOLE
    points = [(kind, 1.0) for kind in codes]
    if sparsity is not None and not whole:
        # The dense ones are only looked at; see only_sparse().
        return points + [(f"sparse {kind}", 1 - sparsity) for kind in packing.SPARSE]
    if tensor.kind in ("f32", "bf16", "f16"):
        points.insert(0, ("bf16 tiles", 1.0))
    if not whole:
        points += [("sparse q4", one) for one in _DENSITIES]
    return points


def _kept(tensor: SourceTensor, sparsity: float | None) -> list[Point]:
    """The point of the source, which loses nothing; bf16 has tiles for that."""
    if tensor.kind == "bf16" or (sparsity and tensor.name not in packing.WHOLE):
        return []
    return [Point(Choice(tensor.kind), tensor.rows * tensor.row_bytes, 0.0)]


def _curve(
    source: Source, tensor: SourceTensor, sums: ActivationSum | None, sparsity: float | None
) -> Curve:
    columns = tensor.dims[-1]
    weights = numpy.ones(columns, numpy.float32)
    if sums is not None and sums.inputs.any():
        means = numpy.sqrt(sums.inputs / sums.tokens)
        weights = (means / means.max()).astype(numpy.float32)
    given = _candidates(tensor, sparsity, _CODES)
    measure = _scant.PointErrors(tensor.dims, given, weights.tobytes())
    for rows in source.chunks(tensor):
        try:
            measure.add_rows(tensor.kind, rows.ctypes.data, rows.nbytes)
        except InvalidArgument as error:
            raise InvalidArgument(f"tensor {tensor.name!r}: {error}") from None
    energy = measure.energy() or 1.0
    points = _kept(tensor, sparsity)
    for (kind, density), (size, lost) in zip(given, measure.errors(), strict=True):
        masked = weights.tobytes() if kind.startswith("sparse") else b""
        points.append(Point(Choice(kind, density, masked), size, lost / energy))
    return Curve(tensor, 1.0, tuple(points))


def curves_of(
    source: Source,
    sums: Mapping[str, ActivationSum],
    threads: int,
    sparsity: float | None = None,
) -> list[Curve]:
    """Of all matrices. ``sparsity``: those of the layers drop this share of each row."""
    matrices = [one for one in source.tensors if packing.is_matrix(source, one)]
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(_curve, source, one, sums.get(one.name), sparsity) for one in matrices]
        return [job.result() for job in jobs]


# ---- bytes -------------------------------------------------------------------------------------


def _up(size: int, to: int) -> int:
    return -(-size // to) * to


def bytes_of(source: Source, sizes: Mapping[str, int], options: str) -> int:
    """Of the whole file, if matrices have these bytes and all else stays as it is."""
    at, tensors, runs = _PAGE, 0, packing.in_order(source)
    for run in runs:
        for tensor in run:
            at = _up(at, _ALIGN) + sizes.get(tensor.name, tensor.rows * tensor.row_bytes)
            tensors += 1
        at = _up(at, _PAGE)
    parts = packing.parts_of(source, options)
    names = [one.name for one in source.tensors] + [name for _, name, _ in parts]
    described = 144
    index = 8 * len(runs) + 64 * tensors + 16 * (len(parts) + 1) + 4 * (at // _PAGE - 1)
    index += sum(len(name.encode()) for name in names)
    return at + index + described + sum(len(data) for *_, data in parts)


# ---- the choice --------------------------------------------------------------------------------


def _allocate(curves: Sequence[Curve], budget: float) -> list[Point]:
    given = []
    for curve in curves:
        rows = [
            (1.0, "f32", float(one.bytes), curve.weight * max(0.0, 1 - one.error))
            for one in curve.points
        ]
        given.append((curve.weight, rows))
    chosen, *_ = _scant.allocate(given, budget)
    return [curve.points[i] for curve, i in zip(curves, chosen, strict=True)]


def as_bits(
    source: Source, curves: Sequence[Curve], bits: int, sparsity: float, options: str
) -> int:
    """The bytes of a file whose matrices all have codes of so many bits."""
    wanted = "bf16" if bits == 16 else f"q{bits}"
    choices = packing.choices_as(source, wanted, sparsity)
    sizes = {
        curve.tensor.name: one.bytes
        for curve in curves
        for one in curve.points
        if one.choice.kind == choices[curve.tensor.name].kind
    }
    return bytes_of(source, sizes, options)


def only_sparse(curves: Sequence[Curve]) -> list[Curve]:
    """Without the dense points of the layers' matrices."""
    return [
        curve
        if curve.tensor.name in packing.WHOLE
        else dataclasses.replace(
            curve, points=tuple(one for one in curve.points if "sparse" in one.choice.kind)
        )
        for curve in curves
    ]


def choose(source: Source, curves: Sequence[Curve], budget: int, options: str) -> Chosen:
    """The points with which the file has at most so many bytes, and loses least.

    Raises :class:`scant.InvalidArgument`, which names the least bytes, if there are none.
    """

    def size_of(points: Sequence[Point]) -> int:
        sizes = {curve.tensor.name: one.bytes for curve, one in zip(curves, points, strict=True)}
        return bytes_of(source, sizes, options)

    least = [min(curve.points, key=lambda one: one.bytes) for curve in curves]
    if size_of(least) > budget:
        raise InvalidArgument(
            f"the model does not fit into {amounts.size(budget)}: its smallest form has "
            f"{size_of(least):,} bytes"
        )
    # What is around the matrices depends a little on their bytes: gaps, and a checksum for each
    # page. So budgets of the matrices are tried from the largest on, multiples of the same step for
    # all sizes: a larger file tries what a smaller one tried, and so never loses more.
    best, low = least, sum(one.bytes for one in least)
    most = sum(max(one.bytes for one in curve.points) for curve in curves)
    step = max(most // _STEPS, _STEP_MIN)
    for room in range(min(budget, most + step) // step * step, low - 1, -step):
        points = _allocate(curves, room)
        if size_of(points) <= budget:
            best = points
            break
    choices = {
        curve.tensor.name: one.choice
        for curve, one in zip(curves, best, strict=True)
        if one.choice.kind != curve.tensor.kind
    }
    return Chosen(best, size_of(best), _lost(curves, best), choices)


def _lost(curves: Sequence[Curve], points: Sequence[Point]) -> float:
    return sum(curve.weight * one.error for curve, one in zip(curves, points, strict=True))
