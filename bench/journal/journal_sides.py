"""The ways to keep a training's state that bench/journal/journal.py compares.

All train the same model on the same samples. A peer is tuned as its manual asks: torch.save by rank
0 alone, torch.distributed.checkpoint by all ranks, its asynchronous form with staging memory that
is kept from one checkpoint to the next. Every checkpoint is fsynced and named only when whole.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.nn.parallel import DistributedDataParallel
from train_tasks import Task

import scant
import scant.torch

NONE = "none"
KEPT = 2  # checkpoints at a time, as the journal keeps bases
KINDS = ("journal", "torch.save", "dcp.save", "dcp.async_save")


@dataclasses.dataclass(frozen=True)
class Spec:
    """One way. ``every``: steps from checkpoint to checkpoint; of the journal, 1."""

    name: str
    kind: str
    every: int = 1
    unsynced_steps: int = 16
    log: str = "always"


def specs(kinds: list[str], every: list[int], unsynced: list[int]) -> list[Spec]:
    """All sides, the journal as users get it first."""
    found = []
    if "journal" in kinds:
        found.append(Spec("journal", "journal"))
        for steps in unsynced:
            name = f"journal, unsynced_steps={steps}"
            if steps != found[0].unsynced_steps:
                found.append(Spec(name, "journal", unsynced_steps=steps))
        found.append(Spec('journal, log="never"', "journal", log="never"))
    for kind in KINDS[1:]:
        if kind in kinds:
            found += [Spec(f"{kind} each {steps}", kind, steps) for steps in every]
    return found


def wrapped(module: torch.nn.Module, plan: str, groups: dict[str, Any]) -> torch.nn.Module:
    """By scant.torch.wrap with this plan, or ``ddp``: DistributedDataParallel on gloo."""
    if plan == "ddp":
        return DistributedDataParallel(module, process_group=groups["gloo"])
    return scant.torch.wrap(module, plan=plan, group=groups["scant"])


class Pair:
    """A model and its optimizer."""

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def tensors(self) -> list[torch.Tensor]:
        """Of parameters and optimizer."""
        states = (self.optimizer.state[one] for one in self.module.parameters())
        found = [one.detach() for one in self.module.parameters()]
        return found + [state[key] for state in states for key in sorted(state)]


class Training(Pair):
    """Model, optimizer and samples on this rank."""

    def __init__(self, task: Task, seed: int, plan: str, groups: dict[str, Any]) -> None:
        torch.manual_seed(seed)
        self._task = task
        self.module = task.model()
        self.optimizer = task.optimizer(self.module.parameters())
        self.model = wrapped(self.module, plan, groups)
        self._draw = torch.Generator().manual_seed(seed * 1000 + dist.get_rank())
        self.steps = 0
        self.step_s: list[float] = []
        self.after: Callable[[int], object] = lambda _: None  # a checkpoint, perhaps

    def step(self) -> None:
        begun = time.perf_counter()
        loss = self._task.loss(self.model, self._draw)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.steps += 1
        self.after(self.steps)
        self.step_s.append(time.perf_counter() - begun)

    def close(self) -> None:
        if isinstance(self.model, scant.torch.Wrapped):
            self.model.close()


class Fresh(Pair):
    """Model and optimizer of a process that has just started."""

    def __init__(self, task: Task) -> None:
        torch.manual_seed(99)
        self.module = task.model()
        self.optimizer = task.optimizer(self.module.parameters())


class Keeper:
    """Keeps one training's state; every rank has one."""

    replayed = 0  # steps of the log, by the last load()

    def __init__(self, spec: Spec, training: Training, folder: pathlib.Path) -> None:
        self.spec = spec
        self.training = training
        self.folder = folder

    def take_stalls(self) -> list[float]:
        """Seconds that each step since the last call has waited."""
        raise NotImplementedError

    def settle(self) -> None:
        """What goes on beside training is waited for."""

    def save_now(self) -> None:
        """A state of this very step is on disk when it returns."""

    def load(self, fresh: Fresh) -> int:
        """The newest state that is on disk; its step."""
        raise NotImplementedError

    def figures(self) -> dict[str, Any]:
        """What this way costs beside time."""
        return {}

    def close(self) -> None:
        self.training.after = lambda _: None


class JournalKeeper(Keeper):
    """scant.Journal."""

    def __init__(
        self, spec: Spec, training: Training, folder: pathlib.Path, base_every: int | str
    ) -> None:
        super().__init__(spec, training, folder)
        self._first = training.steps
        self._taken = 0
        self.journal = scant.Journal(
            folder, base_every=base_every, log=spec.log, unsynced_steps=spec.unsynced_steps
        ).attach(training.model, training.optimizer)
        self.journal.restore()

    def take_stalls(self) -> list[float]:
        stalls: list[float] = self.journal.stats()["stall_s"]
        new = self.journal.step - self._taken
        self._taken = self.journal.step
        return stalls[-new:] if new else []

    def settle(self) -> None:
        self.journal.sync()

    def load(self, fresh: Fresh) -> int:
        found = scant.Journal.load(self.folder, fresh.module, fresh.optimizer)
        self.replayed = found.replayed
        return int(found.step) + self._first

    def figures(self) -> dict[str, Any]:
        found = self.journal.stats()
        kept = ("entries", "bytes", "bases", "base_bytes", "base_interval", "base_work_s", "base_s",
                "memory_bytes_max", "as_is", "holes")  # fmt: skip
        return {name: found[name] for name in kept}

    def close(self) -> None:
        super().close()
        self.journal.close()


