"""Schedulers, scalers and whatever else has a ``state_dict``, beside a model and its optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from scant.torch.checkpoint.json_values import decode, encode

__all__ = ["load_extra", "states_of", "take_step_along"]

_SCALER = {"scale", "growth_factor", "growth_interval", "_growth_tracker"}


def states_of(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Now, as JSON."""
    return {name: encode(one.state_dict(), f"extra '{name}'") for name, one in extra.items()}


def load_extra(extra: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Back; what was not kept stays as it is."""
    for name, one in extra.items():
        if name in states:
            one.load_state_dict(decode(states[name]))


def take_step_along(
    extra: Mapping[str, Any], told: Sequence[tuple[int, Mapping[str, Any]]], first: int, last: int
) -> None:
    """After the steps ``first`` to ``last`` of the log. An entry holds the states as they were
    before its step, and is written only where one of them changed. What is stepped after each step
    of the optimizer, unlike after an epoch, is therefore stepped once more here."""
    if not told:
        return
    load_extra(extra, told[-1][1])
    for name, one in extra.items():
        if name not in told[-1][1] or not _steps_along(name, told, first, last):
            continue
        scheduler = getattr(one, "scheduler", one)  # accelerate wraps them
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            continue  # what it is to be given is not known
        if isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
            scheduler.step()
        elif set(one.state_dict()) >= _SCALER:
            one.load_state_dict(_updated(one.state_dict()))


def _steps_along(
    name: str, told: Sequence[tuple[int, Mapping[str, Any]]], first: int, last: int
) -> bool:
    """Whether it moved between the last steps; where the log is too short for that, whether it
    has counted as many steps as the optimizer took."""
    states = {step: states.get(name) for step, states in told}
    moved = []
    for step in (last, last - 1):
        if step > first:
            before = max(one for one in states if one < step)
            moved.append(step in states and states[step] != states[before])
    if len(moved) == 2 or not all(moved):
        return all(moved)
    count = told[-1][1][name].get("last_epoch")
    return count is None or count >= last - 1


def _updated(scaler: Mapping[str, Any]) -> dict[str, Any]:
    """What GradScaler.update() does after a step that was not skipped: others are not logged."""
    tracker = scaler["_growth_tracker"] + 1
    if tracker < scaler["growth_interval"]:
        return {**scaler, "_growth_tracker": tracker}
    return {**scaler, "_growth_tracker": 0, "scale": scaler["scale"] * scaler["growth_factor"]}
