"""One answer of an engine in this process, for `scant run` and `scant chat`: text as it comes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

from scant import amounts
from scant.errors import Closed, Failed, Timeout
from scant.serve.engine import Engine, Sampling, Token

__all__ = ["Told", "answer", "share_of_bandwidth"]

_POLL_S = 0.2  # how soon Ctrl-C is heard


@dataclass
class Told:
    """How an answer went."""

    prompt_tokens: int = 0
    tokens: int = 0
    first_s: float | None = None  # from the request to the first token
    later_s: float = 0.0  # from the first token to the last
    finish: str = ""

    def line(self, stats: Mapping[str, float | int]) -> str:
        """``42 tokens: 81 tokens/s, 68.0 % of bandwidth; the first after 310 ms``."""
        speed = None if self.tokens < 2 else amounts.fold(self.tokens - 1, self.later_s)
        parts = [f"{amounts.whole(self.tokens)} tokens: {amounts.number(speed)} tokens/s"]
        share = share_of_bandwidth(stats, speed)
        if share is not None:
            parts.append(f"{amounts.share(share)} of bandwidth")
        first = f"the first after {amounts.duration(self.first_s)}"
        return f"{', '.join(parts)}; {first} (prompt: {amounts.whole(self.prompt_tokens)})"


def share_of_bandwidth(stats: Mapping[str, float | int], speed: float | None) -> float | None:
    """Bytes that decoding read a second ÷ what memory can give; None where it was not measured."""
    read = stats.get("bytes_per_token")
    return amounts.fold(
        None if read is None or speed is None else read * speed,
        stats.get("bandwidth_bytes_per_s"),
    )


def answer(
    engine: Engine,
    prompt: Sequence[int],
    max_tokens: int,
    sampling: Sampling,
    told: Told,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[str, None, None]:
    """The text in pieces; fills `told`. Leaving it early cancels the request."""
    begun_s = clock()
    told.prompt_tokens = len(prompt)
    number = engine.submit(prompt, max_tokens=max_tokens, sampling=sampling)
    silent = {*engine.model.eos, *sampling.stop_tokens}
    detokeniser = engine.model.tokenizer.stream()
    first_at = begun_s
    try:
        while not told.finish:
            for event in engine.poll(_POLL_S):
                if event.request != number:  # of an answer that was left early
                    continue
                if event.token is not None:
                    now = clock()
                    told.tokens += 1
                    if told.tokens == 1:
                        first_at, told.first_s = now, now - begun_s
                    told.later_s = now - first_at
                    if not (event.finish == "stop" and event.token in silent):
                        yield detokeniser.add(event.token)
                if event.finish is not None:
                    told.finish = event.finish
                    _check(event)
        yield detokeniser.end()
    finally:
        if not told.finish:
            with contextlib.suppress(Closed):
                engine.cancel(number)


def _check(event: Token) -> None:
    if event.finish == "error":
        raise Failed(f"the engine failed: {event.error or 'it does not say why'}")
    if event.finish == "deadline":
        raise Timeout("the deadline of the request passed")
