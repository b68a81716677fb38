"""What the server counts: for `/metrics`, and for the run log once a period.

Of the event loop's thread. Times are monotonic seconds that the caller read.
"""

from __future__ import annotations

import bisect
import math
import statistics
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scant import amounts
from scant.serve.engine import Token
from scant.serve.server.answers import Choice

__all__ = ["Figures", "prometheus"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SAMPLES_MAX = 10_000  # of a period's times; more do not change a median that people read

# Of engine.stats(): name → (unit's suffix, kind, help). Others become gauges of their own name.
_OF_ENGINE = {
    "running": ("running", "gauge", "Requests that the engine works on."),
    "waiting": ("waiting", "gauge", "Requests in the engine's queue."),
    "kv_pages": ("kv_pages", "gauge", "Pages of the cache of keys and values."),
    "kv_pages_used": ("kv_pages_used", "gauge", "Pages of that cache in use."),
    "steps": ("steps_total", "counter", "Steps of the engine."),
    "prefill_tokens": ("prefill_tokens_total", "counter", "Tokens of prompts that were computed."),
    "decode_tokens": ("decode_tokens_total", "counter", "Tokens that were generated."),
    "preempted": (
        "preempted_total",
        "counter",
        "Pauses of requests, because others needed the cache.",
    ),
    "prefix_tokens_reused": (
        "prefix_tokens_reused_total",
        "counter",
        "Tokens of prompts whose keys and values were cached already.",
    ),
    "vectors": ("vectors_total", "counter", "Prompts whose vector was computed."),
    "multiply_adds": ("multiply_adds_total", "counter", "Multiply-adds of the steps."),
    "multiply_adds_useful": (
        "multiply_adds_useful_total",
        "counter",
        "Multiply-adds that an answer or a vector needed.",
    ),
    "threads": ("threads", "gauge", "Threads that the engine may use."),
    "threads_of_answers": (
        "threads_of_answers",
        "gauge",
        "Threads that measured best in steps of answers alone.",
    ),
    "threads_of_prompts": (
        "threads_of_prompts",
        "gauge",
        "Threads that measured best in steps with prompts.",
    ),
    "answers_to_plain": (
        "answers_to_plain",
        "gauge",
        "Time of a step of answers alone, divided by that with all threads.",
    ),
    "prompts_to_plain": (
        "prompts_to_plain",
        "gauge",
        "Time of a step with prompts, divided by that with all threads.",
    ),
    "prompt_tokens_beside": (
        "prompt_tokens_beside",
        "gauge",
        "Tokens of prompts that may run in a step beside answers.",
    ),
    "cpu_s": ("engine_cpu_seconds_total", "counter", "CPU time of the process."),
    "front_cpu_s": ("front_cpu_seconds_total", "counter", "CPU time of the thread for HTTP."),
    "rss_bytes": ("resident_bytes", "gauge", "Resident memory of the process."),
}


@dataclass
class _Histogram:
    """Counts by upper bound, as Prometheus wants them."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(_SECONDS) + 1))
    sum: float = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(_SECONDS, value)] += 1
        self.sum += value

    def lines(self, name: str) -> list[str]:
        out = []
        count = 0
        for bound, more in zip((*_SECONDS, math.inf), self.counts, strict=True):
            count += more
            shown = "+Inf" if math.isinf(bound) else f"{bound:g}"
            out.append(f'{name}_bucket{{le="{shown}"}} {count}')
        return [*out, f"{name}_sum {self.sum!r}", f"{name}_count {count}"]


@dataclass
class _Period:
    """What the run log's next line tells."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    first_s: array[float] = field(default_factory=lambda: array("d"))
    token_s: array[float] = field(default_factory=lambda: array("d"))


class Figures:
    """Counters since the start, and those of the period."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}  # by endpoint and status
        self.cancelled: dict[str, int] = {}  # by reason
        self.tokens = {"prompt": 0, "cached": 0, "generated": 0}
        self.first = _Histogram()
        self.token_time = _Histogram()
        self.request_time = _Histogram()
        self.period = _Period()

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """A request has its answer, whatever it is."""
        key = (endpoint, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        if endpoint not in ("chat", "completions", "embeddings"):
            return
        self.request_time.add(seconds)
        self.period.requests += 1
        if status in (429, 503):
            self.period.refused += 1
        elif status >= 500:
            self.period.failed += 1

    def cancel(self, reason: str) -> None:
        """A request ended before its answer: `client`, `slow reader` or `shutdown`."""
        self.cancelled[reason] = self.cancelled.get(reason, 0) + 1
        self.period.cancelled += 1

    def generated(self, tokens: int) -> None:
        """So many tokens more, of all answers."""
        self.tokens["generated"] += tokens
        self.period.tokens += tokens

    def first_token(self, choice: Choice, now: float) -> None:
        """A choice has its first one."""
        choice.first_at = now
        self._sample(self.first, self.period.first_s, now - choice.answer.begun_at)

    def ended(self, choice: Choice, event: Token, now: float) -> None:
        """The engine is done with a choice."""
        prompt = len(choice.prompt.tokens)
        self.tokens["prompt"] += prompt
        self.tokens["cached"] += event.cached_tokens
        self.period.prompt_tokens += prompt
        self.period.cached_tokens += event.cached_tokens
        if choice.tokens > 1:
            mean = (now - choice.first_at) / (choice.tokens - 1)
            self._sample(self.token_time, self.period.token_s, mean)

    def _sample(self, histogram: _Histogram, samples: array[float], value: float) -> None:
        histogram.add(value)
        if len(samples) < _SAMPLES_MAX:
            samples.append(value)

    def line(
        self, stats: Mapping[str, float | int], last: Mapping[str, float | int]
    ) -> dict[str, Any]:
        """The period's fields of the run log; begins the next one."""
        period, self.period = self.period, _Period()
        used, pages = stats.get("kv_pages_used"), stats.get("kv_pages")
        return {
            "requests": period.requests,
            "refused": period.refused,
            "cancelled": period.cancelled,
            "failed": period.failed,
            "running": stats.get("running"),
            "waiting": stats.get("waiting"),
            "prompt_tokens": period.prompt_tokens,
            "cached_tokens": period.cached_tokens,
            "tokens": period.tokens,
            "first_s": _median(period.first_s),
            "token_s": _median(period.token_s),
            "kv_used": None if used is None or not pages else used / pages,
            "preempted": _more("preempted", stats, last),
            "cpu_s": _more("cpu_s", stats, last),
            "rss_bytes": stats.get("rss_bytes"),
            "threads": stats.get("threads"),
            "threads_of_answers": stats.get("threads_of_answers"),
            "threads_of_prompts": stats.get("threads_of_prompts"),
            "answers_to_plain": stats.get("answers_to_plain"),
            "prompts_to_plain": stats.get("prompts_to_plain"),
            "prompt_tokens_beside": stats.get("prompt_tokens_beside"),
            "useful_share": _useful_share(stats, last),
        }


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _useful_share(
    stats: Mapping[str, float | int], last: Mapping[str, float | int]
) -> float | None:
    """Multiply-adds of the period that were needed ÷ all of them."""
    return amounts.fold(
        _more("multiply_adds_useful", stats, last), _more("multiply_adds", stats, last)
    )


def _more(
    name: str, stats: Mapping[str, float | int], last: Mapping[str, float | int]
) -> float | None:
    return stats[name] - last.get(name, 0) if name in stats else None


def prometheus(
    figures: Figures, stats: Mapping[str, float | int], gauges: Mapping[str, tuple[float, str]]
) -> str:
    """All of it as Prometheus text; `gauges`: name → (value, help)."""
    out = _family("requests_total", "counter", "Requests by endpoint and status.")
    for (endpoint, status), count in sorted(figures.requests.items()):
        out.append(f'scant_serve_requests_total{{endpoint="{endpoint}",status="{status}"}} {count}')
    out += _family("cancelled_total", "counter", "Requests that ended before their answer.")
    for reason, count in sorted(figures.cancelled.items()):
        out.append(f'scant_serve_cancelled_total{{reason="{reason}"}} {count}')
    out += _family(
        "tokens_total",
        "counter",
        "Tokens by kind: of prompts, cached ones of these, and generated.",
    )
    for kind, count in figures.tokens.items():
        out.append(f'scant_serve_tokens_total{{kind="{kind}"}} {count}')
    for name, histogram, text in (
        ("first_token_seconds", figures.first, "From a request to its first token."),
        ("token_seconds", figures.token_time, "Of a request, the mean time of its later tokens."),
        ("request_seconds", figures.request_time, "From a request to the end of its answer."),
    ):
        out += _family(name, "histogram", text)
        out += histogram.lines(f"scant_serve_{name}")
    for name, (value, text) in gauges.items():
        out += [*_family(name, "gauge", text), f"scant_serve_{name} {value!r}"]
    for name, number in stats.items():
        shown, kind, text = _OF_ENGINE.get(name, (f"engine_{name}", "gauge", "Of the engine."))
        out += [*_family(shown, kind, text), f"scant_serve_{shown} {number!r}"]
    return "\n".join(out) + "\n"


def _family(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP scant_serve_{name} {text}", f"# TYPE scant_serve_{name} {kind}"]
