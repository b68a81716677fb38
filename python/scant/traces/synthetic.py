"""Rows that no server saw: bursts and long tails from a seed, for where a trace cannot be had.

Gaps between arrivals are gamma distributed; lengths follow a Zipf law, cut off at a most. Whoever
shows figures of such rows must say that they are synthetic.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from scant.errors import InvalidArgument
from scant.traces.reading import Request

__all__ = ["Shape", "synthetic"]


@dataclass(frozen=True)
class Shape:
    """Of the two distributions."""

    rate: float = 1.0  # requests a second, on average
    burst: float = 0.5  # shape of the gamma distribution: 1 is Poisson, less comes in bursts
    zipf: float = 1.1  # exponent: share of a length is length to the power of -zipf
    prompt_max: int = 1023
    answer_max: int = 1023


def synthetic(shape: Shape, seed: int) -> Iterator[Request]:
    """Without end; same shape and seed, same rows."""
    if not (shape.rate > 0 and shape.burst > 0 and shape.zipf > 0):
        raise InvalidArgument("a synthetic trace needs a rate, a burst and a zipf above 0")
    if min(shape.prompt_max, shape.answer_max) < 1:
        raise InvalidArgument("a synthetic trace needs lengths of at least 1")
    prompts, answers = (_sums(shape.zipf, n) for n in (shape.prompt_max, shape.answer_max))
    return _rows(shape, prompts, answers, random.Random(f"trace:{seed}"))


def _rows(
    shape: Shape, prompts: list[float], answers: list[float], draw: random.Random
) -> Iterator[Request]:
    at_s = 0.0
    while True:
        yield Request(at_s, _drawn(prompts, draw), _drawn(answers, draw), "synthetic")
        at_s += draw.gammavariate(shape.burst, 1.0 / (shape.rate * shape.burst))


def _sums(zipf: float, most: int) -> list[float]:
    return list(itertools.accumulate(length**-zipf for length in range(1, most + 1)))


def _drawn(sums: list[float], draw: random.Random) -> int:
    return min(bisect.bisect_right(sums, draw.random() * sums[-1]), len(sums) - 1) + 1
