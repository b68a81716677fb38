"""A decoder in torch's float64 over a whole text, written down from the families' papers: what the
engine is compared with. Names of tensors are those of a packed file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
import torch

from scant import _scant
from scant.serve.description import (
    Activation,
    Description,
    Flags,
    Norm,
    Position,
    RopeScaling,
)

__all__ = ["logits", "tensors_of", "vectors"]

Tensors = Mapping[str, torch.Tensor]


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a packed file or a GGUF file, as float64."""
    begun = path.open("rb").read(4)
    file = _scant.GgufFile(str(path)) if begun == b"GGUF" else _scant.PackedFile(str(path))
    found = {}
    for i, (name, _, dims, *_) in enumerate(file.tensors()):
        room = numpy.empty(dims, numpy.float32)
        rows = room.size // dims[-1]
        file.read(i, 0, rows, "f32", room.ctypes.data, room.nbytes)
        found[name] = torch.from_numpy(room).double()
    return found


def _frequencies(d: Description, tensors: Tensors) -> torch.Tensor:
    frequencies = d.rope_base ** (-torch.arange(0, d.rope_size, 2).double() / d.rope_size)
    if d.rope_scaling == RopeScaling.LINEAR:
        frequencies = frequencies / d.rope_factor
    if d.rope_scaling == RopeScaling.TENSOR:
        frequencies = frequencies / tensors["rope_freqs.weight"]
    if d.rope_scaling == RopeScaling.LLAMA3:
        turns = d.rope_context * frequencies / (2 * math.pi)  # in the old context
        share = ((turns - d.rope_low) / (d.rope_high - d.rope_low)).clamp(0, 1)
        frequencies = frequencies * (share + (1 - share) / d.rope_factor)
    return frequencies.float().double()  # models were trained so


def _rotated(x: torch.Tensor, d: Description, frequencies: torch.Tensor) -> torch.Tensor:
    """``x``: [heads, tokens, head_size]."""
    positions = torch.arange(x.shape[1]).double()
    angles = torch.outer(positions, frequencies).float().double()
    turn = torch.polar(torch.ones_like(angles), angles)
    rope, rest = x[..., : d.rope_size], x[..., d.rope_size :]
    if d.position == Position.ROPE_HALVES:
        pairs = torch.complex(*rope.chunk(2, dim=-1)) * turn
        rope = torch.cat([pairs.real, pairs.imag], dim=-1)
    else:
        pairs = torch.view_as_complex(rope.unflatten(-1, (-1, 2)).contiguous()) * turn
        rope = torch.view_as_real(pairs).flatten(-2)
    return torch.cat([rope, rest], dim=-1)


class _Net:
    def __init__(self, d: Description, tensors: Tensors) -> None:
        self.d, self.tensors = d, tensors

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        out = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return out if bias is None else out + bias

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self.tensors[f"{name}.weight"]
        if self.d.norm == Norm.LAYER:
            bias = self.tensors[f"{name}.bias"]
            return torch.nn.functional.layer_norm(
                x, x.shape[-1:], weight, bias, self.d.norm_epsilon
            )
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, self.d.norm_epsilon)

    def attention(self, at: str, x: torch.Tensor) -> torch.Tensor:
        d = self.d
        kv = d.kv_heads * d.head_size
        if f"{at}attn_qkv.weight" in self.tensors:
            parts = self.linear(f"{at}attn_qkv", x).split([d.heads * d.head_size, kv, kv], dim=-1)
        else:
            parts = tuple(self.linear(f"{at}attn_{one}", x) for one in "qkv")
        q, k, v = (one.unflatten(-1, (-1, d.head_size)).transpose(0, 1) for one in parts)
        if Flags.QK_NORM in d.flags:
            q, k = self.norm(f"{at}attn_q_norm", q), self.norm(f"{at}attn_k_norm", k)
        if d.position != Position.LEARNED:
            frequencies = _frequencies(d, self.tensors)
            q, k = _rotated(q, d, frequencies), _rotated(k, d, frequencies)
        k, v = (one.repeat_interleave(d.heads // d.kv_heads, dim=0) for one in (k, v))
        ago = torch.arange(len(x))[:, None] - torch.arange(len(x))
        hidden = (ago < 0) | (ago >= (d.window or len(x)))
        scores = (q @ k.transpose(1, 2)) / math.sqrt(d.head_size)
        mixed = scores.masked_fill(hidden, -math.inf).softmax(dim=-1) @ v
        return self.linear(f"{at}attn_output", mixed.transpose(0, 1).flatten(1))

    def feed_forward(self, at: str, x: torch.Tensor) -> torch.Tensor:
        def activation(y: torch.Tensor) -> torch.Tensor:
            if self.d.activation == Activation.SILU:
                return torch.nn.functional.silu(y)
            by = "tanh" if self.d.activation == Activation.GELU_TANH else "none"
            return torch.nn.functional.gelu(y, approximate=by)

        up = self.linear(f"{at}ffn_up", x)
        gated = Flags.GATED_FFN in self.d.flags
        hidden = activation(self.linear(f"{at}ffn_gate", x)) * up if gated else activation(up)
        return self.linear(f"{at}ffn_down", hidden)


def vectors(d: Description, tensors: Tensors, tokens: Sequence[int]) -> torch.Tensor:
    """What the last norm gives for all tokens: [tokens, width]."""
    net = _Net(d, tensors)
    x = tensors["token_embd.weight"][list(tokens)]
    if d.position == Position.LEARNED:
        x = x + tensors["position_embd.weight"][: len(x)]
    for i in range(d.layers):
        at = f"blk.{i}."
        x = x + net.attention(at, net.norm(f"{at}attn_norm", x))
        x = x + net.feed_forward(at, net.norm(f"{at}ffn_norm", x))
    return net.norm("output_norm", x)


def logits(d: Description, tensors: Tensors, tokens: Sequence[int]) -> torch.Tensor:
    """Of all tokens: [tokens, vocabulary]."""
    head = "token_embd.weight" if Flags.TIED_EMBEDDING in d.flags else "output.weight"
    return vectors(d, tensors, tokens) @ tensors[head].T
