"""Models of random weights, as GGUF files: what kernels and memory cost does not depend on values.

The shape is that of Llama-3.2-1B, so that weights lie in memory and not in a cache.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy

from scant import _scant
from scant.serve import gguf_model, gguf_values
from scant.serve.description import (
    Activation,
    Description,
    Family,
    Flags,
    Norm,
    Position,
    RopeScaling,
)

LLAMA_1B = Description(
    family=Family.LLAMA,
    layers=16,
    width=2048,
    heads=32,
    kv_heads=8,
    head_size=64,
    ffn=8192,
    vocabulary=128_256,
    context=131_072,
    window=0,
    rope_size=64,
    norm=Norm.RMS,
    activation=Activation.SILU,
    position=Position.ROPE_NEIGHBOURS,
    rope_scaling=RopeScaling.NONE,
    flags=Flags.TIED_EMBEDDING | Flags.GATED_FFN,
    norm_epsilon=1e-5,
    rope_base=500_000.0,
    rope_factor=0.0,
    rope_low=0.0,
    rope_high=0.0,
    rope_context=0,
    bos=128_000,
    eos=(128_001,),
)

# Bytes of a block's scale, and of its codes; columns of a block.
_BLOCKS = {"Q4_0": (2, 16, 32), "Q8_0": (2, 32, 32)}
_CHUNK_ROWS = 4096


def _tensors(d: Description) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (d.vocabulary, d.width)
    for layer in range(d.layers):
        name = f"blk.{layer}."
        yield name + "attn_norm.weight", (d.width,)
        yield name + "attn_q.weight", (d.heads * d.head_size, d.width)
        yield name + "attn_k.weight", (d.kv_heads * d.head_size, d.width)
        yield name + "attn_v.weight", (d.kv_heads * d.head_size, d.width)
        yield name + "attn_output.weight", (d.width, d.heads * d.head_size)
        yield name + "ffn_norm.weight", (d.width,)
        yield name + "ffn_gate.weight", (d.ffn, d.width)
        yield name + "ffn_up.weight", (d.ffn, d.width)
        yield name + "ffn_down.weight", (d.width, d.ffn)
    yield "output_norm.weight", (d.width,)


def _rows(kind: str, rows: int, columns: int, draw: numpy.random.Generator) -> bytes:
    """Weights of about 1 / sqrt(columns), so that activations stay of one size."""
    spread = columns**-0.5
    if kind not in _BLOCKS:
        values = draw.standard_normal((rows, columns), numpy.float32) * spread
        if kind == "bf16":
            return bytes((values.view(numpy.uint32) >> 16).astype(numpy.uint16).data)
        return bytes(values.astype({"f16": numpy.float16, "f32": numpy.float32}[kind]).data)
    scale_bytes, code_bytes, block = _BLOCKS[kind]
    count = rows * columns // block
    blocks = numpy.empty((count, scale_bytes + code_bytes), numpy.uint8)
    # Even codes have 0.58 of the largest one's size.
    largest = spread / 0.58 / {"Q4_0": 8, "Q8_0": 127}[kind]
    scales = (largest * draw.uniform(0.8, 1.2, count)).astype(numpy.float16)
    blocks[:, :scale_bytes] = scales.view(numpy.uint8).reshape(count, 2)
    codes = numpy.frombuffer(draw.bytes(count * code_bytes), numpy.uint8)
    blocks[:, scale_bytes:] = codes.reshape(count, code_bytes)
    return bytes(blocks.data)


def write(path: pathlib.Path, kind: str, shape: Description = LLAMA_1B, seed: int = 1) -> int:
    """Writes a model, unless it is there; returns its bytes."""
    if path.exists():
        return path.stat().st_size
    keys = gguf_model.to_gguf(shape, "random weights")
    keys["tokenizer.ggml.model"] = (gguf_values.Type.TEXT, "no_vocab")
    tensors = list(_tensors(shape))
    announced = [(name, kind if len(dims) > 1 else "f32", dims) for name, dims in tensors]
    writer = _scant.GgufWriter(str(path), len(keys), gguf_values.encode_all(keys), announced)
    draw = numpy.random.default_rng(seed)
    try:
        for _, dims in tensors:
            if len(dims) == 1:
                data = numpy.ones(dims, numpy.float32).tobytes()
                writer.append(numpy.frombuffer(data, numpy.uint8).ctypes.data, len(data))
                continue
            for first in range(0, dims[0], _CHUNK_ROWS):
                data = _rows(kind, min(_CHUNK_ROWS, dims[0] - first), dims[1], draw)
                writer.append(numpy.frombuffer(data, numpy.uint8).ctypes.data, len(data))
        return int(writer.finish())
    finally:
        writer.close()
