"""The newest state of a journal, found and given back to a training."""

from __future__ import annotations

import json
import pathlib
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from scant import _scant
from scant.errors import Corrupt, Error
from scant.journal import tensor_files
from scant.journal.damage import damage_of
from scant.torch.checkpoint.base import load, set_random_states, set_settings
from scant.torch.checkpoint.extra import load_extra, take_step_along
from scant.torch.checkpoint.members import Members
from scant.torch.checkpoint.training import Training

__all__ = ["Restored", "agree", "newest", "replay", "restore_base", "warn_of"]

_COUNT_AT = 16  # in saved residuals: the number of entries


@dataclass
class Restored:
    """What :meth:`scant.Journal.restore` found.

    ``step``: optimizer steps that the parameters have behind them; the loop goes on with the next.
    """

    step: int
    base_step: int
    cursor: Any = None
    lost_mass: float = 0.0  # norm of the residual of one rank at that step; the base's is back
    problems: list[str] = field(default_factory=list)  # damage that was passed over
    timeline: int = 0
    joins: int = 0  # number of the entry that would follow

    @property
    def replayed(self) -> int:
        """Steps that came from the log."""
        return self.step - self.base_step


def warn_of(result: Restored) -> None:
    """Damage that was passed over must not go by unseen."""
    if result.problems:
        warnings.warn(
            f"journal: damaged: {'; '.join(result.problems)}; step {result.step} was restored from "
            f"base {result.base_step}, which is whole",
            RuntimeWarning,
            stacklevel=3,
        )


def newest(folder: _scant.JournalFolder, path: pathlib.Path) -> dict[str, Any]:
    """What can be restored: each whole base with the last step of its log."""
    contents = folder.look()
    bases = {one["step"]: one for one in contents["bases"] if not one["problem"]}
    found: dict[str, Any] = {"job": None, "model": None, "timeline": 0, "last": {}, "problems": []}
    found["problems"] = list(contents["problems"])
    if contents["manifest"] is not None:
        found["timeline"] = contents["manifest"]["timeline"]
    for step, base in bases.items():
        state = folder.state(step, False)
        found["last"][step] = state["step"]
        found["job"], found["model"] = base["job"], base["model"]
        found["timeline"] = max(found["timeline"], base["timeline"])
        problem = damage_of(state)
        if problem and problem not in found["problems"]:  # bases may share a damaged log
            found["problems"].append(problem)
    if not bases and (contents["manifest"] is not None or contents["problems"]):
        raise Corrupt(f"journal: {path}: no base is whole: " + "; ".join(contents["problems"]))
    return found


def agree(found: Sequence[Mapping[str, Any]], mode: str) -> tuple[int | None, int]:
    """The base to load and the last step to replay, such that every folder has both."""
    steps = [max(one["last"].values(), default=None) for one in found]
    if any(step is None for step in steps):
        return None, 0
    step = min(one for one in steps if one is not None)
    bases = set.intersection(*({base for base in one["last"] if base <= step} for one in found))
    if not bases:
        raise Corrupt(
            "journal: the hosts' journals have no base in common before step "
            f"{step}; their bases: {[sorted(one['last']) for one in found]}"
        )
    base = max(bases)
    reached = min(one["last"][base] for one in found)
    better = [one for one in bases if min(of["last"][one] for of in found) > reached]
    if mode == "fast" and better:  # the newest base's log is damaged
        base = max(better)
        reached = min(one["last"][base] for one in found)
    return base, min(step, reached)


def restore_base(
    training: Training,
    folder: _scant.JournalFolder,
    path: pathlib.Path,
    step: int,
    members: Members | None,
) -> Restored:
    """Model, optimizer, extra; and of a rank its residuals, random numbers and cursor."""
    base = next((one for one in folder.look(False)["bases"] if one["step"] == step), None)
    if base is None:
        raise Corrupt(f"journal: {path}: base {step} was removed meanwhile")
    try:
        return _restore_found(training, path / base["folder"], base, members)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RecursionError) as error:
        if isinstance(error, Error):
            raise
        raise Corrupt(f"journal: {path}: base {step}: {type(error).__name__}: {error}") from error


