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

from scant import codec

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
    """Two thin factors of each matrix, and the rest as records; all ranks in one.

    Each rank's matrix A = gradient + residual. Its product with the directions of the last step
    goes to an owner, which sends the average back to all: orthonormal, that is the basis P. Each
    rank then sends its coefficients Aᵀ·P and the rest, A minus what the coefficients say, both by
    an owner. What the owner's rounding leaves of the coefficients joins one rank's own residual.
    """

    def __init__(self, shapes: Sequence[torch.Size], options: Options, ranks: int) -> None:
        self.sent_bytes = 0.0
        self.options = options
        draw = torch.Generator().manual_seed(7)
        self.right: list[torch.Tensor | None] = []
        for shape in shapes:
            rows, columns = PowerSgd._matrix(shape)
            low = min(options.rank, rows, columns) if len(shape) > 1 else 0
            worth = low > 0 and low * (rows + columns) < rows * columns
            self.right.append(torch.randn(low, columns, generator=draw) if worth else None)
        self.workers = [CodecWorker(shapes, options, rank).encoders for rank in range(ranks)]
        self.owners = CodecWorker(shapes, options, 1000).encoders

    def combine(self, messages: Sequence[list[Any]]) -> list[torch.Tensor]:
        self.sent_bytes = 0.0
        averages = []
        for number, right in enumerate(self.right):
            parts = [message[number] for message in messages]
            if right is None:
                averages.append(self._records(number, parts, 1.0, self.options.values or "q4"))
            else:
                averages.append(self._matrix_average(number, right, parts))
        return averages

    def _count(self, records: Sequence[Any], back: Any) -> None:
        """The bytes of both legs."""
        ranks = len(records)
        self.sent_bytes += (ranks - 1) / ranks * (records[0].nbytes + back.nbytes)

    def _coded(self, factor: torch.Tensor) -> Any:
        how = codec.Encoder(tuple(factor.shape), values=self.options.factors, residual="none")
        return how.encode(factor.contiguous())

    def _averaged(
        self, factors: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """What was sent by each, the average that all decode, and what its rounding left."""
        records = [self._coded(factor) for factor in factors]
        sent = [codec.decode(record, torch.empty_like(factors[0])) for record in records]
        mean = codec.accumulate(records, torch.empty_like(factors[0]))
        back = self._coded(mean)
        self._count(records, back)
        got = codec.decode(back, torch.empty_like(factors[0]))
        return sent, got, mean - got

    def _records(
        self, number: int, parts: Sequence[torch.Tensor], density: float, values: str
    ) -> torch.Tensor:
        records = [
            worker[number].encode(part.contiguous(), density, values)
            for worker, part in zip(self.workers, parts, strict=True)
        ]
        mean: torch.Tensor = codec.accumulate(records, torch.empty(parts[0].shape))
        back = self.owners[number].encode(mean, density, values)
        self._count(records, back)
        codec.decode(back, mean)
        return mean

    def _matrix_average(
        self, number: int, right: torch.Tensor, parts: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        shape = parts[0].shape
        size = PowerSgd._matrix(shape)
        right = right / right.norm(dim=1, keepdim=True).clamp_min(1e-30)
        kept = [
            part.view(size) + torch.from_numpy(worker[number].residual()).view(size)
            for part, worker in zip(parts, self.workers, strict=True)
        ]
        _, left, _ = self._averaged([(matrix @ right.T).T.contiguous() for matrix in kept])
        left = orthogonal(left.T)
        sent, mean, lost = self._averaged([(matrix.T @ left).T.contiguous() for matrix in kept])
        self.right[number] = mean
        rests = [
            (part.view(size) - left @ coefficients).view(shape)
            for part, coefficients in zip(parts, sent, strict=True)
        ]
        average = (left @ mean).view(shape)
        if self.options.values:
            average = average + self._records(
                number, rests, self.options.density, self.options.values
            )
        else:
            for worker, rest in zip(self.workers, rests, strict=True):
                worker[number].add_residual(rest)
        owner = self.workers[number % len(self.workers)][number]
        owner.add_residual((len(parts) * (left @ lost)).view(shape).contiguous())
        return average


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
