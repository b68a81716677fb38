"""Ways to average the gradients of several ranks: plain, fp16, PowerSGD and the codec's points.

Bytes are those that one of P ranks sends: an all-reduce of S bytes 2 (P−1)/P · S, one leg of a
reduce-scatter or all-gather of S bytes in all (P−1)/P · S, a record that all others get (P−1) times
its size.

A :class:`Worker` is one rank: it turns its gradients into a message. A :class:`Combiner` turns the
messages of all ranks, in their order, into what the optimizer gets; every rank has one and they
stay alike. A simulation holds all workers and one combiner in one process.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from harness import all_reduce_bytes

from scant import _scant, codec

Tensors = Sequence[torch.Tensor]
F32_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Options:
    """What an exchange does; the defaults are the plain average."""

    kind: str = "plain"  # plain, fp16, powersgd, codec
    density: float = 1.0
    values: str = "f32"
    residual: str = "f32"
    legs: int = 1  # 2: the average is encoded again, with a residual of its own
    decay: float = 1.0
    momentum: float = 0.0
    rank: int = 0  # of PowerSGD, and of factors
    factors: str = "q8"  # how factors are written; the rest: density and values, "" is none
    warm_up: int = 0  # steps at sixteen times the density, falling
    small: int = 0  # tensors of fewer elements go as q8, dense
    local_adam: bool = False  # the local optimizer's step is sent instead of the gradient
    budget: float = 0.0  # > 0: bytes an element; an allocator chooses each tensor's point
    back: str = ""  # values of the second leg; default: those of the first
    even: bool = False  # the allocator counts shares of each tensor's energy, by its elements


class Worker(Protocol):
    def message(self, gradients: Tensors) -> list[Any]: ...


class Combiner(Protocol):
    sent_bytes: float  # by one rank in the last step

    def combine(self, messages: Sequence[list[Any]]) -> list[torch.Tensor]: ...


class PlainWorker:
    """The gradients as they are, or rounded to half precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def message(self, gradients: Tensors) -> list[Any]:
        return [gradient.to(self.dtype) for gradient in gradients]


class PlainCombiner:
    def __init__(self) -> None:
        self.sent_bytes = 0.0

    def combine(self, messages: Sequence[list[Any]]) -> list[torch.Tensor]:
        self.sent_bytes = all_reduce_bytes(sum(part.nbytes for part in messages[0]), len(messages))
        sums = [torch.zeros_like(part, dtype=torch.float32) for part in messages[0]]
        for message in messages:
            for total, part in zip(sums, message, strict=True):
                total += part.float()
        return [total / len(messages) for total in sums]


class CodecWorker:
    """One rank's encoders, one a tensor."""

    def __init__(self, shapes: Sequence[torch.Size], options: Options, rank: int) -> None:
        self.options = options
        self.step = 0
        self.encoders = [
            codec.Encoder(
                tuple(shape),
                tensor=number,
                residual=options.residual,
                decay=options.decay,
                momentum=options.momentum,
                seed=1 + rank,
            )
            for number, shape in enumerate(shapes)
        ]
        self.points: list[tuple[float, str]] | None = None

    def message(self, gradients: Tensors) -> list[Any]:
        self._choose(gradients)
        made = []
        for number, (encoder, gradient) in enumerate(zip(self.encoders, gradients, strict=True)):
            density, values = self._point(number, gradient.numel())
            made.append(encoder.encode(gradient, density, values))
        self.step += 1
        return made

    def _choose(self, gradients: Tensors) -> None:
        """Every twentieth step, by measured rate and distortion."""
        if self.options.budget <= 0 or self.step % 20 != 0:
            return
        curves = [
            codec.probe(gradient, encoder=encoder)
            for encoder, gradient in zip(self.encoders, gradients, strict=True)
        ]
        if self.options.even:
            curves = [
                dataclasses.replace(curve, energy=float(gradient.numel()))
                for curve, gradient in zip(curves, gradients, strict=True)
            ]
        budget = self.options.budget * sum(gradient.numel() for gradient in gradients)
        chosen = codec.allocate(curves, budget).points
        self.points = [(point.density, point.values) for point in chosen]

    def _point(self, number: int, elements: int) -> tuple[float, str]:
        if self.points is not None:
            return self.points[number]
        if elements < self.options.small:
            return 1.0, "q8"
        density = self.options.density
        if density < 1 and self.step < self.options.warm_up:
            left = 1 - self.step / self.options.warm_up
            density = min(1.0, density * 4.0 ** (2 * left))
        return density, self.options.values


class CodecCombiner:
    """Adds the records; with two legs, encodes the average as the slices' owners would."""

    def __init__(self, shapes: Sequence[torch.Size], options: Options) -> None:
        self.shapes = shapes
        self.sent_bytes = 0.0
        self.owner: CodecWorker | None = None
        if options.legs == 2:
            back = dataclasses.replace(options, values=options.back or options.values)
            self.owner = CodecWorker(shapes, back, 1000)

    def combine(self, messages: Sequence[list[Any]]) -> list[torch.Tensor]:
        ranks = len(messages)
        own = sum(record.nbytes for record in messages[0])
        averages = []
        for number, shape in enumerate(self.shapes):
            average = torch.empty(shape)
            averages.append(codec.accumulate([message[number] for message in messages], average))
        if self.owner is None:
            self.sent_bytes = (ranks - 1) * own
            return averages
        records = self.owner.message(averages)
        back = sum(record.nbytes for record in records)
        self.sent_bytes = (ranks - 1) / ranks * (own + back)
        return [codec.decode(record, out) for record, out in zip(records, averages, strict=True)]


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    columns: torch.Tensor = torch.linalg.qr(matrix).Q
    return columns


