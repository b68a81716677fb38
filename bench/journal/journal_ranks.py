"""A small training with a journal on ranks that are forked, killed and looked at from outside.

The parent has imported torch and started no thread, so a rank begins within milliseconds. A rank
tells what it has done as JSON lines on a pipe: what was written there before a kill is known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import hashlib
import json
import os
import pathlib
import resource
import select
import signal
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

import scant
import scant.torch

RANKS = 2
PATIENCE_S = 150.0  # for one launch: beyond the 120 s for which a base waits for other ranks
GROUP_TIMEOUT_S = 20

Event = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Training:
    """What all ranks of a launch do. ``path`` empty: without a journal."""

    path: str
    plan: str
    steps: int
    mode: str = "fast"
    base_every: int | str = 7
    unsynced_steps: int = 16
    keep_bases: int = 2
    file_bytes_max: int = 0  # of any file that a rank writes; 0: no limit


class Net(nn.Module):
    """A norm with buffers, and dropout, which needs the random numbers of its rank."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 96)
        self.norm = nn.BatchNorm1d(96)
        self.second = nn.Linear(96, 96)
        self.last = nn.Linear(96, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.dropout(self.norm(self.first(x)).relu(), 0.1, self.training)
        made: torch.Tensor = self.last(self.second(hidden).relu())
        return made


def hash_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Of parameters and the optimizer's state."""
    digest = hashlib.blake2b(digest_size=8)
    for parameter in module.parameters():
        state = optimizer.state.get(parameter, {})
        for one in (parameter.detach(), *(state[key] for key in sorted(state))):
            digest.update(one.numpy().tobytes())
    return digest.hexdigest()


def warm_up() -> None:
    """Imports what torch leaves until it is used, so that forked ranks have it."""
    torch.set_num_threads(1)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    net(torch.randn(4, 16)).sum().backward()
    optimizer.step()


# ---- one rank -------------------------------------------------------------------------------


def _tell(pipe: int, **event: Any) -> None:
    os.write(pipe, json.dumps(event).encode() + b"\n")


def _train(training: Training, rank: int, store: str, pipe: int) -> None:
    dist.init_process_group(
        "scant",
        store=dist.FileStore(store, RANKS),
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=GROUP_TIMEOUT_S),
    )
    torch.manual_seed(1)
    model = scant.torch.wrap(Net(), plan=training.plan)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    torch.manual_seed(100 + rank)
    journal = None
    first = 0
    if training.path:
        journal = scant.Journal(
            training.path,
            base_every=training.base_every,
            log="always",
            unsynced_steps=training.unsynced_steps,
            keep_bases=training.keep_bases,
        ).attach(model, optimizer)
        _tell(pipe, what="attached")
        restored = journal.restore(training.mode)
        first = journal.step
        _tell(
            pipe,
            what="restored",
            step=first,
            base=None if restored is None else restored.base_step,
            hash=hash_of(model.module, optimizer),
            problems=[] if restored is None else restored.problems,
        )
    with journal if journal is not None else contextlib.nullcontext():
        for step in range(first, training.steps):
            x = torch.randn(16, 16)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), x[:, :4].argmax(1))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            _tell(pipe, what="step", step=step + 1, hash=hash_of(model.module, optimizer))
    _tell(pipe, what="end")
    dist.barrier()


def _be_rank(training: Training, rank: int, store: str, pipe: int) -> NoReturn:
    status = 1
    try:
        faulthandler.enable()
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(RANKS),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(RANKS),
        }
        if training.file_bytes_max:
            limit = training.file_bytes_max
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        _train(training, rank, store, pipe)
        status = 0
    except BaseException as error:  # told, whatever it is: the parent judges
        _tell(pipe, what="failed", kind=type(error).__name__, text=str(error)[:1000])
    os._exit(status)


# ---- all ranks, from outside ----------------------------------------------------------------


