"""A server's run, told from its ``served`` lines: for `scant top` and `scant explain`."""

from __future__ import annotations

from collections.abc import Sequence

from scant import amounts
from scant.report.text import sparkline
from scant.runlog.lines import Served

__all__ = ["choice", "one_line", "rows", "totals"]


def one_line(line: Served) -> str:
    """A period, for a terminal that cannot be redrawn."""
    return (
        f"{amounts.span(line.at_s)}: {amounts.number(line.tokens_per_s)} tokens/s, "
        f"{amounts.whole(line.requests)} requests, {amounts.whole(line.running)} running, "
        f"{amounts.whole(line.waiting)} waiting, first token {amounts.duration(line.first_s)}, "
        f"each later {amounts.duration(line.token_s)}, refused {amounts.whole(line.refused)}"
    )


def rows(served: Sequence[Served], bars_max: int) -> list[tuple[str, str]]:
    """The newest period, and how the speed went."""
    if not served:
        return [("served", "nothing reported yet")]
    one = served[-1]
    speeds = [each.tokens_per_s or 0.0 for each in served][-bars_max:]
    low, high = amounts.number(min(speeds)), amounts.number(max(speeds))
    return [
        (
            "requests",
            f"{amounts.whole(one.running)} running, {amounts.whole(one.waiting)} waiting, "
            f"{amounts.whole(one.connections)} connections",
        ),
        (
            "period",
            f"{amounts.whole(one.requests)} answered in {amounts.span(one.period_s or 0.0)}; "
            f"{amounts.whole(one.refused)} refused, {amounts.whole(one.cancelled)} cancelled, "
            f"{amounts.whole(one.failed)} failed",
        ),
        (
            "tokens",
            f"{amounts.number(one.tokens_per_s)} a second; prompts "
            f"{amounts.whole(one.prompt_tokens)}, of these {amounts.whole(one.cached_tokens)} "
            "were known",
        ),
        (
            "waits",
            f"{amounts.duration(one.first_s)} to the first token, "
            f"{amounts.duration(one.token_s)} to each later one",
        ),
        (
            "memory",
            f"{amounts.share(one.kv_used)} of the keys and values, "
            f"{amounts.size(one.rss_bytes)} resident; {amounts.whole(one.preempted)} paused",
        ),
        ("CPU", f"{amounts.number(amounts.fold(one.cpu_s, one.period_s))} cores"),
        *([("chosen", chosen)] if (chosen := choice(one)) else []),
        ("speed", f"{sparkline(speeds)}  {low} to {high} tokens/s"),
    ]


def choice(one: Served) -> str:
    """What the engine chose for its steps, and why: a sentence; empty where it does not say."""
    if not one.threads:
        return ""
    parts = []
    for what, threads, ratio in (
        ("answers", one.threads_of_answers, one.answers_to_plain),
        ("prompts", one.threads_of_prompts, one.prompts_to_plain),
    ):
        if not threads:
            continue
        if threads == one.threads:
            parts.append(f"{what} run on all {amounts.whole(threads)} threads")
        else:
            saved = "" if ratio is None else f", which takes {amounts.share(ratio)} of their time"
            parts.append(
                f"{what} run on {amounts.whole(threads)} of {amounts.whole(one.threads)} "
                f"threads{saved}"
            )
    if one.prompt_tokens_beside:
        parts.append(
            f"{amounts.whole(one.prompt_tokens_beside)} tokens of prompts may run in a step beside "
            "answers"
        )
    return "; ".join(parts)


def totals(served: Sequence[Served]) -> list[str]:
    """All periods together, in words."""
    tokens = sum(one.tokens or 0 for one in served)
    seconds = sum(one.period_s or 0.0 for one in served)
    cpu_s = sum(one.cpu_s or 0.0 for one in served)
    prompts = sum(one.prompt_tokens or 0 for one in served)
    cached = sum(one.cached_tokens or 0 for one in served)
    best = max((one.tokens_per_s or 0.0 for one in served), default=0.0)
    return [
        f"{amounts.whole(sum(one.requests or 0 for one in served))} requests answered, "
        f"{amounts.whole(sum(one.refused or 0 for one in served))} refused, "
        f"{amounts.whole(sum(one.cancelled or 0 for one in served))} cancelled, "
        f"{amounts.whole(sum(one.failed or 0 for one in served))} failed",
        f"{amounts.whole(tokens)} tokens generated: {amounts.number(amounts.fold(tokens, seconds))}"
        f" a second in the mean, {amounts.number(best)} in the fastest period, "
        f"{amounts.number(amounts.fold(tokens, cpu_s))} for each CPU second",
        f"{amounts.whole(prompts)} tokens of prompts, of which {amounts.whole(cached)} did not "
        "have to run",
        *(
            [f"by what its steps took: {chosen}"]
            if served and (chosen := choice(served[-1]))
            else []
        ),
    ]
