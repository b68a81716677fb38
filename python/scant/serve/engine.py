"""What the front asks of an engine: requests in, tokens out.

The front (scant.serve.server) and the commands `scant run` and `scant chat` know no more of an
engine than this. All methods may be called from any thread; `poll` belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from scant.serve.text import Tokenizer

__all__ = ["Engine", "Model", "Sampling", "Token", "tokens_of"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logprobs: int = -1  # alternatives beside the token's own; -1: none at all
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    stop_tokens: tuple[int, ...] = ()


class Token(NamedTuple):
    """A token of a request; the last event of a request has `finish`, and may have no token.

    A request with `echo` gets its prompt's tokens first, one event each; the first one of them has
    no logprob.
    """

    request: int
    token: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # best first
    finish: str | None = None  # stop, length, cancelled, deadline, error
    error: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    vector: bytes | None = None  # float32, of length 1; with the end of a request that wants it


def tokens_of(rows: Iterable[tuple[Any, ...]]) -> list[Token]:
    """Of tuples with a token's fields, as the extension gives them."""
    return list(map(Token._make, rows))


class Model(Protocol):
    """What is served."""

    name: str
    context: int
    width: int
    vocabulary: int
    bos: int | None
    eos: tuple[int, ...]
    adds_bos: bool
    tokenizer: Tokenizer
    chat_template: str | None


class Engine(Protocol):
    """Generates for many requests at a time."""

    @property
    def model(self) -> Model:
        """What is served."""

    def submit(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling,
        deadline_s: float | None = None,
        echo: bool = False,
        wanted: str = "answer",
    ) -> int:
        """The request's number.

        `wanted`: answer; or mean or last, which want the prompt's vector and no tokens, so
        `max_tokens` is 0. Raises scant.Resource, which may have `retry_after_s`, when the queue is
        full, and scant.InvalidArgument for a prompt that can never fit.
        """

    def cancel(self, request: int) -> None:
        """The request ends soon, as `cancelled`; unknown and ended ones are left alone."""

    def poll(self, timeout_s: float) -> list[Token]:
        """What came since the last call; waits for the first event, without the GIL."""

    def fileno(self) -> int:
        """A descriptor that can be read, so that a loop wakes, while `poll` has something."""

    def stats(self) -> dict[str, float | int]:
        """Counters and gauges by name, such as `running` and `decode_tokens`."""

    def drain(self) -> None:
        """Takes no more requests."""

    def close(self) -> None:
        """Ends what runs and frees memory."""
