"""Descriptions from GGUF's keys and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from scant.errors import Corrupt, Unsupported
from scant.serve.description import (
    NO_TOKEN,
    Activation,
    Description,
    Family,
    Flags,
    Norm,
    Position,
    RopeScaling,
)
from scant.serve.gguf_values import Type

__all__ = ["from_gguf", "rope_factors", "to_gguf"]

_FAMILIES = {
    "llama": Family.LLAMA, "qwen2": Family.QWEN2, "qwen3": Family.QWEN3, "gpt2": Family.GPT2,
}  # fmt: skip
_ARCHITECTURES = {family: name for name, family in _FAMILIES.items()} | {Family.MISTRAL: "llama"}


class _Keys:
    """The keys of one file, with errors that name them."""

    def __init__(self, values: Mapping[str, Any], architecture: str) -> None:
        self.values, self.architecture = values, architecture

    def number(self, key: str, default: float | None = None) -> float:
        full = f"{self.architecture}.{key}"
        value = self.values.get(full, default)
        if not isinstance(value, int | float):
            raise Corrupt(f"GGUF: {full} is {value!r}, not a number")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if not isinstance(value, int) or not 0 <= value < 2**31:
            raise Corrupt(f"GGUF: {self.architecture}.{key} is {value!r}, not a count")
        return value


def from_gguf(values: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> Description:
    """The description of a file with these values; ``tensors``: dimensions by name."""
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _FAMILIES:
        raise Unsupported(
            f"GGUF: models of architecture {architecture!r} cannot be packed; known: "
            f"{', '.join(_FAMILIES)}"
        )
    keys = _Keys(values, architecture)
    family = _FAMILIES[architecture]
    window = keys.whole("attention.sliding_window", 0)
    if family == Family.LLAMA and window:
        family = Family.MISTRAL
    width, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    head_size = keys.whole("attention.key_length", width // max(heads, 1))
    embedding = tensors.get("token_embd.weight", ())
    common = {
        "family": family,
        "layers": keys.whole("block_count"),
        "width": width,
        "heads": heads,
        "kv_heads": keys.whole("attention.head_count_kv", heads),
        "head_size": head_size,
        "ffn": keys.whole("feed_forward_length"),
        "vocabulary": embedding[0] if embedding else 0,
        "context": keys.whole("context_length"),
        "flags": _flags(values, tensors),
        **_tokens(values),
    }
    if family == Family.GPT2:
        return Description(
            norm_epsilon=keys.number("attention.layer_norm_epsilon"),
            position=Position.LEARNED,
            norm=Norm.LAYER,
            activation=Activation.GELU_TANH,
            **common,
        )
    return Description(
        norm_epsilon=keys.number("attention.layer_norm_rms_epsilon"),
        position=Position.ROPE_NEIGHBOURS if architecture == "llama" else Position.ROPE_HALVES,
        rope_size=keys.whole("rope.dimension_count", head_size),
        rope_base=keys.number("rope.freq_base", 10000.0),
        window=window,
        **_scaling(keys, tensors),
        **common,
    )


def _flags(values: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> Flags:
    flags = Flags.NONE
    for flag, names in (
        (Flags.QKV_BIAS, ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias")),
        (Flags.OUTPUT_BIAS, ("blk.0.attn_output.bias",)),
        (Flags.FFN_BIAS, ("blk.0.ffn_up.bias",)),
        (Flags.QK_NORM, ("blk.0.attn_q_norm.weight",)),
        (Flags.GATED_FFN, ("blk.0.ffn_gate.weight",)),
    ):
        if any(name in tensors for name in names):
            flags |= flag
    if "output.weight" not in tensors:
        flags |= Flags.TIED_EMBEDDING
    by_default = values.get("tokenizer.ggml.model") == "llama"
    if values.get("tokenizer.ggml.add_bos_token", by_default):
        flags |= Flags.ADDS_BOS
    return flags


def _tokens(values: Mapping[str, Any]) -> dict[str, Any]:
    tokens = {}
    for one in ("bos", "eos", "eot", "eom"):
        token = values.get(f"tokenizer.ggml.{one}_token_id", NO_TOKEN)
        if not isinstance(token, int) or not 0 <= token <= NO_TOKEN:
            raise Corrupt(f"GGUF: tokenizer.ggml.{one}_token_id is {token!r}, not a token")
        tokens[one] = token
    ends = dict.fromkeys(tokens[one] for one in ("eos", "eot", "eom"))
    return {"bos": tokens["bos"], "eos": tuple(one for one in ends if one != NO_TOKEN)}


def _scaling(keys: _Keys, tensors: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    if "rope_freqs.weight" in tensors:
        return {"rope_scaling": RopeScaling.TENSOR}
    kind = keys.values.get(f"{keys.architecture}.rope.scaling.type", "none")
    if kind == "none":
        return {}
    if kind != "linear":
        raise Unsupported(f"GGUF: rope scaling {kind!r} is not supported; known: linear")
    factor = keys.number("rope.scaling.factor")
    return {"rope_scaling": RopeScaling.LINEAR, "rope_factor": factor}


def to_gguf(description: Description, name: str) -> dict[str, tuple[Any, ...]]:
    """The keys of a model whose source was no GGUF file, without its vocabulary."""
    d = description
    of = _ARCHITECTURES[d.family]
    values: dict[str, tuple[Any, ...]] = {
        "general.architecture": (Type.TEXT, of),
        "general.name": (Type.TEXT, name),
        f"{of}.block_count": (Type.U32, d.layers),
        f"{of}.context_length": (Type.U32, d.context),
        f"{of}.embedding_length": (Type.U32, d.width),
        f"{of}.feed_forward_length": (Type.U32, d.ffn),
        f"{of}.attention.head_count": (Type.U32, d.heads),
    }
    if d.activation == Activation.GELU:
        raise Unsupported("GGUF has no name for a GPT-2 whose GELU is by the error function")
    if d.family == Family.GPT2:
        return values | {f"{of}.attention.layer_norm_epsilon": (Type.F32, d.norm_epsilon)}
    values |= {
        f"{of}.attention.head_count_kv": (Type.U32, d.kv_heads),
        f"{of}.attention.key_length": (Type.U32, d.head_size),
        f"{of}.attention.value_length": (Type.U32, d.head_size),
        f"{of}.attention.layer_norm_rms_epsilon": (Type.F32, d.norm_epsilon),
        f"{of}.rope.dimension_count": (Type.U32, d.rope_size),
        f"{of}.rope.freq_base": (Type.F32, d.rope_base),
        f"{of}.vocab_size": (Type.U32, d.vocabulary),
    }
    if d.window:
        values[f"{of}.attention.sliding_window"] = (Type.U32, d.window)
    if d.rope_scaling == RopeScaling.LINEAR:
        values[f"{of}.rope.scaling.type"] = (Type.TEXT, "linear")
        values[f"{of}.rope.scaling.factor"] = (Type.F32, d.rope_factor)
    return values


def rope_factors(description: Description) -> bytes:
    """The divisors of frequencies of llama3 scaling: the bytes of ``rope_freqs.weight``."""
    d = description
    factors = []
    for i in range(0, d.rope_size, 2):
        wave = 2 * math.pi * d.rope_base ** (i / d.rope_size)
        if wave < d.rope_context / d.rope_high:
            factors.append(1.0)
        elif wave > d.rope_context / d.rope_low:
            factors.append(d.rope_factor)
        else:
            smooth = (d.rope_context / wave - d.rope_low) / (d.rope_high - d.rope_low)
            factors.append(1 / ((1 - smooth) / d.rope_factor + smooth))
    return struct.pack(f"<{len(factors)}f", *factors)
