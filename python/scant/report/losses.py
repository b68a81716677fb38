"""Where a training's loss stands, and the loss that every way of training has to reach."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["TARGET_AT", "WINDOW", "smoothed", "steps_to", "target_loss"]

WINDOW = 20  # steps whose mean is the smoothed loss
TARGET_AT = 0.8  # of plain training's steps: its smoothed loss there is the target


def smoothed(losses: Sequence[float]) -> list[float]:
    """Means of the last WINDOW steps, of fewer at the beginning."""
    return [
        statistics.fmean(losses[max(0, end - WINDOW) : end]) for end in range(1, len(losses) + 1)
    ]


def target_loss(losses: Sequence[float]) -> float:
    """The smoothed loss after TARGET_AT of plain training's steps, of which there is at least 1."""
    return smoothed(losses)[math.ceil(TARGET_AT * len(losses)) - 1]


def steps_to(losses: Sequence[float], target: float) -> int | None:
    """The first step whose smoothed loss is at the target."""
    return next((i for i, loss in enumerate(smoothed(losses), 1) if loss <= target), None)
