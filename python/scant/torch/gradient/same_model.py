"""Before a model is trained together: do all ranks have the same one, and the same values in it?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from scant import _scant
from scant.errors import Error, InvalidArgument, Mismatch, make_error

__all__ = ["Row", "agreed", "broadcast_from_first", "check_same", "describe", "hash_of"]

_CHUNK_BYTES = 64 << 20

Row = tuple[str, str]
Found = TypeVar("Found")


def describe(parameters: Iterable[tuple[str, torch.Tensor]], options: dict[str, str]) -> list[Row]:
    """What must be alike on all ranks, as (what, how it is here)."""
    rows = [(f"parameter '{name}'", _kind_of(parameter)) for name, parameter in parameters]
    return rows + [(f"option '{name}'", value) for name, value in options.items()]


def _kind_of(parameter: torch.Tensor) -> str:
    text = f"{tuple(parameter.shape)} {str(parameter.dtype).removeprefix('torch.')}"
    if not parameter.is_contiguous():
        text += f", strides {parameter.stride()}"
    return text if parameter.requires_grad else text + ", frozen"


def _difference(first: Sequence[Row], other: Sequence[Row]) -> tuple[str, str, str] | None:
    """(what, how it is on the first, on the other) where they differ first."""
    for i in range(max(len(first), len(other))):
        a = first[i] if i < len(first) else None
        b = other[i] if i < len(other) else None
        if a == b:
            continue
        if a is None:
            assert b is not None
            return b[0], "missing", b[1]
        if b is None:
            return a[0], a[1], "missing"
        if a[0] == b[0]:
            return a[0], a[1], b[1]
        here, there = dict(first), dict(other)
        if b[0] not in here:
            return b[0], "missing", b[1]
        if a[0] not in there:
            return a[0], a[1], "missing"
        return a[0], "here", f"{b[0]} in its place"
    return None


def agreed(
    look: Callable[[], tuple[Found, list[Row]]], group_of: Callable[[], Any]
) -> tuple[Found, Any]:
    """What ``look`` finds on this rank, and the group in which all ranks found the same.

    The others would wait for a rank that raises alone: its mistake is raised on every rank.
    """
    try:
        found, rows = look()
    except Exception as mistake:
        if dist.is_initialized():
            check_same((), group_of(), mistake)
        raise
    group = group_of()
    check_same(rows, group)
    return found, group


def check_same(rows: Sequence[Row], group: Any, mistake: Exception | None = None) -> None:
    """Raises :class:`scant.Mismatch` on every rank, naming a rank that differs from rank 0.

    Where a rank comes with a mistake instead, that is raised on every rank, with its name."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    mine = _told(mistake) if mistake is not None else None
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, (list(rows), mine), group=group)
    if mistake is not None:
        if not isinstance(mistake, Error):
            raise mistake
        raise type(mistake)(f"rank {rank}: {mistake}", rank=rank) from mistake
    for other, (_, told) in enumerate(everyone):
        if told is not None:
            code, text = told
            raise make_error(code, f"rank {other}: {text}", rank, other, 0)
    for other in range(1, size):
        found = _difference(everyone[0][0], everyone[other][0])
        if found is not None:
            what, first, second = found
            raise Mismatch(
                f"the models differ: {what} is {first} on rank 0 and {second} on rank {other}",
                rank=rank,
                peer=other,
            )


def hash_of(parameters: Iterable[torch.Tensor]) -> int:
    """A hash of all their bits, never 0."""
    crc = 0
    for parameter in parameters:
        values = parameter.detach().cpu().contiguous()
        crc = _scant.crc32c(values.data_ptr(), values.nbytes, crc)
    return crc + 1


def _told(mistake: Exception) -> tuple[str, str]:
    """Code and text, as the other ranks get them."""
    if isinstance(mistake, Error):
        return mistake.code, str(mistake)
    return InvalidArgument.code, f"{type(mistake).__name__}: {mistake}"


@torch.no_grad()
def broadcast_from_first(tensors: Iterable[torch.Tensor], group: Any) -> None:
    """Rank 0's values to all ranks, many small tensors in one message."""
    by_kind: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        by_kind.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    root = dist.get_global_rank(group, 0) if group is not None else 0
    for same in by_kind.values():
        batch: list[torch.Tensor] = []
        size = 0
        for index, tensor in enumerate(same):
            batch.append(tensor)
            size += tensor.nbytes
            if size >= _CHUNK_BYTES or index + 1 == len(same):
                _broadcast_batch(batch, root, group)
                batch, size = [], 0


def _broadcast_batch(batch: Sequence[torch.Tensor], root: int, group: Any) -> None:
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in batch])
    dist.broadcast(flat, root, group=group)
    at = 0
    for tensor in batch:
        tensor.copy_(flat[at : at + tensor.numel()].view(tensor.shape))
        at += tensor.numel()