class PeerKeeper(Keeper):
    """A checkpoint each so many steps, in the middle between the ends of a block."""

    def __init__(self, spec: Spec, training: Training, folder: pathlib.Path) -> None:
        super().__init__(spec, training, folder)
        folder.mkdir(exist_ok=True)
        self._stalls: list[float] = []
        self._saved: list[pathlib.Path] = []
        training.after = self._after

    def _after(self, step: int) -> None:
        begun = time.perf_counter()
        if (step + self.spec.every // 2) % self.spec.every == 0:
            self._next(step)
        self._stalls.append(time.perf_counter() - begun)

    def _next(self, step: int) -> None:
        path = self.folder / f"{step:08d}"
        self._save(path)
        self._saved.append(path)
        while len(self._saved) > KEPT:
            self._forget(self._saved.pop(0))

    def _state(self) -> dict[str, Any]:
        training = self.training
        return {
            "model": training.module.state_dict(),
            "optimizer": training.optimizer.state_dict(),
        }

    def _save(self, path: pathlib.Path) -> None:
        raise NotImplementedError

    def _forget(self, path: pathlib.Path) -> None:
        if dist.get_rank() == 0:
            shutil.rmtree(path, ignore_errors=True)

    def take_stalls(self) -> list[float]:
        taken, self._stalls = self._stalls, []
        return taken

    def save_now(self) -> None:
        if self._saved[-1:] != [self.folder / f"{self.training.steps:08d}"]:
            self._next(self.training.steps)
        self.settle()

    def figures(self) -> dict[str, Any]:
        files = [one for one in self._saved[-1].rglob("*") if one.is_file()]
        return {"checkpoint_bytes": sum(one.stat().st_size for one in files)}


class Saved(PeerKeeper):
    """torch.save by rank 0, into a file that gets its name when it is whole and durable."""

    def _save(self, path: pathlib.Path) -> None:
        if dist.get_rank() != 0:
            return
        path.mkdir()
        begun, whole = path / "state.next", path / "state.pt"
        with begun.open("wb") as file:
            torch.save(self._state(), file)
            file.flush()
            os.fsync(file.fileno())
        begun.rename(whole)
        for folder in (path, self.folder):
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def load(self, fresh: Fresh) -> int:
        newest = self._saved[-1]
        state = torch.load(newest / "state.pt", weights_only=True)
        fresh.module.load_state_dict(state["model"])
        fresh.optimizer.load_state_dict(state["optimizer"])
        return int(newest.name)


class Distributed(PeerKeeper):
    """torch.distributed.checkpoint.save by all ranks, each a share of the tensors."""

    def __init__(self, spec: Spec, training: Training, folder: pathlib.Path, group: Any) -> None:
        super().__init__(spec, training, folder)
        self._group = group

    def _save(self, path: pathlib.Path) -> None:
        dcp.save(self._state(), checkpoint_id=path, process_group=self._group)

    def load(self, fresh: Fresh) -> int:
        newest = self._saved[-1]
        for parameter in fresh.module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        fresh.optimizer.step()  # dcp reads into tensors that are there
        state = {"model": fresh.module.state_dict(), "optimizer": fresh.optimizer.state_dict()}
        dcp.load(state, checkpoint_id=newest, process_group=self._group)
        fresh.module.load_state_dict(state["model"])
        fresh.optimizer.load_state_dict(state["optimizer"])
        return int(newest.name)


class Asynchronous(Distributed):
    """torch.distributed.checkpoint.async_save: copied while training waits, written beside it."""

    def __init__(self, spec: Spec, training: Training, folder: pathlib.Path, group: Any) -> None:
        super().__init__(spec, training, folder, group)
        # It keeps its copy of the state: the next one needs no new memory.
        self._stager = DefaultStager(StagingOptions(False, False, False, False))
        self._under_way: Any = None
        self._write_s: list[float] = []

    def _save(self, path: pathlib.Path) -> None:
        self.settle()  # one at a time
        self._under_way = dcp.async_save(
            self._state(),
            checkpoint_id=path,
            async_stager=self._stager,
            process_group=self._group,
        )
        begun = time.perf_counter()
        self._under_way.add_done_callback(
            lambda _: self._write_s.append(time.perf_counter() - begun)
        )

    def figures(self) -> dict[str, Any]:
        return {**super().figures(), "write_s": max(self._write_s)}

    def close(self) -> None:
        super().close()
        self._stager.close()

    def settle(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()


def keeper_of(
    spec: Spec,
    training: Training,
    folder: pathlib.Path,
    groups: dict[str, Any],
    base_every: int | str,
) -> Keeper:
    if spec.kind == "journal":
        return JournalKeeper(spec, training, folder, base_every)
    if spec.kind == "torch.save":
        return Saved(spec, training, folder)
    made = Distributed if spec.kind == "dcp.save" else Asynchronous
    return made(spec, training, folder, groups["checkpoints"])
