"""What a run measured: one outcome a request, columns of numbers, quantiles. Pure: no clock.

Some 60 bytes are kept for each request, so a day of load fits in memory.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scant.serve.replay.schedule import Send

__all__ = ["LATE_MAX_S", "Figures", "Outcome", "Slo", "quantile"]

LATE_MAX_S = 5e-3  # p99 of the lateness of sends above which a run is invalid


@dataclass(frozen=True)
class Slo:
    """What an answer must keep to be good: both."""

    first_s: float = 2.0
    token_s: float = 0.2


@dataclass
class Outcome:
    """What became of one send. Times are seconds after the run's start."""

    send: Send
    sent_s: float | None = None  # None: it was never sent
    first_s: float | None = None  # the first event with text
    last_s: float | None = None  # the last one
    end_s: float = 0.0
    tokens: int = 0
    prompt_tokens: int | None = None  # as the server counted them
    error: str | None = None  # its kind, such as `http 429`
    said: str = ""  # the server's words
    retry_after: bool = False

    @property
    def late_s(self) -> float | None:
        """How long after its time it was sent."""
        return None if self.sent_s is None else max(self.sent_s - self.send.at_s, 0.0)

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token."""
        if self.first_s is None or self.sent_s is None:
            return None
        return self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; an answer of one token has none."""
        if self.first_s is None or self.last_s is None or self.tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.tokens - 1)

    def good(self, slo: Slo) -> bool:
        """Whole, and within both bounds."""
        first, token = self.ttft_s, self.tpot_s
        if self.error is not None or first is None:
            return False
        return first <= slo.first_s and (token is None or token <= slo.token_s)

    def row(self) -> dict[str, Any]:
        """As a line of the file of all requests."""
        return {
            "number": self.send.number,
            "at_s": self.send.at_s,
            "sent_s": self.sent_s,
            "late_s": self.late_s,
            "ttft_s": self.ttft_s,
            "tpot_s": self.tpot_s,
            "end_s": self.end_s,
            "prompt_tokens_asked": self.send.prompt_tokens,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens_asked": self.send.answer_tokens,
            "answer_tokens": self.tokens,
            "error": self.error,
            "said": self.said or None,
        }


class Figures:
    """Of all outcomes so far."""

    def __init__(self, slo: Slo) -> None:
        self.slo = slo
        self.count = 0
        self.whole = 0
        self.good = 0
        self.cut = 0  # sent with other lengths than the trace's
        self.shorter = 0  # whole answers with fewer tokens than asked
        self.tokens_in = 0
        self.tokens_out = 0
        self.errors: Counter[str] = Counter()
        self.words: dict[str, str] = {}  # by kind of error, the first one's
        self.retry_after = 0
        self.end_s = 0.0
        self.late = array("d")
        self.sent_at = array("d")
        self.first = array("d")
        self.first_at = array("d")
        self.token = array("d")
        self.token_at = array("d")
        self.total = array("d")

    def add(self, outcome: Outcome) -> None:
        """One request is over."""
        self.count += 1
        self.cut += outcome.send.cut
        self.end_s = max(self.end_s, outcome.end_s)
        if outcome.late_s is not None and outcome.sent_s is not None:
            self.late.append(outcome.late_s)
            self.sent_at.append(outcome.sent_s)
        if outcome.error is not None:
            self.errors[outcome.error] += 1
            self.words.setdefault(outcome.error, outcome.said)
            self.retry_after += outcome.retry_after
            return
        self.whole += 1
        self.good += outcome.good(self.slo)
        self.shorter += outcome.tokens < outcome.send.answer_tokens
        counted = outcome.prompt_tokens
        self.tokens_in += outcome.send.prompt_tokens if counted is None else counted
        self.tokens_out += outcome.tokens
        first, token, sent = outcome.ttft_s, outcome.tpot_s, outcome.sent_s
        if first is not None and sent is not None:
            self.first.append(first)
            self.first_at.append(sent)
            self.total.append(outcome.end_s - sent)
            if token is not None:
                self.token.append(token)
                self.token_at.append(sent)

    @property
    def late_p99_s(self) -> float | None:
        return quantile(self.late, 0.99)

    @property
    def valid(self) -> bool:
        """Whether the load was the one that the trace describes."""
        late = self.late_p99_s
        return late is not None and late <= LATE_MAX_S

    def rate(self, count: float) -> float | None:
        """So many over the run: from its start to its last answer."""
        return count / self.end_s if self.end_s > 0 else None

    def summary(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "requests": self.count,
            "whole": self.whole,
            "good": self.good,
            "goodput_per_s": self.rate(self.good),
            "slo": {"ttft_s": self.slo.first_s, "tpot_s": self.slo.token_s},
            "seconds": self.end_s,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "lengths_cut": self.cut,
            "answers_shorter": self.shorter,
            "errors": dict(sorted(self.errors.items())),
            "retry_after": self.retry_after,
            "late_s": quantiles(self.late),
            "ttft_s": quantiles(self.first),
            "tpot_s": quantiles(self.token),
            "request_s": quantiles(self.total),
            "valid": self.valid,
        }


def quantile(values: Iterable[float], share: float) -> float | None:
    """The least value that at least this share of them do not exceed."""
    ranked = sorted(values)
    if not ranked:
        return None
    return ranked[max(math.ceil(share * len(ranked) - 1e-9) - 1, 0)]


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p90, p99."""
    return {f"p{round(100 * share)}": quantile(values, share) for share in (0.5, 0.9, 0.99)}
