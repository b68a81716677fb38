"""The operations that a communicator and its groups share, and the handle on one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scant import _scant, checks
from scant.arrays import byte_parts, empty_bytes, empty_stack
from scant.codes import ReduceOp
from scant.errors import Closed, InvalidArgument

__all__ = ["Collectives", "Work"]


class Work:
    """A handle on one operation. Its buffers must not be touched before it is done."""

    def __init__(
        self,
        work: _scant.Work,
        result: Any,
        rank: int,
        finish: Callable[[Any], Any] | None = None,
    ) -> None:
        self._work = work
        self._result = result
        self._rank = rank
        self._finish = finish  # makes of the result what wait() returns

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
        return self._result if self._finish is None else self._finish(self._result)

    def exception(self) -> Exception | None:
        """The error of an operation that has failed, else None."""
        return self._work.error()

    @property
    def source(self) -> int | None:
        """Who sent what a ``recv`` from any source received."""
        source = self._work.source
        return None if source < 0 else source


class Collectives(checks.Checked):
    """The operations, shared by a communicator and its groups."""

    _raw: _scant.Communicator | None
    _group: int = 0

    def _native(self) -> _scant.Communicator:
        if self._raw is None:
            raise Closed("the communicator was shut down", rank=self.rank)
        return self._raw

    def _end(
        self,
        work: _scant.Work,
        result: Any,
        async_op: bool,
        finish: Callable[[Any], Any] | None = None,
    ) -> Any:
        handle = Work(work, result, self.rank, finish)
        return handle if async_op else handle.wait()

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

    def exchange(
        self,
        arrays: Sequence[Any],
        capacity: int,
        *,
        out: Any = None,
        priority: int = 0,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Send ``arrays[r]``, of any size up to ``capacity`` bytes, to rank r.

        An :meth:`all_to_all` of bytes whose sizes only the senders know: every rank states the
        same capacity, and nobody the sizes. Returns a list of ``size`` NumPy arrays of ``uint8``,
        the bytes that came from each rank: views of ``out``, one array of ``size`` equal parts or
        a list of ``size`` arrays, each of ``capacity`` bytes (a new array unless given). Of this
        rank's operations the one of the highest ``priority`` sends first.
        """
        capacity = checks.whole(capacity, "capacity", 0, 2**62 // self.size, self.rank)
        priority = checks.whole(priority, "priority", -(2**31), 2**31 - 1, self.rank)
        if not isinstance(arrays, (list, tuple)):
            raise InvalidArgument(
                f"arrays must be a list of {self.size} arrays, got {type(arrays).__name__}",
                rank=self.rank,
            )
        sources = self._parts(arrays, "arrays", False)
        if out is None:
            out = empty_bytes(self.size * capacity)
        targets = self._parts(out, "out", True)
        told = empty_bytes(8 * self.size)
        for i, (_, nbytes) in enumerate(targets):
            if nbytes != capacity:
                raise InvalidArgument(
                    f"out[{i}] has {nbytes} bytes, the capacity is {capacity}", rank=self.rank
                )
        work = self._native().exchange(
            sources,
            targets,
            self._view(told, "received", True)[0],
            self.size,
            priority,
            self._group,
            self._limit(timeout),
            (arrays, out, told),
        )
        return self._end(work, (out, told), async_op, self._received)

    def _received(self, result: tuple[Any, Any]) -> list[Any]:
        out, told = result
        parts = byte_parts(out, self.size)
        return [part[: int(size)] for part, size in zip(parts, told.view("u8"), strict=True)]

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
