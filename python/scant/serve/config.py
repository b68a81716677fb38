"""Descriptions from Hugging Face's ``config.json`` and back."""

from __future__ import annotations

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

__all__ = ["FAMILIES", "from_config", "to_config"]

# model_type -> family; the classes of those that were described by a GGUF file.
FAMILIES = {
    "llama": Family.LLAMA,
    "mistral": Family.MISTRAL,
    "qwen2": Family.QWEN2,
    "qwen3": Family.QWEN3,
    "gpt2": Family.GPT2,
}
_CLASSES = {
    Family.LLAMA: "LlamaForCausalLM",
    Family.MISTRAL: "MistralForCausalLM",
    Family.QWEN2: "Qwen2ForCausalLM",
    Family.QWEN3: "Qwen3ForCausalLM",
    Family.GPT2: "GPT2LMHeadModel",
}
_GELU = {
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu": Activation.GELU,
}


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise Corrupt(f"config.json: {key} is {value!r}, not a count")
    return value


def _real(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Corrupt(f"config.json: {key} is {value!r}, not a number")
    if not abs(value) < 1e30:  # no infinity, no NaN, nothing that f32 cannot hold
        raise Corrupt(f"config.json: {key} is out of range")
    return float(value)


def _tokens(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key in ("bos_token_id", "eos_token_id"):
        one = generation.get(key)
        one = config.get(key) if one is None else one
        several = one if isinstance(one, list) else [] if one is None else [one]
        if not all(isinstance(token, int) for token in several):
            raise Corrupt(f"config.json: {key} is {one!r}, not tokens")
        found[key] = tuple(several)
    return {
        "bos": found["bos_token_id"][0] if found["bos_token_id"] else NO_TOKEN,
        "eos": found["eos_token_id"],
    }


def from_config(
    config: Mapping[str, Any], generation: Mapping[str, Any], adds_bos: bool
) -> Description:
    """The description that a folder's ``config.json`` and ``generation_config.json`` give."""
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise Unsupported(
            f"config.json: models of type {kind!r} cannot be packed; known: {', '.join(FAMILIES)}"
        )
    flags = Flags.ADDS_BOS if adds_bos else Flags.NONE
    rest = _tokens(config, generation)
    if family == Family.GPT2:
        return _gpt2(config, flags, rest)
    return _llama(family, config, flags, rest)


def _gpt2(config: Mapping[str, Any], flags: Flags, rest: Mapping[str, Any]) -> Description:
    activation = config.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _GELU:
        raise Unsupported(
            f"config.json: activation_function {activation!r} is not supported; "
            f"known: {', '.join(_GELU)}"
        )
    width, heads = _whole(config, "n_embd"), _whole(config, "n_head")
    flags |= Flags.QKV_BIAS | Flags.OUTPUT_BIAS | Flags.FFN_BIAS
    if config.get("tie_word_embeddings", True):
        flags |= Flags.TIED_EMBEDDING
    return Description(
        family=Family.GPT2,
        layers=_whole(config, "n_layer"),
        width=width,
        heads=heads,
        kv_heads=heads,
        head_size=width // max(heads, 1),
        ffn=_whole(config, "n_inner", 4 * width),
        vocabulary=_whole(config, "vocab_size"),
        context=_whole(config, "n_positions"),
        norm_epsilon=_real(config, "layer_norm_epsilon", 1e-5),
        position=Position.LEARNED,
        norm=Norm.LAYER,
        activation=_GELU[activation],
        flags=flags,
        **rest,
    )


def _llama(
    family: Family, config: Mapping[str, Any], flags: Flags, rest: Mapping[str, Any]
) -> Description:
    if config.get("hidden_act", "silu") != "silu":
        raise Unsupported(
            f"config.json: hidden_act {config['hidden_act']!r} is not supported; known: silu"
        )
    width, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    head_size = _whole(config, "head_dim", width // max(heads, 1))
    flags |= Flags.GATED_FFN
    if config.get("tie_word_embeddings", False):
        flags |= Flags.TIED_EMBEDDING
    if config.get("attention_bias", False):
        flags |= Flags.QKV_BIAS | Flags.OUTPUT_BIAS
    if family == Family.QWEN2:
        flags |= Flags.QKV_BIAS
    if family == Family.QWEN3:
        flags |= Flags.QK_NORM
    if config.get("mlp_bias", False):
        flags |= Flags.FFN_BIAS
    windowed = family == Family.MISTRAL or config.get("use_sliding_window", False)
    return Description(
        family=family,
        layers=_whole(config, "num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", heads),
        head_size=head_size,
        ffn=_whole(config, "intermediate_size"),
        vocabulary=_whole(config, "vocab_size"),
        context=_whole(config, "max_position_embeddings"),
        window=_whole(config, "sliding_window", 0) if windowed else 0,
        norm_epsilon=_real(config, "rms_norm_eps", 1e-6),
        position=Position.ROPE_HALVES,
        rope_size=int(head_size * _real(config, "partial_rotary_factor", 1.0)),
        flags=flags,
        **_rope(config),
        **rest,
    )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise Corrupt(f"config.json: rope_scaling is {given!r}")
    base = _real(given, "rope_theta", _real(config, "rope_theta", 10000.0))
    kind = given.get("rope_type", given.get("type", "default"))
    if kind in ("default", None):
        return {"rope_base": base}
    if kind == "linear":
        factor = _real(given, "factor")
        return {"rope_base": base, "rope_scaling": RopeScaling.LINEAR, "rope_factor": factor}
    if kind != "llama3":
        raise Unsupported(
            f"config.json: rope scaling {kind!r} is not supported; known: linear, llama3"
        )
    return {
        "rope_base": base,
        "rope_scaling": RopeScaling.LLAMA3,
        "rope_factor": _real(given, "factor"),
        "rope_low": _real(given, "low_freq_factor"),
        "rope_high": _real(given, "high_freq_factor"),
        "rope_context": _whole(given, "original_max_position_embeddings"),
    }


def to_config(description: Description, dtype: str) -> dict[str, Any]:
    """A ``config.json`` for a model whose source had none."""
    d = description
    config: dict[str, Any] = {
        "architectures": [_CLASSES[d.family]],
        "model_type": d.family.name.lower(),
        "torch_dtype": dtype,
        "vocab_size": d.vocabulary,
        "tie_word_embeddings": Flags.TIED_EMBEDDING in d.flags,
    }
    if d.bos != NO_TOKEN:
        config["bos_token_id"] = d.bos
    if d.eos:
        config["eos_token_id"] = d.eos[0] if len(d.eos) == 1 else list(d.eos)
    if d.family == Family.GPT2:
        return config | {
            "n_embd": d.width,
            "n_layer": d.layers,
            "n_head": d.heads,
            "n_inner": d.ffn,
            "n_positions": d.context,
            "layer_norm_epsilon": d.norm_epsilon,
            "activation_function": "gelu" if d.activation == Activation.GELU else "gelu_new",
        }
    config |= {
        "hidden_act": "silu",
        "hidden_size": d.width,
        "num_hidden_layers": d.layers,
        "num_attention_heads": d.heads,
        "num_key_value_heads": d.kv_heads,
        "head_dim": d.head_size,
        "intermediate_size": d.ffn,
        "max_position_embeddings": d.context,
        "rms_norm_eps": d.norm_epsilon,
        "rope_theta": d.rope_base,
    }
    if d.rope_size != d.head_size:
        config["partial_rotary_factor"] = d.rope_size / d.head_size
    if d.window:
        config["sliding_window"] = d.window
        if d.family != Family.MISTRAL:
            config["use_sliding_window"] = True
    if Flags.OUTPUT_BIAS in d.flags:
        config["attention_bias"] = True
    if Flags.FFN_BIAS in d.flags:
        config["mlp_bias"] = True
    if d.rope_scaling == RopeScaling.LINEAR:
        config["rope_scaling"] = {"rope_type": "linear", "factor": d.rope_factor}
    if d.rope_scaling == RopeScaling.LLAMA3:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": d.rope_factor,
            "low_freq_factor": d.rope_low,
            "high_freq_factor": d.rope_high,
            "original_max_position_embeddings": d.rope_context,
        }
    return config
