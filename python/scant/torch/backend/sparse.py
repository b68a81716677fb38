"""All-reduce of sparse tensors: everyone gathers everyone's indices and values and adds them up.

The sizes are gathered first, which blocks for one small all-gather. The sum runs in rank order, so
all ranks get the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scant import _scant
from scant.codes import DType, ReduceOp
from scant.errors import InvalidArgument, Mismatch
from scant.torch.backend.tensors import movable, parts_of
from scant.torch.backend.work import ScantWork

if TYPE_CHECKING:
    from scant.torch.backend.group_core import GroupCore

__all__ = ["all_reduce_sparse"]

_HEADER = 8  # nnz, sparse dimensions, dimensions, then up to five sizes, folded when there are more


def _header(tensor: torch.Tensor) -> torch.Tensor:
    sizes = list(tensor.shape)
    rest = 1
    for size in sizes[4:]:
        rest = rest * 1_000_003 + size
    fields = [tensor._nnz(), tensor.sparse_dim(), tensor.dim(), *sizes[:4], rest]
    header = torch.zeros(_HEADER, dtype=torch.int64)
    header[: len(fields)] = torch.tensor(fields, dtype=torch.int64)
    return header


def all_reduce_sparse(
    group: GroupCore, tensor: torch.Tensor, op: int, timeout_s: float
) -> ScantWork:
    """Replaces the tensor by the sum (or average) over all ranks, coalesced."""
    if tensor.layout is not torch.sparse_coo:
        raise InvalidArgument(f"layout {tensor.layout} cannot be reduced: strided and COO can")
    if op not in (ReduceOp.SUM, ReduceOp.AVERAGE):
        raise InvalidArgument(f"sparse tensors cannot be reduced with {ReduceOp(op).name}")
    native, gid, size = group.native(), group.group_id, group.size()
    own = tensor.detach().coalesce()
    own_cpu = own.cpu()
    header = _header(own)
    headers = torch.empty((size, _HEADER), dtype=torch.int64)
    native.all_gather_equal(
        header.data_ptr(),
        headers.data_ptr(),
        header.nbytes,
        size,
        int(DType.I64),
        gid,
        timeout_s,
        (header, headers),
    ).wait()
    for rank in range(size):
        if not torch.equal(headers[rank, 1:], header[1:]):
            raise Mismatch(
                f"rank {rank} reduces a sparse tensor of another shape than rank {group.rank()}: "
                f"{headers[rank, 1:].tolist()} and {header[1:].tolist()}",
                rank=group.rank(),
                peer=rank,
            )
    counts = [int(count) for count in headers[:, 0]]
    indices, values = own_cpu.indices().contiguous(), own_cpu.values().contiguous()
    all_indices = [indices.new_empty((indices.size(0), count)) for count in counts]
    all_values = [values.new_empty((count, *values.shape[1:])) for count in counts]

    def gather(mine: torch.Tensor, everyone: list[torch.Tensor]) -> _scant.Work:
        return native.all_gather(
            mine.data_ptr(),
            mine.nbytes,
            parts_of(everyone),
            movable(mine),
            gid,
            timeout_s,
            (mine, everyone),
        )

    works = [gather(indices, all_indices), gather(values, all_values)]

    def add_up() -> None:
        total = torch.sparse_coo_tensor(
            torch.cat(all_indices, dim=1),
            torch.cat(all_values),
            tensor.shape,
            check_invariants=True,  # indices come from other processes
        ).coalesce()
        if op == ReduceOp.AVERAGE:
            total = torch.sparse_coo_tensor(
                total.indices(),
                total.values() / size,
                tensor.shape,
                is_coalesced=True,
                check_invariants=False,
            )
        with torch.no_grad():
            tensor.copy_(total.to(tensor.device))

    return group.work(works, [tensor], add_up)
