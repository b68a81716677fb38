"""Values of optimizers and schedulers as JSON, and back to what they were.

JSON alone would give lists for tuples and strings for a dict's numbers: a MultiStepLR whose
milestones are strings never reaches one.
"""

from __future__ import annotations

import collections
import json
from typing import Any

import torch

from scant.errors import Unsupported

__all__ = ["DTYPES", "KINDS", "as_json", "decode", "encode"]

KINDS: dict[torch.dtype, str] = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16",
    torch.int32: "I32", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float32: "F32", torch.float64: "F64", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
DTYPES = {kind: dtype for dtype, kind in KINDS.items()}

_ELEMENTS_MAX = 4096  # of a tensor: larger ones do not belong into every entry of the log


def encode(value: Any, what: str) -> Any:
    """Of what JSON lacks the kind is written along."""
    if isinstance(value, torch.Tensor):
        if value.dtype not in KINDS or value.numel() > _ELEMENTS_MAX:
            raise Unsupported(
                f"journal: {what} has a tensor of {value.numel()} values of {value.dtype}; up to "
                f"{_ELEMENTS_MAX} of a usual type can be kept at every step"
            )
        return {"tensor": value.tolist(), "kind": KINDS[value.dtype]}
    if isinstance(value, dict):
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {key: encode(one, what) for key, one in value.items()}
        pairs = [[encode(key, what), encode(one, what)] for key, one in value.items()]
        return {"pairs": pairs, "counter": isinstance(value, collections.Counter)}
    if isinstance(value, tuple):
        return {"tuple": [encode(one, what) for one in value]}
    if isinstance(value, list):
        return [encode(one, what) for one in value]
    return as_json(value, what)


def decode(value: Any) -> Any:
    """What encode() was given."""
    if isinstance(value, list):
        return [decode(one) for one in value]
    if not isinstance(value, dict):
        return value
    keys = set(value)
    if keys == {"tensor", "kind"}:
        return torch.tensor(value["tensor"], dtype=DTYPES[value["kind"]])
    if keys == {"tuple"}:
        return tuple(decode(one) for one in value["tuple"])
    if keys == {"pairs", "counter"}:
        pairs = {decode(key): decode(one) for key, one in value["pairs"]}
        return collections.Counter(pairs) if value["counter"] else pairs
    return {key: decode(one) for key, one in value.items()}


def as_json(value: Any, what: str) -> Any:
    """The value itself, which JSON can hold."""
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise Unsupported(f"journal: {what} has a {type(value).__name__}, not JSON") from error
    return value
