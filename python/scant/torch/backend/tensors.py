"""What Scant needs to know of a tensor: its element code, and if its bytes lie in one piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from scant import _scant
from scant.codes import DType, ReduceOp
from scant.errors import InvalidArgument, Unsupported

__all__ = [
    "PREMUL_SUM",
    "REDUCIBLE",
    "Part",
    "as_real",
    "common_device",
    "dense",
    "factor_for",
    "is_plain",
    "movable",
    "parts_of",
    "premultiplier",
    "reducible",
    "split_parts",
]

Part = tuple[int, int]

# torch's ReduceOp hashes to its number; the first eight agree with scant.ReduceOp.
PREMUL_SUM = 8

REDUCIBLE: dict[torch.dtype, int] = {
    torch.float32: int(DType.F32),
    torch.float64: int(DType.F64),
    torch.bfloat16: int(DType.BF16),
    torch.float16: int(DType.F16),
    torch.int8: int(DType.I8),
    torch.int32: int(DType.I32),
    torch.int64: int(DType.I64),
    torch.uint8: int(DType.U8),
    torch.bool: int(DType.BOOL),
}


def reducible(tensor: torch.Tensor, op: int) -> int:
    """The element code for a reduction."""
    code = REDUCIBLE.get(tensor.dtype)
    if code is None:
        raise InvalidArgument(
            f"tensor has dtype {tensor.dtype}, which cannot be reduced; these can: "
            + ", ".join(str(dtype) for dtype in REDUCIBLE)
        )
    if not 0 <= op < len(ReduceOp):
        raise Unsupported(f"reduction {op} of torch is not known")
    return code


def movable(tensor: torch.Tensor) -> int:
    """The element code for moving without arithmetic; ranks that disagree on it are told."""
    code = REDUCIBLE.get(tensor.dtype)
    if code is None:
        name = str(tensor.dtype).removeprefix("torch.")
        code = _scant.moved_dtypes.get(name, _scant.moved_dtypes["other"])
    return code


def is_plain(tensor: torch.Tensor) -> bool:
    """Row-major in one piece, so that its address and size say it all."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without autograd; refuses what has no strides."""
    if tensor.layout is not torch.strided:
        raise InvalidArgument(f"tensor has layout {tensor.layout}, this call needs a dense tensor")
    return tensor.detach()


def as_real(tensor: torch.Tensor, op: int) -> torch.Tensor:
    """Complex tensors seen as pairs of reals, which is the same for sums and averages only."""
    if not tensor.is_complex():
        return tensor
    if op not in (ReduceOp.SUM, ReduceOp.AVERAGE):
        raise InvalidArgument(f"complex tensors cannot be reduced with {ReduceOp(op).name}")
    return torch.view_as_real(tensor.resolve_conj())


def premultiplier(op: Any) -> tuple[int, Any]:
    """(code, factor) of a torch ReduceOp; the factor is None unless it is PREMUL_SUM."""
    code = hash(op)
    if code != PREMUL_SUM:
        return code, None
    return int(ReduceOp.SUM), op.__getstate__()[1]


def factor_for(tensor: torch.Tensor, factor: Any, rank: int) -> Any:
    """The factor of PREMUL_SUM as this tensor takes it: integers want whole ones."""
    if tensor.is_floating_point() or tensor.is_complex():
        return factor
    value = factor.item() if isinstance(factor, torch.Tensor) and factor.numel() == 1 else factor
    if tensor.dtype is torch.bool or not isinstance(value, (int, float)) or value % 1 != 0:
        raise InvalidArgument(
            f"PREMUL_SUM: a tensor of dtype {tensor.dtype} cannot be multiplied by {value}",
            rank=rank,
        )
    return int(value)


def common_device(tensors: Iterable[torch.Tensor]) -> torch.device:
    """The one device of all these tensors."""
    device: torch.device | None = None
    for tensor in tensors:
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise InvalidArgument(f"tensors lie on both {device} and {tensor.device}")
    if device is None:
        return torch.device("cpu")
    if device.type not in ("cpu", "cuda"):
        raise Unsupported(f"tensors on {device.type} are not supported: cpu and cuda are")
    return device


def parts_of(tensors: Sequence[torch.Tensor]) -> list[Part]:
    """(address, bytes) of each tensor."""
    return [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]


def split_parts(tensor: torch.Tensor, splits: Sequence[int], count: int, name: str) -> list[Part]:
    """(address, bytes) of the parts of a tensor cut along its first dimension."""
    rows = tensor.size(0) if tensor.dim() else 1
    if not splits:
        if rows % count:
            raise InvalidArgument(f"{name} has {rows} rows, which {count} ranks cannot share")
        splits = [rows // count] * count
    if len(splits) != count:
        raise InvalidArgument(f"{name} has {len(splits)} split sizes for {count} ranks")
    if sum(splits) != rows or min(splits) < 0:
        raise InvalidArgument(f"split sizes {list(splits)} do not add up to the {rows} of {name}")
    row_bytes = tensor.nbytes // rows if rows else 0
    parts = []
    address = tensor.data_ptr()
    for split in splits:
        parts.append((address, split * row_bytes))
        address += split * row_bytes
    return parts
