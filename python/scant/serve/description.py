"""What a model is, beside its tensors, as the packed file holds it (docs/packed.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

__all__ = [
    "NO_TOKEN",
    "Activation",
    "Description",
    "Family",
    "Flags",
    "Norm",
    "Position",
    "RopeScaling",
]

NO_TOKEN = 2**32 - 1


class Family(IntEnum):
    """The family whose names of tensors the source used."""

    LLAMA = 1
    MISTRAL = 2
    QWEN2 = 3
    QWEN3 = 4
    GPT2 = 5


class Norm(IntEnum):
    """How a vector is normalised."""

    RMS = 1
    LAYER = 2


class Activation(IntEnum):
    """The activation of the feed-forward net."""

    SILU = 1
    GELU_TANH = 2
    GELU = 3


class Position(IntEnum):
    """How a token's position enters: rope on halves, rope on neighbours, or a learned vector."""

    ROPE_HALVES = 1
    ROPE_NEIGHBOURS = 2
    LEARNED = 3


class RopeScaling(IntEnum):
    """How rope is slowed down for a longer context."""

    NONE = 0
    LINEAR = 1
    LLAMA3 = 2
    TENSOR = 3


class Flags(IntFlag):
    """What a decoder has."""

    NONE = 0
    TIED_EMBEDDING = 1
    QKV_BIAS = 2
    OUTPUT_BIAS = 4
    FFN_BIAS = 8
    QK_NORM = 16
    GATED_FFN = 32
    ADDS_BOS = 64


@dataclass(frozen=True)
class Description:
    """The hyper-parameters of a decoder."""

    family: Family
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocabulary: int
    context: int
    norm_epsilon: float
    position: Position
    rope_size: int = 0
    rope_base: float = 0.0
    window: int = 0
    norm: Norm = Norm.RMS
    activation: Activation = Activation.SILU
    rope_scaling: RopeScaling = RopeScaling.NONE
    rope_factor: float = 0.0
    rope_low: float = 0.0
    rope_high: float = 0.0
    rope_context: int = 0
    flags: Flags = Flags.GATED_FFN
    bos: int = NO_TOKEN
    eos: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As the extension takes it."""
        plain = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            plain[field.name] = int(value) if isinstance(value, int) else value
        return plain

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Description:
        """Of what the extension gives."""
        codes = {
            "family": Family, "norm": Norm, "activation": Activation, "position": Position,
            "rope_scaling": RopeScaling, "flags": Flags, "eos": tuple,
        }  # fmt: skip
        return cls(**{key: codes.get(key, lambda v: v)(value) for key, value in given.items()})