def _restore_found(
    training: Training, at: pathlib.Path, base: Mapping[str, Any], members: Members | None
) -> Restored:
    files = [name for name, _, _ in base["files"]]
    states = [_read_state(at / name) for name in files if name.startswith("state-")]
    if not states:
        raise Corrupt(f"journal: {at} has no state")
    rank = members.rank if members is not None else 0
    size = members.size if members is not None else states[0]["world"]
    mine = next((one for one in states if one["rank"] == rank), states[0])
    load(at, files, training.module, training.optimizer, mine["values"], mine["settings"])
    load_extra(training.extra, mine["extra"])
    step = base["step"]
    result = Restored(step, step, cursor=mine["cursor"], timeline=base["timeline"])
    result.joins = base["sequence"]
    if members is not None:
        _restore_residuals(training, at, files, states, rank, size)
        if size == mine["world"]:
            set_random_states(mine["random"])
    return result


def _read_state(path: pathlib.Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
    except ValueError as error:
        raise Corrupt(f"journal: {path}: {error}") from error
    if not isinstance(state, dict) or "rank" not in state:
        raise Corrupt(f"journal: {path}: not the state of a rank")
    return state


def _restore_residuals(
    training: Training,
    at: pathlib.Path,
    files: Sequence[str],
    states: Sequence[Mapping[str, Any]],
    rank: int,
    size: int,
) -> None:
    """This rank's, and under another number of ranks also those of ranks that are no more."""
    if training.wrapped is None:
        return
    found = []
    for state in sorted(states, key=lambda one: int(one["rank"])):
        name = state["residuals"]
        if int(state["rank"]) % size == rank and name in files:
            saved = bytes(tensor_files.read(at / name)["residuals"].data)
            if saved:
                found.append(saved)
    if found:
        training.wrapped._averager.restore(_together(found))


def _together(saved: Sequence[bytes]) -> bytes:
    """Residuals of several ranks as of one: restore() would drop those of the one before. Of each,
    behind its head (docs/gradients.md), the entries, which add up where they overlap."""
    if len(saved) == 1:
        return saved[0]
    count = sum(struct.unpack_from("<Q", one, _COUNT_AT)[0] for one in saved)
    body = bytearray(saved[0][:_COUNT_AT] + struct.pack("<Q", count))
    for one in saved:
        body += one[_COUNT_AT + 8 : -4]
    crc = _scant.crc32c(torch.frombuffer(body, dtype=torch.uint8).data_ptr(), len(body), 0)
    return bytes(body) + struct.pack("<I", crc)


def replay(training: Training, folder: _scant.JournalFolder, result: Restored, until: int) -> None:
    """The optimizer takes the steps of the log."""
    state = folder.state(result.base_step, False)
    entries = [one for one in state["entries"] if result.step < one[1] <= until]
    if not entries:
        return
    reader = _scant.JournalReplay(folder, training.bytes)
    views = [training.view(index, reader.address(index)) for index in range(len(training.bytes))]
    extras: list[Any] = []
    for sequence, step, _, segment, offset in entries:
        if step != result.step + 1:
            raise Corrupt(f"journal: entry {sequence} is of step {step}, not {result.step + 1}")
        read = reader.read(sequence, segment, offset)
        settings = json.loads(read["settings"]) if read["settings"] else {}
        if "groups" in settings:
            set_settings(training.optimizer, settings["groups"])
        if settings.get("seen", [0, -1]) not in ([0, -1], training.seen(step)):
            raise Corrupt(
                f"journal: before step {step} parameters were changed elsewhere than in the "
                "optimizer's step (clamped, averaged, loaded), which no log has: restore('exact') "
                f"goes on from step {result.base_step}"
            )
        result.lost_mass = float(settings.get("left", 0.0))
        if "cursor" in settings:
            result.cursor = settings["cursor"]
        if "extra" in settings:
            extras.append((step, settings["extra"]))
        _step(training, views, read["present"])
        training.set_state(read["state"])
        result.step = step
        result.joins = sequence + 1
    take_step_along(training.extra, extras, result.base_step + 1, result.step)


@torch.no_grad()
def _step(training: Training, views: Sequence[torch.Tensor], present: Sequence[bool]) -> None:
    for index, parameter in enumerate(training.parameters):
        # A copy: some optimizers keep what they were given.
        parameter.grad = views[index].to(parameter.device, copy=True) if present[index] else None
    with torch.enable_grad():
        training.optimizer.step()
    for parameter in training.parameters:
        parameter.grad = None
