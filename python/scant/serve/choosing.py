"""Which point each matrix of a model gets, so that a file of a given size says what the model says.

A point is a kind, and of sparse kinds a density. Each matrix has a curve: the bytes of its points,
and what they lose, weighted by the activations that enter the matrix. The one allocator
(`scant.codec.allocate` has the same) chooses. docs/packed.md, "Fewer bytes", is the arithmetic.
"""

from __future__ import annotations

import re
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

__all__ = ["Chosen", "Curve", "Point", "bytes_of", "choose", "curves_of"]

_CODES = ("q8", "q4", "q3", "q2")
_DENSITIES = (0.5,)  # of sparse points, where none is asked for
_PAGE = 65_536
_ALIGN = 64


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


def weights_of(sums: Mapping[str, ActivationSum]) -> dict[str, float]:
    """How much of what goes from layer to layer comes from each matrix.

    The results of a layer's matrices reach the stream by its output and its down projection. A
    relative error of one of them is, as a share of the stream, as large as the projection's share.
    """
    shares = {name: one.added / one.stream for name, one in sums.items() if one.stream > 0}
    weights: dict[str, float] = {}
    for name in sums:
        layer = re.match(r"(blk\.\d+\.)(attn|ffn)_", name)
        if layer is None:
            weights[name] = 1.0  # the head: its relative error is that of the logits
        else:
            last = "attn_output" if layer[2] == "attn" else "ffn_down"
            weights[name] = shares.get(f"{layer[1]}{last}.weight", 0.0)
    return weights


def _candidates(
    tensor: SourceTensor, sparsity: float | None, codes: Sequence[str]
) -> list[tuple[str, float]]:
    """Points besides that of the source."""
    whole = tensor.name in packing.WHOLE
    if sparsity is not None and not whole:
        return [(f"sparse {kind}", 1 - sparsity) for kind in packing.SPARSE]
    points = [(kind, 1.0) for kind in codes]
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
    source: Source,
    tensor: SourceTensor,
    sums: ActivationSum | None,
    weight: float,
    sparsity: float | None,
) -> Curve:
    columns = tensor.dims[-1]
    weights = numpy.ones(columns, numpy.float32)
    if sums is not None and sums.inputs.any():
        means = numpy.sqrt(sums.inputs / sums.tokens)
        weights = (means / means.max()).astype(numpy.float32)
    given = _candidates(tensor, sparsity, _CODES)
    measure = _scant.PointErrors(tensor.dims, given, weights.tobytes())
    for rows in source.chunks(tensor):
        measure.add_rows(tensor.kind, rows.ctypes.data, rows.nbytes)
    energy = measure.energy() or 1.0
    points = _kept(tensor, sparsity)
    for (kind, density), (size, error) in zip(given, measure.errors(), strict=True):
        masked = weights.tobytes() if kind.startswith("sparse") else b""
        points.append(Point(Choice(kind, density, masked), size, error / energy))
    return Curve(tensor, weight, tuple(points))


def curves_of(
    source: Source,
    sums: Mapping[str, ActivationSum],
    threads: int,
    sparsity: float | None = None,
) -> list[Curve]:
    """Of all matrices. ``sparsity``: those of the layers drop this share of each row."""
    weights = weights_of(sums)
    tied = "output.weight" not in sums
    jobs = []
    with ThreadPoolExecutor(threads) as pool:
        for tensor in source.tensors:
            if not packing.is_matrix(source, tensor):
                continue
            weight = weights.get(tensor.name, 1.0)
            if tied and tensor.name == "token_embd.weight":
                weight = 2.0  # it is the head, and what the stream begins with
            jobs.append(
                pool.submit(_curve, source, tensor, sums.get(tensor.name), weight, sparsity)
            )
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
    # page. So the matrices' share is raised until the file would be too large.
    best = least
    room = sum(one.bytes for one in least) + budget - size_of(least)
    for _ in range(8):
        points = _allocate(curves, max(room, sum(one.bytes for one in least)))
        left = budget - size_of(points)
        if left >= 0 and _lost(curves, points) <= _lost(curves, best):
            best = points
        if 0 <= left < _PAGE:
            break
        room += left
    choices = {
        curve.tensor.name: one.choice
        for curve, one in zip(curves, best, strict=True)
        if one.choice.kind != curve.tensor.kind
    }
    return Chosen(best, size_of(best), _lost(curves, best), choices)


def _lost(curves: Sequence[Curve], points: Sequence[Point]) -> float:
    return sum(curve.weight * one.error for curve, one in zip(curves, points, strict=True))
