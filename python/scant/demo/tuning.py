"""The sizes of DDP's buckets and of PowerSGD's factors: the best of some, tried in the lab."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from scant.demo.summary import STEPS_LEAST, Tuning

GLOO = ("--backend", "gloo")
BUCKETS_MB = (5, 25)  # as the benchmark `train` tries them
IN_BUCKETS = ("gloo", "gloo fp16", "scant")  # the ways that take the tuned size
POWERSGD_RANKS = (2, 4, 8, 16)
RANK_UNTUNED = 4
SLACK = 0.1  # beyond the fastest rank's step time, for the sake of more rank
TIMED_STEPS = 3

# Of a candidate's name and the script's options: seconds of a step.
Measure = Callable[[str, list[str]], float]


def fastest(step_s: Mapping[int, float]) -> int:
    """The value with the shortest step."""
    return min(step_s, key=lambda value: step_s[value])


def most_faithful(step_s: Mapping[int, float]) -> int:
    """The largest value whose step takes at most SLACK longer than the shortest."""
    limit = (1 + SLACK) * min(step_s.values())
    return max(value for value, seconds in step_s.items() if seconds <= limit)


def bucket_options(megabytes: int) -> list[str]:
    return ["--bucket-mb", str(megabytes)]


def rank_options(rank: int) -> list[str]:
    return ["--average", f"powersgd-{rank}"]


def why_not(wanted: bool, steps: int) -> str:
    """Empty when tuning is wanted and worth its time."""
    if not wanted:
        return "--no-tuning"
    return f"--steps {steps} is below {STEPS_LEAST}" if steps < STEPS_LEAST else ""


def tune_bucket(measure: Measure) -> Tuning:
    step_s = {
        size: measure(f"bucket {size} MB", [*GLOO, *bucket_options(size)]) for size in BUCKETS_MB
    }
    why = "the fastest; gloo fp16 and scant take it too"
    return Tuning("Buckets of DDP on gloo, MB", list(step_s.items()), fastest(step_s), why)


def tune_rank(measure: Measure) -> Tuning:
    step_s = {
        rank: measure(f"rank {rank}", [*GLOO, *rank_options(rank)]) for rank in POWERSGD_RANKS
    }
    why = (
        f"the largest whose step takes at most {SLACK:.0%} longer than the fastest one's, since "
        "more rank brings more of the gradient"
    )
    return Tuning("Rank of PowerSGD", list(step_s.items()), most_faithful(step_s), why)