@dataclasses.dataclass
class Launch:
    """What the ranks told until they were gone."""

    events: list[list[Event]]  # by rank
    codes: list[int]  # exit status, or the negative number of the signal
    hung: bool = False
    seconds: float = 0.0

    def find(self, what: str, rank: int = 0) -> Event | None:
        """The last one of this kind."""
        return next((one for one in reversed(self.events[rank]) if one["what"] == what), None)

    def reached(self, rank: int = 0) -> int:
        """The last step that this rank told, or -1."""
        last = self.find("step", rank)
        return -1 if last is None else int(last["step"])

    def failures(self) -> list[str]:
        """What ranks said that ended by themselves."""
        found = (self.find("failed", rank) for rank in range(len(self.events)))
        return [f"{one['kind']}: {one['text']}" for one in found if one is not None]


@dataclasses.dataclass(frozen=True)
class Moment:
    """So long after rank 0 has told so many things; then these ranks are killed."""

    events: int
    delay_ms: float
    ranks: tuple[int, ...]


class _Watch:
    """Pipes and processes of one launch."""

    def __init__(self, training: Training, store: str) -> None:
        self.launch = Launch([[] for _ in range(RANKS)], [0] * RANKS)
        self.pids: list[int] = []
        self._pipes: dict[int, int] = {}  # to ranks
        self._rest = [b""] * RANKS
        for rank in range(RANKS):
            reads, writes = os.pipe()
            pid = os.fork()
            if pid == 0:
                _be_rank(training, rank, store, writes)
            os.close(writes)
            self.pids.append(pid)
            self._pipes[reads] = rank

    def read(self, timeout_s: float) -> bool:
        """Takes in what was told; False: all ranks are gone."""
        if not self._pipes:
            return False
        for pipe in select.select(list(self._pipes), [], [], max(timeout_s, 0))[0]:
            rank = self._pipes[pipe]
            content = os.read(pipe, 1 << 16)
            if not content:
                os.close(pipe)
                del self._pipes[pipe]
                continue
            *lines, self._rest[rank] = (self._rest[rank] + content).split(b"\n")
            self.launch.events[rank] += [json.loads(line) for line in lines]
        return bool(self._pipes)

    def read_until(self, deadline: float, enough: Callable[[], bool]) -> bool:
        """False: everything is over, or the time is."""
        while not enough():
            if time.monotonic() >= deadline or not self.read(deadline - time.monotonic()):
                return False
        return True

    def kill(self, ranks: tuple[int, ...], number: int = signal.SIGKILL) -> None:
        for rank in ranks:
            os.kill(self.pids[rank], number)

    def reap(self) -> None:
        for rank, pid in enumerate(self.pids):
            _, status = os.waitpid(pid, 0)
            self.launch.codes[rank] = os.waitstatus_to_exitcode(status)


def launch(training: Training, moment: Moment | None = None) -> Launch:
    """Runs the ranks until they are gone; kills some at the moment, if it comes."""
    threads = len(list(pathlib.Path("/proc/self/task").iterdir()))
    assert threads == 1, "a process with threads must not fork ranks"
    begun = time.monotonic()
    deadline = begun + PATIENCE_S
    with tempfile.TemporaryDirectory(prefix="scant-store-") as folder:
        watch = _Watch(training, str(pathlib.Path(folder) / "store"))
        first = watch.launch.events[0]
        if moment is not None and watch.read_until(deadline, lambda: len(first) >= moment.events):
            watch.read_until(time.monotonic() + moment.delay_ms / 1e3, lambda: False)
            watch.kill(moment.ranks)
        watch.read_until(deadline, lambda: False)
        watch.launch.hung = watch.read(0)
        if watch.launch.hung:
            watch.kill(tuple(range(RANKS)), signal.SIGABRT)  # Python's stacks say where
            watch.read_until(time.monotonic() + 1, lambda: False)
            watch.kill(tuple(range(RANKS)))
        watch.reap()
    watch.launch.seconds = time.monotonic() - begun
    return watch.launch
