"""Names of tensors, and how their rows stand, in GGUF (whose names a packed file has) and Hugging
Face's folders.
"""

from __future__ import annotations

import re

from scant.serve.description import Description, Family, Flags, Position

__all__ = ["HEAD_RUN", "expected", "is_transposed", "run_of", "to_gguf", "to_hf", "turned_heads"]

_LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_LLAMA_WHOLE = {"token_embd": "embed_tokens", "output_norm": "norm"}
_GPT2_WHOLE = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"}
_TRANSPOSED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")  # of GPT-2's folders
HEAD_RUN = 2**31  # behind all layers


def _tables(family: Family) -> tuple[dict[str, str], dict[str, str], str]:
    if family == Family.GPT2:
        return _GPT2, _GPT2_WHOLE, "h."
    return _LLAMA, _LLAMA_WHOLE, "layers."


def to_gguf(family: Family, name: str, prefix: str) -> str | None:
    """GGUF's name of a folder's tensor; None where it has none. ``prefix``: ``"model."``."""
    layer, whole, layers = _tables(family)
    if name == "lm_head.weight":
        return "output.weight"
    if not name.startswith(prefix):
        return None
    stem, _, last = name.removeprefix(prefix).rpartition(".")
    if last not in ("weight", "bias"):
        return None
    for ours, theirs in whole.items():
        if stem == theirs:
            return f"{ours}.{last}"
    found = re.fullmatch(re.escape(layers) + r"(\d{1,5})\.(.+)", stem)
    if found:
        for ours, theirs in layer.items():
            if found[2] == theirs:
                return f"blk.{int(found[1])}.{ours}.{last}"
    return None


def to_hf(family: Family, name: str, prefix: str) -> str:
    """A folder's name of a tensor; one that GGUF has no name for keeps its own."""
    layer, whole, layers = _tables(family)
    if name == "output.weight":
        return "lm_head.weight"
    stem, _, last = name.rpartition(".")
    if stem in whole:
        return f"{prefix}{whole[stem]}.{last}"
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if found and found[2] in layer:
        return f"{prefix}{layers}{found[1]}.{layer[found[2]]}.{last}"
    return name


def expected(description: Description) -> dict[str, tuple[int, ...]]:
    """The tensors that a model of this description needs, with their dimensions."""
    d = description
    gpt2 = d.family == Family.GPT2
    norm = ("weight", "bias") if gpt2 else ("weight",)
    heads, kv = d.heads * d.head_size, d.kv_heads * d.head_size
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (d.vocabulary, d.width)}
    if d.position == Position.LEARNED:
        found["position_embd.weight"] = (d.context, d.width)

    def add(name: str, rows: int, columns: int, bias: bool) -> None:
        found[f"{name}.weight"] = (rows, columns)
        if bias:
            found[f"{name}.bias"] = (rows,)

    for i in range(d.layers):
        at = f"blk.{i}."
        found |= {f"{at}attn_norm.{one}": (d.width,) for one in norm}
        if gpt2:
            add(f"{at}attn_qkv", 3 * d.width, d.width, Flags.QKV_BIAS in d.flags)
        else:
            for name, rows in (("attn_q", heads), ("attn_k", kv), ("attn_v", kv)):
                add(at + name, rows, d.width, Flags.QKV_BIAS in d.flags)
        if Flags.QK_NORM in d.flags:
            found |= {f"{at}attn_{one}_norm.weight": (d.head_size,) for one in "qk"}
        add(f"{at}attn_output", d.width, heads, Flags.OUTPUT_BIAS in d.flags)
        found |= {f"{at}ffn_norm.{one}": (d.width,) for one in norm}
        if Flags.GATED_FFN in d.flags:
            add(f"{at}ffn_gate", d.ffn, d.width, Flags.FFN_BIAS in d.flags)
        add(f"{at}ffn_up", d.ffn, d.width, Flags.FFN_BIAS in d.flags)
        add(f"{at}ffn_down", d.width, d.ffn, Flags.FFN_BIAS in d.flags)
    found |= {f"output_norm.{one}": (d.width,) for one in norm}
    if Flags.TIED_EMBEDDING not in d.flags:
        found["output.weight"] = (d.vocabulary, d.width)
    return found


def run_of(name: str) -> int:
    """Which run of a packed file a tensor belongs to: embedding, layers, head."""
    found = re.match(r"blk\.(\d+)\.", name)
    if found:
        return 1 + int(found[1])
    return 0 if name in ("token_embd.weight", "position_embd.weight") else HEAD_RUN


def turned_heads(description: Description, name: str) -> int:
    """The number of heads in a tensor whose rows GGUF orders otherwise than a folder; else 0."""
    if description.family not in (Family.LLAMA, Family.MISTRAL):
        return 0
    if re.fullmatch(r"blk\.\d+\.attn_q\.(weight|bias)", name):
        return description.heads
    if re.fullmatch(r"blk\.\d+\.attn_k\.(weight|bias)", name):
        return description.kv_heads
    return 0


def is_transposed(family: Family, name: str) -> bool:
    """Whether folders hold this matrix transposed."""
    found = re.fullmatch(r"blk\.\d+\.(\w+)\.weight", name)
    return family == Family.GPT2 and found is not None and found[1] in _TRANSPOSED
