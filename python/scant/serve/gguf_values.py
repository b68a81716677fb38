"""The values of a GGUF file's key-value pairs as Python has them, and back."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any

__all__ = ["Type", "decode", "decode_all", "encode", "encode_all"]


class Type(IntEnum):
    """GGUF's numbers of types."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    TEXT = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


_FORMATS = {
    Type.U8: "B", Type.I8: "b", Type.U16: "H", Type.I16: "h", Type.U32: "I", Type.I32: "i",
    Type.F32: "f", Type.BOOL: "?", Type.U64: "Q", Type.I64: "q", Type.F64: "d",
}  # fmt: skip


def _text(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    return data[at + 8 : end].decode("utf-8", "surrogateescape"), end


def _value(kind: Type, data: bytes, at: int) -> tuple[Any, int]:
    if kind == Type.TEXT:
        return _text(data, at)
    if kind != Type.ARRAY:
        form = "<" + _FORMATS[kind]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    code, count = struct.unpack_from("<IQ", data, at)
    at += 12
    element = Type(code)
    if element in _FORMATS:
        form = f"<{count}{_FORMATS[element]}"
        return list(struct.unpack_from(form, data, at)), at + struct.calcsize(form)
    values = []
    for _ in range(count):
        one, at = _value(element, data, at)
        values.append(one)
    return values, at


def decode(kind: int, data: bytes) -> Any:
    """One value. The extension has checked that it is there."""
    return _value(Type(kind), data, 0)[0]


def decode_all(pairs: Iterable[tuple[bytes, int, bytes]]) -> dict[str, Any]:
    """All values of a file, by key."""
    return {key.decode("utf-8", "surrogateescape"): decode(kind, data) for key, kind, data in pairs}


def _encoded_text(value: str) -> bytes:
    text = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(text)) + text


def encode(kind: Type, value: Any, element: Type | None = None) -> bytes:
    """The bytes of one value; ``element`` is the type of an array's elements."""
    if kind == Type.TEXT:
        return _encoded_text(value)
    if element is None:
        return struct.pack("<" + _FORMATS[kind], value)
    head = struct.pack("<IQ", element, len(value))
    if element == Type.TEXT:
        return head + b"".join(map(_encoded_text, value))
    return head + struct.pack(f"<{len(value)}{_FORMATS[element]}", *value)


def encode_all(values: Mapping[str, tuple[Any, ...]]) -> bytes:
    """The bytes of pairs, given by key as ``(Type, value)`` or ``(Type.ARRAY, values, Type)``."""
    return b"".join(
        _encoded_text(key) + struct.pack("<I", row[0]) + encode(*row) for key, row in values.items()
    )
