"""Which ranks share a journal's folder, and who of them writes its log."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import socket
import uuid
import weakref
from typing import Any

import torch.distributed as dist

from scant.errors import Refused

__all__ = ["Lock", "Members", "gather", "join"]


class Members:
    """The ranks that see one folder: those of a host, or all on a network file system."""

    def __init__(self, ranks: list[int], rank: int, size: int) -> None:
        self.ranks = ranks  # of the group, in order
        self.rank = rank  # of the group
        self.size = size  # of the group
        self.place = ranks.index(rank)  # the first one writes the log and seals bases

    @property
    def leads(self) -> bool:
        """Whether this rank is the folder's first."""
        return self.place == 0


class Lock:
    """One writer a folder, as long as its process lives."""

    def __init__(self, folder: pathlib.Path) -> None:
        path = folder / "LOCK"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 200).decode(errors="replace").strip()
            os.close(self._file)
            raise Refused(
                f"journal: {folder} is being written by {holder or 'another process'}"
            ) from None
        except OSError:
            os.close(self._file)
            raise
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        # A forked child would hold the lock beyond its parent's end.
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _drop(this()))

    def release(self) -> None:
        """May be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _drop(lock: Lock | None) -> None:
    if lock is not None:
        lock.release()


def gather(value: Any, group: Any) -> list[Any]:
    """Of every rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, value, group=group)
    return everyone


def join(folder: pathlib.Path, group: Any) -> Members:
    """Each rank leaves a file and looks whose it sees. The folder is there, and may be written."""
    if not dist.is_initialized():
        return Members([0], 0, 1)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    mine = folder / f".rank-{uuid.uuid4().hex}"
    mine.touch()
    try:
        names = gather(mine.name, group)
        seen = [other for other in range(size) if (folder / names[other]).exists()]
        gather(None, group)  # nobody takes its file away before all have looked
    finally:
        with contextlib.suppress(OSError):
            mine.unlink()
    return Members(seen, rank, size)
