"""When a base of the journal is due, and how much of it is copied when.

A base costs threads of work, a log costs optimizer steps when it is replayed. Both are measured.
"""

from __future__ import annotations

import collections
import statistics
import time
from dataclasses import dataclass

__all__ = ["Costs", "Gaps", "next_interval"]

_FIRST_STEPS = 32  # until a base was measured
_SHARE = 0.005  # of the time of steps, for bases
_SHARE_ALONE = 0.01  # likewise where there is no log
_STEPS_MIN = 8
_STEPS_MAX = 1000
_HISTORY = 32


@dataclass(frozen=True)
class Costs:
    """Seconds, of the slowest rank where ranks differ."""

    step_s: float = 0.0
    base_work_s: float = 0.0  # threads, copying and writing
    base_s: float = 0.0  # from its start until it has its name
    replay_s: float = 0.0  # an entry
    logs: bool = True

    @staticmethod
    def slowest(of: list[Costs]) -> Costs:
        """Of several ranks."""
        return Costs(
            max(one.step_s for one in of),
            max(one.base_work_s for one in of),
            max(one.base_s for one in of),
            max(one.replay_s for one in of),
            all(one.logs for one in of),
        )


def next_interval(costs: Costs) -> int:
    """Steps until the next base: rare enough to cost nothing that can be measured, and often enough
    that replaying the log costs no more than writing a base."""
    if costs.base_work_s == 0 or costs.step_s == 0:
        return _FIRST_STEPS
    share = _SHARE if costs.logs else _SHARE_ALONE
    steps = max(costs.base_work_s / (share * costs.step_s), 3 * costs.base_s / costs.step_s)
    if costs.logs and costs.replay_s > 0:
        steps = max(steps, costs.base_work_s / costs.replay_s)
    return int(min(max(steps, _STEPS_MIN), _STEPS_MAX))


class Gaps:
    """How long forward and backward take, and how much of it the training thread is idle: there a
    copy costs the least."""

    def __init__(self) -> None:
        self._forward: collections.deque[float] = collections.deque(maxlen=_HISTORY)
        self._backward: collections.deque[float] = collections.deque(maxlen=_HISTORY)
        self._steps: collections.deque[float] = collections.deque(maxlen=_HISTORY)
        self._at: tuple[float, float] | None = None  # wall clock and CPU time, when a phase began
        self._stepped_at: float | None = None

    def step_over(self) -> None:
        """The optimizer has stepped; forward begins."""
        now = time.perf_counter()
        if self._stepped_at is not None:
            self._steps.append(now - self._stepped_at)
        self._stepped_at = now
        self._at = (now, time.thread_time())

    def backward_begins(self) -> None:
        """The loss is there."""
        self._note(self._forward)

    def step_begins(self) -> None:
        """Gradients are there; the optimizer is about to step."""
        self._note(self._backward)
        self._at = None

    @property
    def step_s(self) -> float:
        """From one optimizer step to the next."""
        return statistics.median(self._steps) if self._steps else 0.0

    def forward_share(self) -> float:
        """Of a base's bytes, what is to be copied in forward: its share of the idle time, or of all
        time where there is none to speak of."""
        forward, backward = _mean(self._forward), _mean(self._backward)
        if forward + backward <= 0:
            return 0.5
        return forward / (forward + backward)

    def _note(self, into: collections.deque[float]) -> None:
        if self._at is None:
            return
        wall, cpu = time.perf_counter(), time.thread_time()
        idle = (wall - self._at[0]) - (cpu - self._at[1])
        into.append(max(idle, 0.01 * (wall - self._at[0])))
        self._at = (wall, cpu)


def _mean(of: collections.deque[float]) -> float:
    return statistics.fmean(of) if of else 0.0
