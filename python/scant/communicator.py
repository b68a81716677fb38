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

from scant import _scant, checks, environment, lifetime, rendezvous
from scant.arrays import empty_stack
from scant.codes import ReduceOp
from scant.errors import Closed, InvalidArgument

__all__ = ["Communicator", "Group", "Work"]


class Work:
    """A handle on one operation. Its buffers must not be touched before it is done."""

    def __init__(self, work: _scant.Work, result: Any, rank: int) -> None:
        self._work = work
        self._result = result
        self._rank = rank

    def done(self) -> bool:
        """True when the operation has ended, well or not."""
        return self._work.done()

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for the end and return the output array.

        Raises the operation's error (:class:`scant.Error`). With ``timeout`` in seconds, raises
        :class:`scant.Timeout` when that passes first; the operation itself goes on.
        """
        limit = 0.0 if timeout is None else checks.seconds(timeout, "timeout", self._rank)
        self._work.wait(limit)
        return self._result

    def exception(self) -> Exception | None:
        """The error of an operation that has failed, else None."""
        return self._work.error()

    @property
    def source(self) -> int | None:
        """Who sent what a ``recv`` from any source received."""
        source = self._work.source
        return None if source < 0 else source


class _Collectives(checks.Checked):
    """The operations, shared by a communicator and its groups."""

    _raw: _scant.Communicator | None
    _group: int = 0

    def _native(self) -> _scant.Communicator:
        if self._raw is None:
            raise Closed("the communicator was shut down", rank=self.rank)
        return self._raw

    def _end(self, work: _scant.Work, result: Any, async_op: bool) -> Any:
        if async_op:
            return Work(work, result, self.rank)
        work.wait()
        return result

    def all_reduce(
        self,
        array: Any,
        op: ReduceOp | str = ReduceOp.SUM,
        *,
        out: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Combine the arrays of all ranks; every rank gets the result, bit for bit the same.

        In place unless ``out`` is given. Returns the output array, or a :class:`Work` when
        ``async_op`` is set; so do all operations.
        """
        target = array if out is None else out
        target_view = self._view(target, "array" if out is None else "out", True)
        source = target_view if out is None else self._view(array, "array", False)
        self._same(source, target_view, "array and out")
        dtype = self._reducible(target_view[2], target, "array")
        work = self._native().all_reduce(
            source[0],
            target_view[0],
            target_view[1],
            dtype,
            self._op(op),
            self._group,
            self._limit(timeout),
            (array, target),
        )
        return self._end(work, target, async_op)

    def reduce(
        self,
        array: Any,
        root: int,
        op: ReduceOp | str = ReduceOp.SUM,
        *,
        out: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Combine the arrays of all ranks at ``root``, in place unless it gives ``out``.

        On other ranks ``out`` is not needed and the array keeps its values.
        """
        root = self._root(root)
        if self.rank == root:
            target = array if out is None else out
            target_view = self._view(target, "array" if out is None else "out", True)
            source = target_view if out is None else self._view(array, "array", False)
            self._same(source, target_view, "array and out")
            address = target_view[0]
        else:
            target = array
            source = self._view(array, "array", False)
            address = 0
        dtype = self._reducible(source[2], array, "array")
        work = self._native().reduce(
            source[0],
            address,
            source[1],
            dtype,
            self._op(op),
            root,
            self._group,
            self._limit(timeout),
            (array, target),
        )
        return self._end(work, target, async_op)

    def broadcast(
        self, array: Any, root: int, *, async_op: bool = False, timeout: float | None = None
    ) -> Any:
        """Copy the root's array over everyone's."""
        root = self._root(root)
        address, nbytes, dtype = self._view(array, "array", self.rank != root)
        work = self._native().broadcast(
            address, nbytes, dtype, root, self._group, self._limit(timeout), array
        )
        return self._end(work, array, async_op)

    def all_gather(
        self,
        array: Any,
        out: Any = None,
        *,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Collect everyone's array everywhere.

        ``out`` is one array of ``size`` equal parts, or a list of ``size`` arrays, whose sizes may
        differ. Without it a new NumPy array of shape ``(size, *array.shape)`` is made.
        """
        address, nbytes, dtype = self._view(array, "array", False)
        if out is None:
            out = empty_stack(self.size, array)
        parts = self._parts(out, "out", True)
        work = self._native().all_gather(
            address, nbytes, parts, dtype, self._group, self._limit(timeout), (array, out)
        )
        return self._end(work, out, async_op)

    def reduce_scatter(
        self,
        arrays: Any,
        out: Any,
        op: ReduceOp | str = ReduceOp.SUM,
        *,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Combine part r of everyone's arrays at rank r.

        ``arrays`` is one array of ``size`` equal parts or a list of ``size`` arrays.
        """
        address, nbytes, dtype = self._view(out, "out", True)
        parts = self._parts(arrays, "arrays", False)
        work = self._native().reduce_scatter(
            parts,
            address,
            nbytes,
            self._reducible(dtype, out, "out"),
            self._op(op),
            self._group,
            self._limit(timeout),
            (arrays, out),
        )
        return self._end(work, out, async_op)

    def gather(
        self,
        array: Any,
        root: int,
        out: Any = None,
        *,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Collect everyone's array at ``root``; ``out`` as in :meth:`all_gather`, there only."""
        root = self._root(root)
        address, nbytes, dtype = self._view(array, "array", False)
        parts: list[tuple[int, int]] = []
        if self.rank == root:
            if out is None:
                out = empty_stack(self.size, array)
            parts = self._parts(out, "out", True)
        work = self._native().gather(
            address,
            nbytes,
            parts,
            dtype,
            root,
            self._group,
            self._limit(timeout),
            (array, out),
        )
        return self._end(work, out, async_op)

    def scatter(
        self,
        arrays: Any,
        root: int,
        out: Any,
        *,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Send part r of the root's ``arrays`` to rank r; ``arrays`` matters at the root only."""
        root = self._root(root)
        address, nbytes, dtype = self._view(out, "out", True)
        parts = self._parts(arrays, "arrays", False) if self.rank == root else []
        work = self._native().scatter(
            parts,
            address,
            nbytes,
            dtype,
            root,
            self._group,
            self._limit(timeout),
            (arrays, out),
        )
        return self._end(work, out, async_op)

    def all_to_all(
        self,
        arrays: Any,
        out: Any,
        *,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Send part r of ``arrays`` to rank r and receive rank r's part in part r of ``out``."""
        sources = self._parts(arrays, "arrays", False)
        targets = self._parts(out, "out", True)
        first = arrays[0] if isinstance(arrays, (list, tuple)) else arrays
        dtype = self._view(first, "arrays", False)[2]
        work = self._native().all_to_all(
            sources, targets, dtype, self._group, self._limit(timeout), (arrays, out)
        )
        return self._end(work, out, async_op)

    def send(
        self,
        array: Any,
        peer: int,
        tag: int = 0,
        *,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Send an array to a peer that receives it with the same tag."""
        peer, tag = self._root(peer, "peer"), self._tag(tag)
        address, nbytes, dtype = self._view(array, "array", False)
        work = self._native().send(
            address, nbytes, dtype, peer, tag, self._group, self._limit(timeout), array
        )
        return self._end(work, array, async_op)

    def recv(
        self,
        array: Any,
        peer: int | None = None,
        tag: int = 0,
        *,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Receive into an array from a peer, or from any when ``peer`` is None."""
        source = _scant.any_source if peer is None else self._root(peer, "peer")
        tag = self._tag(tag)
        address, nbytes, dtype = self._view(array, "array", True)
        work = self._native().recv(
            address, nbytes, dtype, source, tag, self._group, self._limit(timeout), array
        )
        return self._end(work, array, async_op)

    def barrier(self, *, async_op: bool = False, timeout: float | None = None) -> Any:
        """Wait until every rank of the group has come here."""
        return self._end(self._native().barrier(self._group, self._limit(timeout)), None, async_op)

    def _parts(self, arrays: Any, name: str, write: bool) -> list[tuple[int, int]]:
        if isinstance(arrays, (list, tuple)):
            if len(arrays) != self.size:
                raise InvalidArgument(
                    f"{name} has {len(arrays)} arrays for {self.size} ranks", rank=self.rank
                )
            views = [self._view(item, f"{name}[{i}]", write) for i, item in enumerate(arrays)]
            return [(address, nbytes) for address, nbytes, _ in views]
        address, nbytes, _ = self._view(arrays, name, write)
        elements = getattr(arrays, "size", None)
        if nbytes % self.size or (isinstance(elements, int) and elements % self.size):
            raise InvalidArgument(
                f"{name} cannot be cut into {self.size} equal parts: {nbytes} bytes",
                rank=self.rank,
            )
        part = nbytes // self.size
        return [(address + i * part, part) for i in range(self.size)]


class Group(_Collectives):
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


class Communicator(_Collectives, lifetime._Closable):
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

    def shutdown(self, timeout: float = 5.0) -> None:
        """Send what peers still need, say goodbye, close. Idempotent."""
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.shutdown(timeout)

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
        if kind is None:
            self.shutdown()
        else:
            self.abort(f"{kind.__name__} in the program")
