"""What goes through a model when it reads a text: which columns of a matrix matter, how much.

The text is the caller's, or one that the model writes itself: then no text has to be had, and what
is looked at is what the model was trained on. It also does for comparing two forms of a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from scant.errors import Corrupt, InvalidArgument
from scant.serve.decoding import ActivationSum, Decoder, Model, Piece
from scant.serve.description import NO_TOKEN

__all__ = [
    "PIECE",
    "Difference",
    "activations",
    "compare",
    "own_text",
    "pieces_of",
    "sensitivities",
]

PIECE = 256  # tokens that are read together; each piece begins a text
_AT_ONCE = 64  # tokens whose logits are in memory
_OWN_PIECE = 128  # tokens of a piece that a model writes


def pieces_of(tokens: Sequence[int], context: int, most: int) -> list[list[int]]:
    """Pieces from all over the text; what does not fill one is left out."""
    length = min(PIECE, context)
    count = len(tokens) // length
    if count == 0:
        raise InvalidArgument(
            f"a text of {len(tokens):,} tokens is too short: at least {length:,} are needed"
        )
    chosen = numpy.linspace(0, count - 1, min(most, count)).round().astype(int)
    return [list(tokens[i * length : (i + 1) * length]) for i in chosen]


def own_text(model: Model, count: int, threads: int, seed: int = 1) -> list[list[int]]:
    """Pieces that the model writes, each token as likely as the model says, all side by side."""
    description = model.description
    length = min(_OWN_PIECE, description.context)
    pages = -(-length // 16)
    decoder = Decoder(model, pages=pages * count, threads=threads)
    draw = numpy.random.default_rng(seed)
    first = description.bos
    if first == NO_TOKEN:
        first = description.eos[0] if description.eos else 0
    texts = [[first] for _ in range(count)]
    for position in range(length - 1):
        step = [
            Piece(text[-1:], position, range(i * pages, (i + 1) * pages))
            for i, text in enumerate(texts)
        ]
        logits = _finite(decoder.run(step)).astype(numpy.float64)
        # The largest of logits and Gumbel's noise is a draw by their probabilities.
        chosen = (logits + draw.gumbel(size=logits.shape)).argmax(axis=1)
        for text, token in zip(texts, chosen.tolist(), strict=True):
            text.append(token)
    return texts


def _finite(logits: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    if not numpy.isfinite(logits).all():
        raise Corrupt("the model's logits are NaN or infinite, so nothing can be measured with it")
    return logits


def _run(decoder: Decoder, piece: Sequence[int]) -> Iterator[numpy.ndarray[Any, Any]]:
    """The logits of all tokens, some at a time."""
    pages = range(-(-len(piece) // 16))
    for at in range(0, len(piece), _AT_ONCE):
        now = piece[at : at + _AT_ONCE]
        yield _finite(decoder.run([Piece(now, at, pages, len(now))]))


def _decoder(model: Model, threads: int) -> Decoder:
    return Decoder(model, pages=-(-min(PIECE, model.description.context) // 16), threads=threads)


def activations(
    model: Model, pieces: Sequence[Sequence[int]], threads: int
) -> dict[str, ActivationSum]:
    """Of each matrix that is multiplied, by name."""
    decoder = _decoder(model, threads)
    decoder.watch()
    for piece in pieces:
        for _ in _run(decoder, piece):
            pass
    return decoder.sums()


@dataclass(frozen=True)
class Difference:
    """How another form of a model reads the same text."""

    tokens: int
    perplexity_before: float
    perplexity: float
    divergence: float  # Kullback and Leibler's, nats a token, of the other form from the model
    divergence_p99: float
    same_first: float  # share of tokens after which both think the same next one likeliest


def compare(
    model: Model, other: Model, pieces: Sequence[Sequence[int]], threads: int
) -> Difference:
    """Reads all pieces with both, side by side."""
    first, second = _decoder(model, threads), _decoder(other, threads)
    divergences: list[numpy.ndarray[Any, Any]] = []
    losses = numpy.zeros(2)
    counted = same = 0
    for piece in pieces:
        at = 0
        for before, after in zip(_run(first, piece), _run(second, piece), strict=True):
            logs = [_log_probabilities(one) for one in (before, after)]
            divergences.append((numpy.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1))
            same += int((logs[0].argmax(axis=1) == logs[1].argmax(axis=1)).sum())
            wanted = list(piece[at + 1 : at + 1 + len(before)])
            rows = numpy.arange(len(wanted))
            losses -= [one[rows, wanted].sum() for one in logs]
            counted += len(wanted)
            at += len(before)
    every = numpy.concatenate(divergences)
    perplexities = numpy.exp(losses / max(counted, 1))
    return Difference(
        tokens=len(every),
        perplexity_before=float(perplexities[0]),
        perplexity=float(perplexities[1]),
        divergence=float(every.mean()),
        divergence_p99=float(numpy.quantile(every, 0.99)),
        same_first=same / len(every),
    )


def _log_probabilities(logits: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    wide = logits.astype(numpy.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= numpy.log(numpy.exp(wide).sum(axis=1, keepdims=True))
    return wide


def sensitivities(
    model: Model,
    coarse: Model,
    groups: Sequence[Sequence[str]],
    pieces: Sequence[Sequence[int]],
    threads: int,
) -> list[float]:
    """The divergence where one group of matrices alone is that of a coarse form."""
    decoder = _decoder(model, threads)

    def logits_of(piece: Sequence[int]) -> numpy.ndarray[Any, Any]:
        pages = range(-(-len(piece) // 16))
        return _finite(decoder.run([Piece(piece, 0, pages, len(piece))]))

    likely = []  # probabilities, and their entropies
    for piece in pieces:
        logs = _log_probabilities(logits_of(piece))
        chances = numpy.exp(logs)
        likely.append((chances.astype(numpy.float32), (chances * logs).sum(axis=1)))
    found = []
    for group in groups:
        decoder.substitute(group, coarse)
        total = 0.0
        for piece, (chances, entropy) in zip(pieces, likely, strict=True):
            logits = logits_of(piece)
            logits -= logits.max(axis=1, keepdims=True)
            sums = numpy.log(numpy.exp(logits).sum(axis=1, dtype=numpy.float64))
            expected = numpy.einsum("ij,ij->i", chances, logits, dtype=numpy.float64)
            total += float((entropy - expected + sums).sum())
        found.append(max(0.0, total) / sum(map(len, pieces)))
    return found
