"""Small models with random weights, as Hugging Face folders and GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy

from scant import _scant
from scant.journal import tensor_files
from scant.serve import config, gguf_model, gguf_values, names
from scant.serve.description import Description
from scant.serve.gguf_values import Type

WIDTH, FFN, VOCABULARY, LAYERS = 64, 96, 128, 2
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
_LLAMA = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": FFN, "vocab_size": VOCABULARY,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": [2, 3],
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA | {"model_type": "llama", "tie_word_embeddings": False},
    "llama_biases": _LLAMA
    | {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
    | {
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    },
    "mistral": _LLAMA | {"model_type": "mistral", "head_dim": 32, "sliding_window": 64},
    "qwen2": _LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": _LLAMA | {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "gpt2": {
        "model_type": "gpt2", "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 48,
        "vocab_size": VOCABULARY, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip
_DTYPES = {"F32": numpy.float32, "F16": numpy.float16, "BF16": numpy.uint16}


def tokenizer(cut: dict[str, Any] | None = None) -> dict[str, Any]:
    """Byte-level BPE of few tokens."""
    letters = [chr(ord("a") + i) for i in range(26)]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "<end>", *letters])}
    vocab["ab"] = len(vocab)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for i, token in enumerate(["<unk>", "<s>", "</s>", "<end>"])
        ],
        "normalizer": None,
        "pre_tokenizer": cut or {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {"type": "BPE", "byte_fallback": False, "vocab": vocab, "merges": [["a", "b"]]},
    }


def describe(name: str) -> Description:
    """The description of one of CONFIGS."""
    return config.from_config(CONFIGS[name], {}, False)


def weights(name: str, dtype: str, seed: int = 1) -> dict[str, numpy.ndarray[Any, Any]]:
    """A folder's tensors by its names; bf16 as u16."""
    random = numpy.random.default_rng(seed)
    description = describe(name)
    prefix = "transformer." if name == "gpt2" else "model."
    found = {}
    for ours, dims in names.expected(description).items():
        shape = dims[::-1] if names.is_transposed(description.family, ours) else dims
        values = random.standard_normal(shape, dtype=numpy.float32) * 0.1
        if dtype == "BF16":
            values = (values.view(numpy.uint32) >> 16).astype(numpy.uint16)
        found[names.to_hf(description.family, ours, prefix)] = values.astype(_DTYPES[dtype])
    return found


def write_safetensors(path: Path, tensors: dict[str, numpy.ndarray[Any, Any]], dtype: str) -> None:
    """One file."""
    rows = [(name, dtype, one.shape) for name, one in tensors.items()]
    head = tensor_files.head(rows, {"format": "pt"})
    path.write_bytes(head + b"".join(one.tobytes() for one in tensors.values()))


def folder(path: Path, name: str = "llama", dtype: str = "BF16", shards: int = 1) -> Path:
    """A model's folder; with several shards there is an index."""
    path.mkdir()
    tensors = weights(name, dtype)
    (path / "config.json").write_text(json.dumps(CONFIGS[name]))
    (path / "generation_config.json").write_text('{"temperature": 0.5}')
    (path / "tokenizer.json").write_text(json.dumps(tokenizer()))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    if shards == 1:
        write_safetensors(path / "model.safetensors", tensors, dtype)
        return path
    where: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        write_safetensors(path / file, part, dtype)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def read_folder(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """All tensors of a folder."""
    return {
        name: (one.kind, one.shape, bytes(one.data))
        for file in sorted(path.glob("*.safetensors"))
        for name, one in tensor_files.read(file).items()
    }


def gguf(
    path: Path,
    kinds: tuple[str, ...] = ("Q4_1", "Q8_0", "Q4_0", "f16"),
    changes: dict[str, Any] | None = None,
) -> Path:
    """A GGUF file of a llama whose matrices have these kinds in turn, in an order of its own."""
    random = numpy.random.default_rng(2)
    description = describe("llama")
    keys = gguf_model.to_gguf(description, "small") | {
        "general.alignment": (Type.U32, 64),
        "tokenizer.ggml.model": (Type.TEXT, "gpt2"),
        "tokenizer.ggml.pre": (Type.TEXT, "gpt-2"),
        "tokenizer.ggml.tokens": (Type.ARRAY, ["<unk>", "<s>", "</s>", "a", "b", "ab"], Type.TEXT),
        "tokenizer.ggml.token_type": (Type.ARRAY, [3, 3, 3, 1, 1, 1], Type.I32),
        "tokenizer.ggml.merges": (Type.ARRAY, ["a b"], Type.TEXT),
        "tokenizer.ggml.bos_token_id": (Type.U32, 1),
        "tokenizer.ggml.eos_token_id": (Type.U32, 2),
        "tokenizer.chat_template": (Type.TEXT, TEMPLATE),
        "small.odd \udcff": (Type.F64, 1.5),
        **(changes or {}),
    }
    rows = []
    for i, (name, dims) in enumerate(reversed(names.expected(description).items())):
        rows.append((name, kinds[i % len(kinds)] if len(dims) == 2 else "f32", dims))
    writer = _scant.GgufWriter(str(path), len(keys), gguf_values.encode_all(keys), rows)
    for _, kind, dims in rows:
        count = int(numpy.prod(dims[:-1], dtype=int)) * _scant.row_bytes(kind, dims[-1])
        data = random.integers(0, 60, count, dtype=numpy.uint8)  # floats stay finite and small
        writer.append(data.ctypes.data, data.nbytes)
    writer.finish()
    return path
