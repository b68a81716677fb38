"""The process group: torch.distributed's calls turned into Scant's.

Each method takes what ``torch.distributed`` passes and returns a Work at once. The common case (one
contiguous CPU tensor) is written out for speed; all else goes through ``_run``. This file is long
because torch has many names for few operations.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Backend as _Backend

from scant import _scant
from scant.errors import Closed, InvalidArgument
from scant.torch import staging
from scant.torch.compiler import not_compiled
from scant.torch.membership import Base, open_group
from scant.torch.options import Options
from scant.torch.sparse import all_reduce_sparse
from scant.torch.tensors import (
    PREMUL_SUM,
    REDUCIBLE,
    as_real,
    common_device,
    dense,
    is_plain,
    movable,
    parts_of,
    premultiplier,
    reducible,
    split_parts,
)
from scant.torch.work import GroupedWork, ScantWork, StagedWork

if TYPE_CHECKING:
    # torch's own signatures differ from version to version.
    class _TorchGroup:
        def __init__(self, rank: int, size: int) -> None: ...
else:
    _TorchGroup = dist.ProcessGroup

__all__ = ["ProcessGroup", "create"]

Tensor = torch.Tensor
Tensors = Sequence[Tensor]
# Gets contiguous CPU tensors: those read and written, those read, those written.
Launch = Callable[[Tensors, Tensors, Tensors], Sequence[_scant.Work]]

_TorchOptions: Any = _Backend.Options
_ZERO = timedelta()
# Futures of sends and receives have no order among themselves.
_UNORDERED = 0
_chains = itertools.count(_UNORDERED + 1)
# Tensors up to this many bytes are worth a copy into one message instead of a message each.
_FUSE_BYTES = 256 * 1024
_EXIT_FLUSH_S = 5.0


class ProcessGroup(_TorchGroup):
    """A ``torch.distributed`` process group over Scant."""

    supports_splitting = False
    supports_coalescing = False
    supports_time_estimate = False

    def __init__(
        self, store: Any, rank: int, size: int, timeout: timedelta, base: Base, group_id: int
    ) -> None:
        super().__init__(rank, size)
        self._store = store
        self._rank = rank
        self._size = size
        self._base: Base | None = base
        self._raw: _scant.Communicator | None = base.communicator._native()
        self.group_id = group_id
        self._timeout_s = timeout.total_seconds()
        self._name = ""
        self._desc = "undefined"
        self._staged = 0  # calls in the staging thread; later calls must queue behind them
        self._staged_lock = threading.Lock()
        self._coalescing: list[ScantWork] | None = None
        self._chain = next(_chains)  # the order of this group's callbacks

    # -- what torch asks of a group -------------------------------------------------------------

    def getRank(self) -> int:  # noqa: N802 - torch's name
        return self._rank

    def getSize(self) -> int:  # noqa: N802
        return self._size

    def rank(self) -> int:
        """This process's rank in the group."""
        return self._rank

    def size(self) -> int:
        """How many ranks the group has."""
        return self._size

    def name(self) -> str:
        """The backend's name."""
        return "scant"

    def getBackendName(self) -> str:  # noqa: N802
        return "scant"

    def setGroupName(self, name: str) -> None:  # noqa: N802
        self._name = name

    def getGroupName(self) -> str:  # noqa: N802
        return self._name

    def setGroupDesc(self, desc: str) -> None:  # noqa: N802
        self._desc = desc

    def getGroupDesc(self) -> str:  # noqa: N802
        return self._desc

    def get_group_store(self) -> Any:
        """The store that torch gave this group."""
        return self._store

    def _get_backend(self, device: torch.device) -> ProcessGroup:
        return self

    @property
    def options(self) -> Any:
        """torch's own options: the timeout."""
        return _TorchOptions("scant", timedelta(seconds=self._timeout_s))

    def set_timeout(self, timeout: timedelta) -> None:
        """The deadline of calls that name none."""
        if timeout <= _ZERO:
            raise InvalidArgument(f"timeout must be positive, got {timeout}", rank=self._rank)
        self._timeout_s = timeout.total_seconds()

    def _set_default_timeout(self, timeout: timedelta) -> None:
        self.set_timeout(timeout)

    def _set_sequence_number_for_group(self) -> None:
        """Scant numbers its operations by itself."""

    def shutdown(self) -> None:
        """Leave the group; the last group of a communicator closes it. Idempotent."""
        base, self._base, self._raw = self._base, None, None
        if base is not None:
            base.release(_EXIT_FLUSH_S)

    def abort(self) -> None:
        """End the communicator at once, with all groups that share it."""
        base, self._base, self._raw = self._base, None, None
        if base is not None:
            base.abort(f"process group {self._name or 'default'} aborted on rank {self._rank}")

    # -- for the parts of this package ----------------------------------------------------------

    def native(self) -> _scant.Communicator:
        """The communicator; raises when the group was shut down."""
        if self._raw is None:
            raise Closed(f"process group {self._name!r} was shut down", rank=self._rank)
        return self._raw

    def work(
        self,
        works: Sequence[_scant.Work],
        result: list[Any],
        finish: Callable[[], None] | None = None,
    ) -> ScantWork:
        """The Work of a call on CPU tensors."""
        return self._noted(ScantWork(works, result, finish, self._chain))

    def _noted(self, work: ScantWork) -> ScantWork:
        if self._coalescing is not None:
            self._coalescing.append(work)
        return work

    def timeout_of(self, opts: Any) -> float:
        """The deadline that a call's options ask for, in seconds."""
        timeout = opts if isinstance(opts, timedelta) else getattr(opts, "timeout", None)
        if timeout is None or timeout <= _ZERO:
            return self._timeout_s
        return float(timeout.total_seconds())

    def _run(
        self,
        launch: Launch,
        result: list[Any],
        *,
        both: Tensors = (),
        reads: Tensors = (),
        writes: Tensors = (),
        chain: int | None = None,
    ) -> ScantWork:
        chain = self._chain if chain is None else chain
        device = common_device((*both, *reads, *writes))
        both = [dense(tensor) for tensor in both]
        reads = [dense(tensor) for tensor in reads]
        writes = [dense(tensor) for tensor in writes]
        if device.type == "cpu":
            return self._run_cpu(launch, result, both, reads, writes, chain)
        side = staging.side_stream(device)
        hosts, copied = staging.copy_from_device((*both, *reads), device, side)
        host_both, host_reads = hosts[: len(both)], hosts[len(both) :]
        host_writes = [staging.pinned_like(tensor) for tensor in writes]

        def copy_back() -> None:
            for tensor, host in zip((*both, *writes), (*host_both, *host_writes), strict=True):
                tensor.copy_(host, non_blocking=True)
                tensor.record_stream(side)

        return self._stage(
            device,
            side,
            copied,
            lambda: launch(host_both, host_reads, host_writes),
            result,
            copy_back,
            chain,
        )

    def _run_cpu(
        self,
        launch: Launch,
        result: list[Any],
        both: Tensors,
        reads: Tensors,
        writes: Tensors,
        chain: int,
    ) -> ScantWork:
        own_both = [
            t if is_plain(t) else t.clone(memory_format=torch.contiguous_format) for t in both
        ]
        own_reads = [
            t if is_plain(t) else t.resolve_conj().resolve_neg().contiguous() for t in reads
        ]
        own_writes = [
            t if is_plain(t) else torch.empty_like(t, memory_format=torch.contiguous_format)
            for t in writes
        ]
        copies = [
            (tensor, own)
            for tensor, own in zip((*both, *writes), (*own_both, *own_writes), strict=True)
            if tensor is not own
        ]

        def copy_back() -> None:
            for tensor, own in copies:
                tensor.copy_(own)

        if self._staged:
            return self._stage(
                torch.device("cpu"),
                None,
                None,
                lambda: launch(own_both, own_reads, own_writes),
                result,
                copy_back,
                chain,
            )
        works = launch(own_both, own_reads, own_writes)
        return self._noted(ScantWork(works, result, copy_back if copies else None, chain))

    def _stage(
        self,
        device: torch.device,
        side: torch.cuda.Stream | None,
        copied: torch.cuda.Event | None,
        launch: Callable[[], Sequence[_scant.Work]],
        result: list[Any],
        copy_back: Callable[[], None],
        chain: int,
    ) -> ScantWork:
        with self._staged_lock:
            self._staged += 1

        def submitted() -> None:
            with self._staged_lock:
                self._staged -= 1

        return self._noted(
            StagedWork(device, side, copied, launch, result, copy_back, submitted, chain)
        )

    def _only(self, tensors: Any, name: str) -> Tensor:
        if isinstance(tensors, Tensor):
            return tensors
        if len(tensors) != 1:
            raise InvalidArgument(f"{name} must be one tensor, got {len(tensors)}", rank=self._rank)
        tensor = tensors[0]
        if not isinstance(tensor, Tensor):
            raise InvalidArgument(f"{name} must be a tensor, got {type(tensor).__name__}")
        return tensor

    def _list(self, tensors: Any, name: str) -> list[Tensor]:
        inner = tensors[0] if len(tensors) == 1 and not isinstance(tensors[0], Tensor) else tensors
        if len(inner) != self._size:
            raise InvalidArgument(
                f"{name} has {len(inner)} tensors for {self._size} ranks", rank=self._rank
            )
        return list(inner)

    def _root(self, root: int) -> int:
        if not 0 <= root < self._size:
            raise InvalidArgument(
                f"root {root} is out of range: the group has ranks 0 to {self._size - 1}",
                rank=self._rank,
            )
        return root

    # -- reductions -----------------------------------------------------------------------------

    @not_compiled
    def allreduce(
        self, tensors: Any, opts: Any = None, timeout: timedelta | None = None
    ) -> ScantWork:
        # The way of DDP's buckets and of dist.all_reduce on a CPU tensor; every line costs.
        if opts is not None and timeout is None and len(tensors) == 1:
            tensor = tensors[0]
            raw = self._raw
            dtype = REDUCIBLE.get(tensor.dtype)
            reduce_op = getattr(opts, "reduceOp", opts)
            if (
                tensor.is_cpu
                and raw is not None
                and dtype is not None
                and not self._staged
                and not tensor.is_sparse
                and tensor.is_contiguous()
                and not tensor.is_neg()
            ):
                op = hash(reduce_op)
                if op != PREMUL_SUM:
                    address = tensor.data_ptr()
                    work = ScantWork(
                        (
                            raw.all_reduce(
                                address,
                                address,
                                tensor.nbytes,
                                dtype,
                                op,
                                self.group_id,
                                self.timeout_of(opts),
                                tensor,
                            ),
                        ),
                        [tensor],
                        None,
                        self._chain,
                    )
                    return work if self._coalescing is None else self._noted(work)
        return self._allreduce_any(tensors, opts, timeout)

    def _allreduce_any(self, tensors: Any, opts: Any, timeout: timedelta | None) -> ScantWork:
        if isinstance(tensors, Tensor):
            tensors = [tensors]
        reduce_op = dist.ReduceOp.SUM if opts is None else getattr(opts, "reduceOp", opts)
        op, factor = premultiplier(reduce_op)
        timeout_s = self.timeout_of(opts if timeout is None else timeout)
        if len(tensors) == 1 and tensors[0].layout is not torch.strided:
            if factor is not None:
                raise InvalidArgument("PREMUL_SUM is not defined for sparse tensors")
            return all_reduce_sparse(self, tensors[0], op, timeout_s)
        if factor is not None:
            with torch.no_grad():
                for tensor in tensors:
                    tensor.mul_(factor)
        gid = self.group_id
        native = self.native()

        def launch(both: Tensors, _: Tensors, __: Tensors) -> list[_scant.Work]:
            return [
                native.all_reduce(
                    t.data_ptr(), t.data_ptr(), t.nbytes, reducible(t, op), op, gid, timeout_s, t
                )
                for t in both
            ]

        both = [as_real(tensor, op) for tensor in tensors]
        return self._run(launch, list(tensors), both=both)

    @not_compiled
    def allreduce_coalesced(self, tensors: Any, opts: Any = None) -> ScantWork:
        first = tensors[0] if tensors else None
        if first is None or len(tensors) == 1:
            return self._allreduce_any(tensors, opts, None)
        fusible = all(t.dtype == first.dtype and t.layout is torch.strided for t in tensors)
        small = first.is_cpu and sum(t.nbytes for t in tensors) <= _FUSE_BYTES
        if not fusible or not small or first.is_complex():
            return self._allreduce_any(tensors, opts, None)
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        inner = self._allreduce_any([flat], opts, None)

        def spread() -> None:
            pieces = torch.split_with_sizes(flat, [t.numel() for t in tensors])
            with torch.no_grad():
                for tensor, piece in zip(tensors, pieces, strict=True):
                    tensor.copy_(piece.view(tensor.shape))

        return self._noted(GroupedWork([inner], list(tensors), spread, self._chain))

    @not_compiled
    def reduce(self, tensors: Any, opts: Any) -> ScantWork:
        tensor = self._only(tensors, "tensors")
        op, factor = premultiplier(opts.reduceOp)
        root = self._root(opts.rootRank)
        if factor is not None:
            tensor = tensor.mul_(factor) if self._rank == root else tensor * factor
        native, gid, timeout_s = self.native(), self.group_id, self.timeout_of(opts)

        def launch(both: Tensors, reads: Tensors, _: Tensors) -> list[_scant.Work]:
            t = (both or reads)[0]
            target = t.data_ptr() if both else 0
            code = reducible(t, op)
            return [
                native.reduce(t.data_ptr(), target, t.nbytes, code, op, root, gid, timeout_s, t)
            ]

        real = as_real(tensor, op)
        if self._rank == root:
            return self._run(launch, [tensor], both=[real])
        return self._run(launch, [tensor], reads=[real])

    @not_compiled
    def reduce_scatter(self, outputs: Any, inputs: Any, opts: Any = None) -> ScantWork:
        output = self._only(outputs, "output")
        parts = self._list(inputs, "input")
        op, parts = self._premultiplied(parts, opts)
        native, gid, timeout_s = self.native(), self.group_id, self.timeout_of(opts)

        def launch(_: Tensors, reads: Tensors, writes: Tensors) -> list[_scant.Work]:
            out = writes[0]
            code = reducible(out, op)
            return [
                native.reduce_scatter(
                    parts_of(reads),
                    out.data_ptr(),
                    out.nbytes,
                    code,
                    op,
                    gid,
                    timeout_s,
                    (reads, out),
                )
            ]

        self._same_dtype(output, parts)
        reads = [as_real(part, op) for part in parts]
        return self._run(launch, [output], reads=reads, writes=[as_real(output, op)])

    @not_compiled
    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> ScantWork:
        op, (source,) = self._premultiplied([input], opts)
        if output.numel() * self._size != source.numel():
            raise InvalidArgument(
                f"input has {source.numel()} elements, {self._size} ranks times the "
                f"{output.numel()} of output are needed",
                rank=self._rank,
            )
        self._same_dtype(output, [source])
        native, gid, size = self.native(), self.group_id, self._size
        timeout_s = self.timeout_of(opts)

        def launch(_: Tensors, reads: Tensors, writes: Tensors) -> list[_scant.Work]:
            source, out = reads[0], writes[0]
            code = reducible(out, op)
            return [
                native.reduce_scatter_equal(
                    source.data_ptr(),
                    out.data_ptr(),
                    out.nbytes,
                    size,
                    code,
                    op,
                    gid,
                    timeout_s,
                    (source, out),
                )
            ]

        begin = source.data_ptr()
        if begin <= output.data_ptr() < begin + source.nbytes:
            source = source.clone()  # the output is a part of the input
        return self._run(
            launch, [output], reads=[as_real(source, op)], writes=[as_real(output, op)]
        )

    _reduce_scatter_base = reduce_scatter_single

    @not_compiled
    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> ScantWork:
        pairs = zip(outputs, inputs, strict=True)
        works = [self.reduce_scatter_single(out, source, opts) for out, source in pairs]
        return self._together(works, list(outputs))

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def _premultiplied(self, tensors: list[Tensor], opts: Any) -> tuple[int, list[Tensor]]:
        reduce_op = dist.ReduceOp.SUM if opts is None else getattr(opts, "reduceOp", opts)
        op, factor = premultiplier(reduce_op)
        if factor is not None:
            tensors = [tensor.detach() * factor for tensor in tensors]
        return op, tensors

    def _same_dtype(self, output: Tensor, inputs: Tensors) -> None:
        for tensor in inputs:
            if tensor.dtype != output.dtype:
                raise InvalidArgument(
                    f"input is {tensor.dtype} but output is {output.dtype}", rank=self._rank
                )

    # -- moves ----------------------------------------------------------------------------------

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

    def _together(self, works: list[ScantWork], result: list[Any]) -> ScantWork:
        return self._noted(GroupedWork(works, result, None, self._chain))

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
    timeout = backend_options.timeout
    rank, size = backend_options.group_rank, backend_options.group_size
    base, group_id = open_group(
        backend_options.store,
        rank,
        size,
        timeout.total_seconds(),
        is_default=not backend_options.global_ranks_in_group,
        options=options.given() if options is not None else {},
    )
    return ProcessGroup(backend_options.store, rank, size, timeout, base, group_id)
