"""The process group: torch.distributed's calls turned into Scant's.

Each method takes what ``torch.distributed`` passes and returns a Work at once. Reductions are in
reductions.py; what is common to all calls in group_core.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch

from scant import _scant
from scant.errors import InvalidArgument
from scant.torch.backend import callbacks
from scant.torch.backend.compiler import not_compiled
from scant.torch.backend.group_core import Tensor, Tensors
from scant.torch.backend.membership import open_group
from scant.torch.backend.options import Options
from scant.torch.backend.reductions import Reductions
from scant.torch.backend.tensors import movable, parts_of, split_parts
from scant.torch.backend.work import ScantWork

__all__ = ["ProcessGroup", "create"]

# Futures of sends and receives have no order among themselves.
_UNORDERED = 0


class ProcessGroup(Reductions):
    """A ``torch.distributed`` process group over Scant."""

    @not_compiled
    def broadcast(self, tensors: Any, opts: Any, timeout: timedelta | None = None) -> ScantWork:
        tensor = self._only(tensors, "tensors")
        root = self._root(opts if isinstance(opts, int) else opts.rootRank)
        native, gid = self.native(), self.group_id
        timeout_s = self.timeout_of(timeout if isinstance(opts, int) else opts)

        def launch(_: Tensors, reads: Tensors, writes: Tensors) -> list[_scant.Work]:
            t = (reads or writes)[0]
            return [native.broadcast(t.data_ptr(), t.nbytes, movable(t), root, gid, timeout_s, t)]

        if self._rank == root:
            return self._run(launch, [tensor], reads=[tensor])
        return self._run(launch, [tensor], writes=[tensor])

    @not_compiled
    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> ScantWork:
        source = self._only(inputs, "input")
        parts = self._list(outputs, "output")
        self._same_dtype(source, parts)
        native, gid, timeout_s = self.native(), self.group_id, self.timeout_of(opts)

        def launch(_: Tensors, reads: Tensors, writes: Tensors) -> list[_scant.Work]:
            t = reads[0]
            keep = (t, writes)
            return [
                native.all_gather(
                    t.data_ptr(), t.nbytes, parts_of(writes), movable(t), gid, timeout_s, keep
                )
            ]

        return self._run(launch, [parts], reads=[source], writes=parts)

    @not_compiled
    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> ScantWork:
        if output.numel() != input.numel() * self._size:
            raise InvalidArgument(
                f"output has {output.numel()} elements, {self._size} ranks times the "
                f"{input.numel()} of input are needed",
                rank=self._rank,
            )
        self._same_dtype(output, [input])
        native, gid, size = self.native(), self.group_id, self._size
        timeout_s = self.timeout_of(opts)

        def launch(_: Tensors, reads: Tensors, writes: Tensors) -> list[_scant.Work]:
            t, out = reads[0], writes[0]
            return [
                native.all_gather_equal(
                    t.data_ptr(),
                    out.data_ptr(),
                    t.nbytes,
                    size,
                    movable(t),
                    gid,
                    timeout_s,
                    (t, out),
                )
            ]

        return self._run(launch, [output], reads=[input], writes=[output])

    _allgather_base = all_gather_single

    @not_compiled
    def all_gather_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> ScantWork:
        pairs = zip(outputs, inputs, strict=True)
        works = [self.all_gather_single(out, source, opts) for out, source in pairs]
        return self._together(works, list(outputs))

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    @not_compiled
    def allgather_coalesced(
        self, output_lists: Sequence[Tensors], inputs: Tensors, opts: Any = None
    ) -> ScantWork:
        works = [
            self.allgather([[of_rank[i] for of_rank in output_lists]], [source], opts)
            for i, source in enumerate(inputs)
        ]
        return self._together(works, [list(of_rank) for of_rank in output_lists])

    @not_compiled
    def gather(self, outputs: Any, inputs: Any, opts: Any) -> ScantWork:
        source = self._only(inputs, "input")
        root = self._root(opts.rootRank)
        parts = self._list(outputs, "output") if self._rank == root else []
        if self._rank != root and outputs and len(outputs[0]):
            raise InvalidArgument(f"output must be empty but at root {root}", rank=self._rank)
        self._same_dtype(source, parts)
        native, gid, timeout_s = self.native(), self.group_id, self.timeout_of(opts)

        def launch(_: Tensors, reads: Tensors, writes: Tensors) -> list[_scant.Work]:
            t = reads[0]
            keep = (t, writes)
            return [
                native.gather(
                    t.data_ptr(), t.nbytes, parts_of(writes), movable(t), root, gid, timeout_s, keep
                )
            ]

        return self._run(launch, [parts], reads=[source], writes=parts)

    @not_compiled
    def scatter(self, outputs: Any, inputs: Any, opts: Any) -> ScantWork:
        output = self._only(outputs, "output")
        root = self._root(opts.rootRank)
        parts = self._list(inputs, "input") if self._rank == root else []
        if self._rank != root and inputs and len(inputs[0]):
            raise InvalidArgument(f"input must be empty but at root {root}", rank=self._rank)
        self._same_dtype(output, parts)
        native, gid, timeout_s = self.native(), self.group_id, self.timeout_of(opts)

        def launch(_: Tensors, reads: Tensors, writes: Tensors) -> list[_scant.Work]:
            t = writes[0]
            keep = (reads, t)
            return [
                native.scatter(
                    parts_of(reads), t.data_ptr(), t.nbytes, movable(t), root, gid, timeout_s, keep
                )
            ]

        return self._run(launch, [output], reads=parts, writes=[output])

    @not_compiled
    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> ScantWork:
        sources, targets = self._list(inputs, "input"), self._list(outputs, "output")
        self._same_dtype(sources[0], (*sources, *targets))
        native, gid, timeout_s = self.native(), self.group_id, self.timeout_of(opts)

        def launch(_: Tensors, reads: Tensors, writes: Tensors) -> list[_scant.Work]:
            code = movable(reads[0])
            keep = (reads, writes)
            return [
                native.all_to_all(parts_of(reads), parts_of(writes), code, gid, timeout_s, keep)
            ]

        return self._run(launch, targets, reads=sources, writes=targets)

    @not_compiled
    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Sequence[int],
        input_split_sizes: Sequence[int],
        opts: Any = None,
    ) -> ScantWork:
        self._same_dtype(output, [input])
        split_parts(input, input_split_sizes, self._size, "input")
        split_parts(output, output_split_sizes, self._size, "output")
        native, gid, size = self.native(), self.group_id, self._size
        timeout_s = self.timeout_of(opts)

        def launch(_: Tensors, reads: Tensors, writes: Tensors) -> list[_scant.Work]:
            sources = split_parts(reads[0], input_split_sizes, size, "input")
            targets = split_parts(writes[0], output_split_sizes, size, "output")
            code, keep = movable(reads[0]), (reads, writes)
            return [native.all_to_all(sources, targets, code, gid, timeout_s, keep)]

        return self._run(launch, [output], reads=[input], writes=[output])

    alltoall_base = all_to_all_single

    # -- pairs and the barrier ------------------------------------------------------------------

    @not_compiled
    def send(self, tensors: Any, dst: int, tag: int = 0) -> ScantWork:
        tensor = self._only(tensors, "tensors")
        native, gid, timeout_s = self.native(), self.group_id, self._timeout_s

        def launch(_: Tensors, reads: Tensors, __: Tensors) -> list[_scant.Work]:
            t = reads[0]
            return [native.send(t.data_ptr(), t.nbytes, movable(t), dst, tag, gid, timeout_s, t)]

        return self._run(launch, [tensor], reads=[tensor], chain=_UNORDERED)

    @not_compiled
    def recv(self, tensors: Any, src: int, tag: int = 0) -> ScantWork:
        tensor = self._only(tensors, "tensors")
        native, gid, timeout_s = self.native(), self.group_id, self._timeout_s

        def launch(_: Tensors, __: Tensors, writes: Tensors) -> list[_scant.Work]:
            t = writes[0]
            return [native.recv(t.data_ptr(), t.nbytes, movable(t), src, tag, gid, timeout_s, t)]

        return self._run(launch, [tensor], writes=[tensor], chain=_UNORDERED)

    @not_compiled
    def recv_anysource(self, tensors: Any, tag: int = 0) -> ScantWork:
        return self.recv(tensors, _scant.any_source, tag)

    @not_compiled
    def barrier(self, opts: Any = None) -> ScantWork:
        native, gid, timeout_s = self.native(), self.group_id, self.timeout_of(opts)
        return self._run(lambda _, __, ___: [native.barrier(gid, timeout_s)], [])

    @not_compiled
    def monitored_barrier(
        self, timeout: timedelta | None = None, wait_all_ranks: bool = False
    ) -> None:
        """A barrier whose error names the rank that is missing."""
        self.barrier(timeout).wait()

    # -- several calls as one -------------------------------------------------------------------

    def _start_coalescing(self, device: torch.device) -> None:
        if self._coalescing is not None:
            raise InvalidArgument("coalescing was started already", rank=self._rank)
        self._coalescing = []

    def _end_coalescing(self, device: torch.device) -> ScantWork:
        works, self._coalescing = self._coalescing or [], None
        return self._together(works, [tensor for work in works for tensor in work.result()])


def create(backend_options: Any, options: Any) -> ProcessGroup:
    """What torch calls for each group that names the backend ``scant``."""
    if options is not None and not isinstance(options, Options):
        raise InvalidArgument(
            f"pg_options must be scant.torch.Options, got {type(options).__name__}"
        )
    callbacks.mark()
    timeout = backend_options.timeout
    rank, size = backend_options.group_rank, backend_options.group_size
    base, group_id, members = open_group(
        backend_options.store,
        rank,
        size,
        timeout.total_seconds(),
        is_default=not backend_options.global_ranks_in_group,
        options=options.given() if options is not None else {},
    )
    return ProcessGroup(backend_options.store, rank, size, timeout, base, group_id, members)
