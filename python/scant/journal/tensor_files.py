"""Files of the safetensors format: their heads, and their tensors as arrays, without torch."""

from __future__ import annotations

import json
import math
import pathlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scant.errors import Corrupt

__all__ = ["BYTES", "Place", "Tensor", "head", "places", "read"]

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


def head(
    tensors: Sequence[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """What stands before the bytes of these (name, kind, shape), which follow without gaps."""
    table: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, kind, shape in tensors:
        end = at + BYTES[kind] * math.prod(shape)
        table[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


@dataclass(frozen=True)
class Place:
    """Where a tensor of a file lies."""

    kind: str
    shape: tuple[int, ...]
    at: int  # byte of the file
    bytes: int


def places(path: pathlib.Path) -> dict[str, Place]:
    """The tensors of a file by name, in their order; only its head is read."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_HEAD_BYTES_MAX, size - 8):
                raise ValueError("the head is longer than the file")
            return _parse(file.read(length), size)
        except (ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
            raise Corrupt(f"{path}: not a safetensors file: {error!r}") from error


def read(path: pathlib.Path) -> dict[str, Tensor]:
    """All tensors of a file, by name."""
    found = places(path)
    content = memoryview(path.read_bytes())
    return {
        name: Tensor(one.kind, one.shape, content[one.at : one.at + one.bytes])
        for name, one in found.items()
    }


def _once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is there twice")
    return table


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _parse(text: bytes, size: int) -> dict[str, Place]:
    begin = 8 + len(text)
    found = {}
    table = json.loads(text, object_pairs_hook=_once)
    if not isinstance(table, dict):
        raise ValueError("the head is no table")
    for name, row in table.items():
        if name == "__metadata__":
            continue
        name.encode()  # half of a surrogate is no text
        first, end = row["data_offsets"]
        shape = tuple(row["shape"])
        if not all(map(_is_count, (first, end, *shape))):
            raise ValueError(f"'{name}' has numbers that are no counts")
        if not first <= end <= size - begin:
            raise ValueError(f"'{name}' lies outside the file")
        if end - first != BYTES[row["dtype"]] * math.prod(shape):
            raise ValueError(f"'{name}' has not as many bytes as its shape asks for")
        found[name] = Place(row["dtype"], shape, begin + first, end - first)
    after = begin
    for name, one in sorted(found.items(), key=lambda item: (item[1].at, item[1].bytes)):
        if one.at < after:
            raise ValueError(f"'{name}' overlaps another tensor")
        after = one.at + one.bytes
    return found
