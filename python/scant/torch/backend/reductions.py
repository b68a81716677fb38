"""The reductions of the process group.

The common case of all-reduce (one contiguous CPU tensor) is written out for speed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from scant import _scant
from scant.errors import InvalidArgument
from scant.torch.backend.compiler import not_compiled
from scant.torch.backend.group_core import GroupCore, Tensor, Tensors
from scant.torch.backend.sparse import all_reduce_sparse
from scant.torch.backend.tensors import (
    PREMUL_SUM,
    REDUCIBLE,
    as_real,
    factor_for,
    parts_of,
    premultiplier,
    reducible,
)
from scant.torch.backend.work import GroupedWork, ScantWork

__all__ = ["Reductions"]

# Tensors up to this many bytes are worth a copy into one message instead of a message each.
_FUSE_BYTES = 256 * 1024


class Reductions(GroupCore):
    """Operations that compute."""

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
                text = "PREMUL_SUM is not defined for sparse tensors"
                raise InvalidArgument(text, rank=self._rank)
            return all_reduce_sparse(self, tensors[0], op, timeout_s)
        if factor is not None:
            factors = [factor_for(tensor, factor, self._rank) for tensor in tensors]
            with torch.no_grad():
                for tensor, own in zip(tensors, factors, strict=True):
                    tensor.mul_(own)
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
            factor = factor_for(tensor, factor, self._rank)
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
            tensors = [t.detach() * factor_for(t, factor, self._rank) for t in tensors]
        return op, tensors

    def _same_dtype(self, output: Tensor, inputs: Tensors) -> None:
        for tensor in inputs:
            if tensor.dtype != output.dtype:
                raise InvalidArgument(
                    f"input is {tensor.dtype} but output is {output.dtype}", rank=self._rank
                )
