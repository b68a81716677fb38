"""The newest state of a journal, found and given back to a training."""

from __future__ import annotations

import json
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from scant import _scant
from scant.errors import Corrupt, InvalidArgument
from scant.journal import tensor_files
from scant.torch.journal_base import load, set_random_states, set_settings
from scant.torch.journal_members import Members, gather
from scant.torch.journal_training import Training

__all__ = ["Restored", "agree", "newest", "replay", "restore_base", "warn_of"]


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
    """What can be restored: each whole base with the last step of its log, and the number of the
    entry that would follow."""
    contents = folder.look()
    bases = {one["step"]: one for one in contents["bases"] if not one["problem"]}
    found: dict[str, Any] = {"job": None, "model": None, "timeline": 0, "last": {}, "next": {}}
    found["problems"] = list(contents["problems"])
    manifest = contents["manifest"]
    if manifest is not None:
        found["timeline"] = manifest["timeline"]
    for step, base in bases.items():
        state = folder.state(step)
        found["last"][step] = state["step"]
        named = manifest is not None and manifest["base"] == step
        first = manifest["sequence"] if named else base["sequence"]
        found["next"][step] = state["entries"][-1][0] + 1 if state["entries"] else first
        found["job"], found["model"] = base["job"], base["model"]
        found["timeline"] = max(found["timeline"], base["timeline"])
        end = state["end"]
        if end is not None and end["damaged"]:
            problem = (
                f"{end['segment']}: damaged at byte {end['offset']}: entry {end['sequence']} and "
                f"what follows cannot be used; whole until step {state['step']}"
            )
            if problem not in found["problems"]:  # another base's log goes through the same place
                found["problems"].append(problem)
    if not bases and (manifest is not None or contents["problems"]):
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
    group: Any,
) -> Restored:
    """Model, optimizer, extra; and of a rank its residuals, random numbers and cursor."""
    base = next(one for one in folder.look(False)["bases"] if one["step"] == step)
    at = path / base["folder"]
    files = [name for name, _, _ in base["files"]]
    states = [_read_state(at / name) for name in files if name.startswith("state-")]
    if not states:
        raise Corrupt(f"journal: {at} has no state")
    rank = members.rank if members is not None else 0
    size = members.size if members is not None else states[0]["world"]
    mine = next((one for one in states if one["rank"] == rank), states[0])
    load(at, files, training.module, training.optimizer, mine["values"], mine["settings"])
    for name, one in training.extra.items():
        if name in mine["extra"]:
            one.load_state_dict(mine["extra"][name])
    result = Restored(step, step, cursor=mine["cursor"], timeline=base["timeline"])
    if members is not None:
        _restore_residuals(training, at, files, states, rank, size)
        if size == mine["world"]:
            set_random_states(mine["random"])
        gather(None, group)
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
    for state in sorted(states, key=lambda one: int(one["rank"])):
        name = state["residuals"]
        if int(state["rank"]) % size == rank and name in files:
            saved = tensor_files.read(at / name)["residuals"].data
            if saved.nbytes:
                training.wrapped._averager.restore(bytes(saved))


def replay(training: Training, folder: _scant.JournalFolder, result: Restored, until: int) -> None:
    """The optimizer takes the steps of the log."""
    state = folder.state(result.base_step)
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
        result.lost_mass = float(settings.get("left", 0.0))
        if "cursor" in settings:
            result.cursor = settings["cursor"]
        if "extra" in settings:
            extras.append((step, settings["extra"]))
        _step(training, views, read["present"])
        training.set_state(read["state"])
        result.step = step
    _restore_extra(training, extras, result.step)


@torch.no_grad()
def _step(training: Training, views: Sequence[torch.Tensor], present: Sequence[bool]) -> None:
    for index, parameter in enumerate(training.parameters):
        parameter.grad = views[index].to(parameter.device) if present[index] else None
    with torch.enable_grad():
        training.optimizer.step()
    for parameter in training.parameters:
        parameter.grad = None


def _restore_extra(training: Training, extras: Sequence[tuple[int, Any]], last: int) -> None:
    """Entries hold schedulers as they were when the step was taken. Those that changed from the
    last but one to the last are stepped after each step, so once more here."""
    if not extras:
        return
    step, newest_extra = extras[-1]
    before = extras[-2][1] if len(extras) > 1 else {}
    for name, one in training.extra.items():
        if name not in newest_extra:
            continue
        one.load_state_dict(newest_extra[name])
        stepped = step == last and before.get(name) != newest_extra[name]
        if stepped and isinstance(one, torch.optim.lr_scheduler.LRScheduler):
            if isinstance(one, torch.optim.lr_scheduler.ReduceLROnPlateau):
                raise InvalidArgument("journal: ReduceLROnPlateau is stepped once an epoch")
            one.step()
