"""Files of the safetensors format: their heads, and their tensors as arrays, without torch."""

from __future__ import annotations

import json
import math
import pathlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from scant.errors import Corrupt

__all__ = ["BYTES", "Tensor", "head", "read"]

# Bytes of an element, by the format's names.
BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_HEAD_BYTES_MAX = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file; the bytes are not copied."""

    kind: str
    shape: tuple[int, ...]
    data: memoryview


def head(tensors: Sequence[tuple[str, str, Sequence[int]]]) -> bytes:
    """What stands before the bytes of these (name, kind, shape), which follow without gaps."""
    table: dict[str, object] = {}
    at = 0
    for name, kind, shape in tensors:
        end = at + BYTES[kind] * math.prod(shape)
        table[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read(path: pathlib.Path) -> dict[str, Tensor]:
    """All tensors of a file, by name."""
    content = memoryview(path.read_bytes())
    try:
        return _parse(content)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise Corrupt(f"{path}: not a safetensors file: {error}") from error


def _parse(content: memoryview) -> dict[str, Tensor]:
    (length,) = struct.unpack_from("<Q", content)
    if length > min(_HEAD_BYTES_MAX, len(content) - 8):
        raise ValueError("the head is longer than the file")
    data = content[8 + length :]
    found = {}
    for name, row in json.loads(bytes(content[8 : 8 + length])).items():
        if name == "__metadata__":
            continue
        first, end = row["data_offsets"]
        shape = tuple(int(one) for one in row["shape"])
        if not 0 <= first <= end <= len(data):
            raise ValueError(f"'{name}' lies outside the file")
        if end - first != BYTES[row["dtype"]] * math.prod(shape):
            raise ValueError(f"'{name}' has not as many bytes as its shape asks for")
        found[name] = Tensor(row["dtype"], shape, data[first:end])
    return found
