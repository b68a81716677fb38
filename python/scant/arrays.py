"""What the communicator needs to know of an array: where its bytes lie and what they are."""

from __future__ import annotations

from typing import Any

from scant import _scant
from scant.codes import ReduceOp
from scant.errors import InvalidArgument

__all__ = ["byte_parts", "dtype_name", "empty_bytes", "empty_stack", "op_code", "reducible", "view"]

_OP_NAMES = {op.name.lower(): op for op in ReduceOp} | {
    "avg": ReduceOp.AVERAGE,
    "mean": ReduceOp.AVERAGE,
    "prod": ReduceOp.PRODUCT,
    "and": ReduceOp.BIT_AND,
    "or": ReduceOp.BIT_OR,
    "xor": ReduceOp.BIT_XOR,
}


def view(array: Any, name: str, write: bool) -> tuple[int, int, int]:
    """(address, bytes, dtype code) of a contiguous array."""
    try:
        address, nbytes, dtype, contiguous = (
            _scant.write_view(array) if write else _scant.read_view(array)
        )
    except TypeError as error:
        if write:
            flags = getattr(array, "flags", None)
            if getattr(flags, "writeable", True) is False:
                raise InvalidArgument(f"{name} is read-only") from error
        kind = type(array).__name__
        dtype_text = f" of {array.dtype}" if hasattr(array, "dtype") else ""
        raise InvalidArgument(
            f"{name} must be a {'writable ' if write else ''}CPU array with the buffer protocol "
            f"or DLPack, got {kind}{dtype_text}"
        ) from error
    if not contiguous:
        raise InvalidArgument(f"{name} is not contiguous: pass numpy.ascontiguousarray({name})")
    return address, nbytes, dtype


def op_code(op: ReduceOp | str) -> int:
    if isinstance(op, str):
        found = _OP_NAMES.get(op.lower())
        if found is None:
            raise InvalidArgument(f"op {op!r} is none of {', '.join(sorted(_OP_NAMES))}")
        return int(found)
    try:
        return int(ReduceOp(op))
    except ValueError as error:
        raise InvalidArgument(f"op {op!r} is no ReduceOp") from error


def reducible(dtype: int, array: Any, name: str) -> int:
    if dtype >= len(_scant.dtype_names):
        names = ", ".join(_scant.dtype_names)
        raise InvalidArgument(
            f"{name} has dtype {getattr(array, 'dtype', '?')}, which cannot be reduced; "
            f"these can: {names}"
        )
    return dtype


def empty_stack(count: int, like: Any) -> Any:
    import numpy as np

    model = np.asarray(like)
    return np.empty((count, *model.shape), model.dtype)


def empty_bytes(count: int) -> Any:
    import numpy as np

    return np.empty(count, np.uint8)


def byte_parts(arrays: Any, count: int) -> list[Any]:
    """Views of the bytes of `count` contiguous arrays, or of as many equal parts of one."""
    import numpy as np

    if isinstance(arrays, (list, tuple)):
        return [np.asarray(array).reshape(-1).view(np.uint8) for array in arrays]
    whole = np.asarray(arrays).reshape(-1).view(np.uint8)
    part = whole.size // count
    return [whole[i * part : (i + 1) * part] for i in range(count)]


def dtype_name(dtype: int) -> str:
    if dtype < len(_scant.dtype_names):
        return _scant.dtype_names[dtype]
    return next(name for name, code in _scant.moved_dtypes.items() if code == dtype)
