"""When each request of a trace is sent, and what it asks. Pure: no clock, no socket.

Same trace, options and seed give the same sends to the last bit. Nothing here can see a reply.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from scant.traces import Request

__all__ = ["Plan", "Send", "schedule"]


@dataclass(frozen=True)
class Plan:
    """How a trace becomes a schedule."""

    seed: int = 0
    speed: float = 1.0  # 2: twice as fast as in the trace
    from_s: float = 0.0  # of the trace: what is sent at the time 0
    spread_s: float = 0.0  # arrivals of one timestamp are spread over so long, before `speed`
    prompt_max: int | None = None
    answer_max: int | None = None


class Send(NamedTuple):
    """One request to be sent."""

    number: int
    at_s: float  # after the run's start
    prompt_tokens: int
    answer_tokens: int
    blocks: tuple[int, ...]
    cut: bool  # shorter than in the trace


def schedule(requests: Iterable[Request], plan: Plan) -> Iterator[Send]:
    """In the order of their times. Holds the rows of one timestamp at a time."""
    for number, (request, at_s) in enumerate(_spread(requests, plan)):
        prompt = _at_most(max(request.prompt_tokens, 1), plan.prompt_max)
        answer = _at_most(request.answer_tokens, plan.answer_max)
        cut = prompt < request.prompt_tokens or answer < request.answer_tokens
        yield Send(number, (at_s - plan.from_s) / plan.speed, prompt, answer, request.blocks, cut)


def _at_most(value: int, most: int | None) -> int:
    return value if most is None else min(value, most)


def _spread(requests: Iterable[Request], plan: Plan) -> Iterator[tuple[Request, float]]:
    if plan.spread_s <= 0:
        for request in requests:
            yield request, request.at_s
        return
    together: list[Request] = []
    for request in requests:
        if together and request.at_s >= together[0].at_s + plan.spread_s:
            yield from _one_spread(together, plan)
            together = []
        together.append(request)
    if together:
        yield from _one_spread(together, plan)


def _one_spread(together: list[Request], plan: Plan) -> Iterator[tuple[Request, float]]:
    start_s = together[0].at_s
    # Of this second alone, so that a selection of the trace has the same times as the whole.
    draw = random.Random(f"spread:{plan.seed}:{start_s!r}")
    shares = sorted(draw.random() for _ in together)
    for request, share in zip(together, shares, strict=True):
        yield request, start_s + share * plan.spread_s