class PowerSgd:
    """Vogels et al. 2019, all ranks in one: error feedback, warm start; vectors go as f32.

    Written as a combiner of plain messages, since its two all-reduces are sums.
    """

    def __init__(self, shapes: Sequence[torch.Size], options: Options, ranks: int) -> None:
        self.sent_bytes = 0.0
        self.rank = options.rank
        draw = torch.Generator().manual_seed(7)
        self.q: list[torch.Tensor | None] = []
        self.errors = [[torch.zeros(shape) for shape in shapes] for _ in range(ranks)]
        for shape in shapes:
            low = min([self.rank, *self._matrix(shape)]) if len(shape) > 1 else 0
            columns = self._matrix(shape)[1]
            self.q.append(torch.randn(columns, low, generator=draw) if low else None)

    @staticmethod
    def _matrix(shape: torch.Size) -> tuple[int, int]:
        return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, shape[0])

    def combine(self, messages: Sequence[list[Any]]) -> list[torch.Tensor]:
        self.sent_bytes = 0.0
        averages = []
        for number, first in enumerate(messages[0]):
            q = self.q[number]
            parts = [message[number] for message in messages]
            if q is None:
                self.sent_bytes += all_reduce_bytes(first.numel() * F32_BYTES, len(messages))
                averages.append(torch.stack(parts).mean(0))
                continue
            size = self._matrix(first.shape)
            kept = [
                (part + errors[number]).view(size)
                for part, errors in zip(parts, self.errors, strict=True)
            ]
            p = orthogonal(sum(matrix @ q for matrix in kept) / len(kept))
            q = sum(matrix.T @ p for matrix in kept) / len(kept)
            self.q[number] = q
            size_bytes = (p.numel() + q.numel()) * F32_BYTES
            self.sent_bytes += all_reduce_bytes(size_bytes, len(messages))
            average = p @ q.T
            for matrix, errors in zip(kept, self.errors, strict=True):
                errors[number] = (matrix - average).view(first.shape)
            averages.append(average.view(first.shape))
        return averages


class Factors:
    """Points with a rank: simulates the exchange of all ranks by a plan with one part a tensor.

    Parts have the order in which backward reaches their tensors: the last tensor comes first.
    """

    def __init__(self, shapes: Sequence[torch.Size], options: Options, ranks: int) -> None:
        self.sent_bytes = 0.0
        layout = layout_of(shapes, ranks)
        owners = {part: owner for part, owner, _, _ in reversed(layout.slices)}  # of first slices
        point = name_of(options)
        parts = range(len(shapes) - 1, -1, -1)
        self.members = [
            codec.Members(tuple(shape), ranks, point, part=part, tensor=part, owner=owners[part])
            for shape, part in zip(shapes, parts, strict=True)
        ]

    def combine(self, messages: Sequence[list[Any]]) -> list[torch.Tensor]:
        done = [
            members.exchange([message[number].contiguous() for message in messages])
            for number, members in enumerate(self.members)
        ]
        self.sent_bytes = sum(one.bytes for one in done)
        return [one.mean for one in done]


def layout_of(shapes: Sequence[torch.Size], ranks: int) -> _scant.GradientLayout:
    """The layout that :func:`scant.torch.wrap` makes for parameters of these shapes."""
    layout = _scant.GradientLayout([PowerSgd._matrix(shape) for shape in reversed(shapes)], ranks)
    if len(layout.parts) != len(shapes):
        raise ValueError("a tensor has several parts; this simulation numbers one part a tensor")
    return layout


def name_of(options: Options) -> str:
    """The name of a point with factors."""
    rest = f", {100 * options.density:g}% {options.values}" if options.values else ""
    return f"rank {options.rank} of {options.factors}{rest}"


def plan_of(options: Options, shapes: Sequence[torch.Size], ranks: int) -> _scant.FusionPlan:
    """The plan by which real ranks do what :class:`Factors` simulates."""
    point = codec.points.named(name_of(options))
    assert not isinstance(point, str)
    path, layout = "split", layout_of(shapes, ranks)
    sizes = (25 << 20, 1 << 20, 0)  # buffers, the first one, and tensors that go whole: none
    return _scant.FusionPlan.uniform(layout, path, point.density, point.text, *sizes)


def make(
    options: Options, shapes: Sequence[torch.Size], ranks: int
) -> tuple[list[Worker], Combiner]:
    """One worker a rank, and a combiner."""
    if options.kind == "codec":
        workers: list[Worker] = [CodecWorker(shapes, options, rank) for rank in range(ranks)]
        return workers, CodecCombiner(shapes, options)
    dtype = torch.float16 if options.kind == "fp16" else torch.float32
    plain: list[Worker] = [PlainWorker(dtype) for _ in range(ranks)]
    if options.kind == "powersgd":
        return plain, PowerSgd(shapes, options, ranks)
    if options.kind == "factors":
        return plain, Factors(shapes, options, ranks)
    return plain, PlainCombiner()
