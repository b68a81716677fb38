"""Collectives on NumPy arrays, and on anything with the buffer protocol or DLPack on the CPU.

::

    import numpy as np, scant

    with scant.Communicator.from_env() as comm:
        x = np.full(4, comm.rank, dtype=np.float32)
        comm.all_reduce(x)                        # in place; returns x
        work = comm.all_reduce(x, async_op=True)  # returns a Work
        work.wait()
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from scant import _scant, checks, environment, lifetime, planes, rendezvous
from scant.collectives import Collectives, Work
from scant.errors import InvalidArgument

__all__ = ["Communicator", "Group", "Work"]


class Group(Collectives):
    """Some ranks of a communicator; ``rank`` and ``size`` count within the group."""

    def __init__(self, parent: Communicator, members: list[int], group: int) -> None:
        self._raw = parent._raw
        self._group = group
        self._parent = parent
        self.members = members
        self.rank = members.index(parent.rank)
        self.size = len(members)

    def _native(self) -> _scant.Communicator:
        return self._parent._native()

    def release(self) -> None:
        """Free the group's memory, about 50 KB; what is pending in it fails, on all its ranks."""
        self._native().release_group(self._group)


class Communicator(Collectives, lifetime._Closable):
    """The ranks of a job, connected. Creating it blocks until all are there.

    Args:
        store: the rendezvous, a :class:`scant.DirectoryStore` or a torch store.
        rank: this process's rank.
        size: how many ranks there are.
        job: the job's name; peers of another job are refused.
        address: address or interface to use; empty to choose.
        port: 0 for any free port.
        connect_timeout: seconds to wait for all ranks.
        operation_timeout: seconds that an operation may take when its call says nothing else.
        peer_timeout: seconds of silence after which a peer is lost.
        connections_per_pair: 0 for one, which measures best on most links.
        same_host_sockets: use unix sockets between ranks of one host.
        io_cpu: the CPU that the I/O thread is pinned to; -1 for none.
        rate_limit_bytes_per_second: 0 for no limit.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        *,
        job: str | None = None,
        address: str | None = None,
        port: int | None = None,
        connect_timeout: float | None = None,
        operation_timeout: float | None = None,
        peer_timeout: float | None = None,
        connections_per_pair: int | None = None,
        same_host_sockets: bool | None = None,
        io_cpu: int | None = None,
        rate_limit_bytes_per_second: int | None = None,
    ) -> None:
        self._raw = None
        planes.need("sync")
        self.rank, self.size = rank, size = checks.rank_and_size(rank, size)
        given: dict[str, Any] = {
            "job": job,
            "address": address,
            "port": port,
            "connect_timeout": connect_timeout,
            "operation_timeout": operation_timeout,
            "peer_timeout": peer_timeout,
            "connections_per_pair": connections_per_pair,
            "same_host_sockets": same_host_sockets,
            "io_cpu": io_cpu,
            "rate_limit_bytes_per_second": rate_limit_bytes_per_second,
        }
        options = checks.options(given, rank)
        self._store = store  # rank 0 may host it; others still read while they connect
        patient = rendezvous.Patient(rendezvous.fresh(store, size), rank, size)
        self._raw = _scant.Communicator(patient, {**options, "rank": rank, "size": size})
        lifetime.track(self)

    @classmethod
    def from_env(cls, store: Any = None, **options: Any) -> Communicator:
        """Rank, size, rendezvous and options from the environment (:mod:`scant.environment`).

        ``store`` and ``options`` take precedence over the environment.
        """
        rank, size = environment.rank_and_size()
        found = {**environment.options(), **options}
        if store is None:
            store = environment.store(rank, size)
        return cls(store, rank, size, **found)

    @property
    def epoch(self) -> int:
        """Counts the memberships: 1 at first, one more after each :meth:`shrink`."""
        return self._native().epoch

    def peers(self) -> list[dict[str, Any]]:
        """What is known of each rank: host, pid, address, alive, seconds of silence."""
        return self._native().peers()

    def group(self, members: Sequence[int], key: str = "") -> Group:
        """A group of some ranks, in this order. Every member makes the same call.

        Groups with the same members need different keys to be told apart.
        """
        ordered = [self._root(member, "member") for member in members]
        if self.rank not in ordered:
            raise InvalidArgument(f"rank {self.rank} is not in the group {ordered}", rank=self.rank)
        return Group(self, ordered, self._native().make_group(ordered, key))

    def shrink(self, timeout: float = 10.0) -> list[int]:
        """After a loss: go on with the survivors, who get dense ranks in the old order.

        Every survivor calls it. Operations still in flight fail. Returns the survivors' old ranks.
        """
        native = self._native()
        survivors = native.shrink(checks.seconds(timeout, "timeout", self.rank))
        self.rank = native.rank
        self.size = native.size
        return survivors

    def shutdown(self, timeout: float = lifetime.FLUSH_S) -> None:
        """Send what peers still need, say goodbye, close. Idempotent."""
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.shutdown(timeout)

    def fail(self, reason: str, timeout: float = lifetime.FLUSH_S) -> None:
        """The same when this program ends by an error: the others get :class:`scant.Failed`."""
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.fail(reason, timeout)

    def abort(self, reason: str = "aborted by the program") -> None:
        """Close at once, without goodbye; peers see this rank as lost."""
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.abort(reason)

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if value is None:
            self.shutdown()
        elif lifetime.is_own(value):
            self.fail(lifetime.one_line(value))
        else:
            self.abort(lifetime.one_line(value))
