"""From a packed file back to GGUF or a Hugging Face folder, some rows at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy

from scant import _scant
from scant.errors import Corrupt, InvalidArgument, Unsupported
from scant.journal import tensor_files
from scant.serve import config, gguf_model, gguf_values, names, vocabulary
from scant.serve.description import Description, Position, RopeScaling
from scant.serve.sources import CHUNK_BYTES

__all__ = ["VALUES", "Model", "to_gguf", "to_hf"]

VALUES = ("f32", "bf16", "f16")
_DTYPES = {"f32": "F32", "bf16": "BF16", "f16": "F16"}
_TORCH = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_SHARD_BYTES = 5_000_000_000
_ROPE_FREQS = "rope_freqs.weight"
# What Llama 3.1 and 3.2 published: factor, low, high, context. A file has the divisors alone.
_KNOWN_LLAMA3 = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192))


@dataclass(frozen=True)
class _Tensor:
    index: int
    name: str
    kind: str
    dims: tuple[int, ...]

    @property
    def rows(self) -> int:
        """All dimensions but the last."""
        return int(numpy.prod(self.dims[:-1], dtype=numpy.int64))


class Model:
    """A packed file with what its parts say."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.file = _scant.PackedFile(str(path))
        self.description = Description.from_dict(self.file.description())
        rows = sorted(enumerate(self.file.tensors()), key=lambda one: (one[1][4], one[0]))
        self.tensors = [_Tensor(i, name, kind, dims) for i, (name, kind, dims, *_) in rows]
        self._parts = {(kind, name): i for i, (kind, name, _) in enumerate(self.file.parts())}

    def part(self, kind: str, name: str = "") -> bytes | None:
        """A part's bytes; None where it is not there."""
        index = self._parts.get((kind, name))
        return None if index is None else self.file.part(index)

    def files(self) -> list[str]:
        """Names of the files that go along."""
        return [name for kind, name in self._parts if kind == "file"]

    def note(self, key: str) -> str | None:
        """A line of the provenance."""
        text = (self.part("provenance") or b"").decode("utf-8", "replace")
        for line in text.splitlines():
            if line.startswith(key + " "):
                return line[len(key) + 1 :]
        return None

    def template(self) -> str | None:
        """The chat template."""
        text = self.part("chat template")
        return None if text is None else text.decode("utf-8", "surrogateescape")

    def pairs(self) -> tuple[int, bytes] | None:
        """A GGUF file's key-value pairs and their count; None where the model came from a folder.

        The extension has checked them when they come back.
        """
        data = self.part("metadata")
        if data is None:
            return None
        if len(data) < 8:
            raise Corrupt(f"{self.path}: the part 'metadata' is too short")
        count, pairs = int.from_bytes(data[:8], "little"), data[8:]
        _scant.gguf_pairs(pairs, count)
        return count, pairs

    def metadata(self) -> dict[str, Any] | None:
        """The values of these pairs."""
        found = self.pairs()
        return None if found is None else gguf_values.decode_all(_scant.gguf_pairs(*found[::-1]))

    def chunks(
        self, tensor: _Tensor, kind: str, order: numpy.ndarray[Any, Any] | None = None
    ) -> Iterator[numpy.ndarray[Any, Any]]:
        """Rows of a tensor as bytes of a kind. ``order`` reorders the rows of each head."""
        size = int(_scant.row_bytes(kind, tensor.dims[-1]))
        step = len(order) if order is not None else max(CHUNK_BYTES // size // 16 * 16, 16)
        for first in range(0, tensor.rows, step):
            count = min(step, tensor.rows - first)
            room = numpy.empty((count, size), numpy.uint8)
            self.file.read(tensor.index, first, count, kind, room.ctypes.data, room.nbytes)
            self.file.release(tensor.index)
            yield (room if order is None else room[order]).reshape(-1)


def _plain(tensor: _Tensor, values: str) -> str:
    """The kind that a tensor gets in a format that lacks its own kind."""
    if tensor.kind in VALUES:
        return tensor.kind
    return "bf16" if "bf16" in tensor.kind else values


def _heads_order(model: Model, name: str, halves: bool) -> numpy.ndarray[Any, Any] | None:
    """The order of a head's rows for rope on halves, or else on neighbours; None: as they are.

    A vector of biases has the values of all heads in one row; the same order is for them.
    """
    are_halves = model.description.position == Position.ROPE_HALVES
    if are_halves == halves or not names.turned_heads(model.description, name):
        return None
    size = model.description.head_size
    shape = (size // 2, 2) if halves else (2, size // 2)
    order: numpy.ndarray[Any, Any] = numpy.arange(size).reshape(shape).T.reshape(-1)
    return order


def _turned(model: Model, tensor: _Tensor, kind: str, halves: bool) -> Iterator[Any]:
    """Chunks of a tensor; the rows of its heads have the order of the other format."""
    order = _heads_order(model, tensor.name, halves)
    if order is None or len(tensor.dims) == 2:
        yield from model.chunks(tensor, kind, order)
        return
    unit = numpy.uint32 if kind == "f32" else numpy.uint16
    for chunk in model.chunks(tensor, kind):
        heads = chunk.view(unit).reshape(-1, len(order))
        yield numpy.ascontiguousarray(heads[:, order]).reshape(-1).view(numpy.uint8)


# ---- GGUF --------------------------------------------------------------------------------------


def to_gguf(model: Model, path: pathlib.Path, values: str, tokenizer: bool) -> int:
    """Writes a GGUF file, which appears whole or not at all; returns its bytes."""
    given = model.pairs()
    rows: list[tuple[_Tensor, str]] = []
    for tensor in model.tensors:
        kind = tensor.kind
        if kind not in VALUES and not kind.startswith("Q"):
            kind = _plain(tensor, values)
        if given is None and len(tensor.dims) == 1:
            kind = "f32"  # as llama.cpp's kernels need it
        rows.append((tensor, kind))
    announced = [(tensor.name, kind, tensor.dims) for tensor, kind in rows]
    if given is None:
        keys = gguf_model.to_gguf(model.description, model.path.stem)
        keys |= _vocabulary(model, tokenizer)
        pairs, count = gguf_values.encode_all(keys), len(keys)
    else:
        count, pairs = given
    factors = b""
    if model.description.rope_scaling == RopeScaling.LLAMA3:
        factors = gguf_model.rope_factors(model.description)
        announced.append((_ROPE_FREQS, "f32", (len(factors) // 4,)))
    writer = _scant.GgufWriter(str(path), count, pairs, announced)
    halves = given is not None and model.description.position == Position.ROPE_HALVES
    try:
        for tensor, kind in rows:
            for chunk in _turned(model, tensor, kind, halves):
                writer.append(chunk.ctypes.data, chunk.nbytes)
        if factors:
            room = numpy.frombuffer(factors, numpy.uint8)
            writer.append(room.ctypes.data, room.nbytes)
        return writer.finish()
    finally:
        writer.close()


def _vocabulary(model: Model, tokenizer: bool) -> dict[str, Any]:
    if not tokenizer:
        return {"tokenizer.ggml.model": (gguf_values.Type.TEXT, "no_vocab")}
    text = model.part("tokenizer")
    if text is None:
        raise Unsupported(f"{model.path}: there is no tokenizer; add --no-tokenizer to go without")
    return vocabulary.to_gguf(text, model.description, model.template())


# ---- Hugging Face's folders --------------------------------------------------------------------


def to_hf(
    model: Model,
    path: pathlib.Path,
    values: str,
    tokenizer: bool,
    shard_bytes: int = _SHARD_BYTES,
) -> int:
    """Writes a folder, which appears whole or not at all; returns the bytes of its tensors."""
    if path.exists():
        raise InvalidArgument(f"{path} exists")
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        for name, content in _texts(model, values, tokenizer).items():
            _write(part / name, [content])
        size = _write_tensors(model, part, values, shard_bytes)
        part.rename(path)
        return size
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _texts(model: Model, values: str, tokenizer: bool) -> dict[str, bytes]:
    files = {name: model.part("file", name) or b"" for name in model.files()}
    text = model.part("tokenizer")
    if text is not None:
        files["tokenizer.json"] = text
    metadata = model.metadata()
    if metadata is None:
        return files

    description = _with_scaling(model)
    table = config.to_config(description, _TORCH[values])
    files["config.json"] = vocabulary.json_text(table)
    if tokenizer:
        files["tokenizer.json"] = vocabulary.from_gguf(metadata, description)
        table = vocabulary.tokenizer_config(metadata, description, model.template())
        files["tokenizer_config.json"] = vocabulary.json_text(table)
    return files


def _with_scaling(model: Model) -> Description:
    """The description with the rope scaling that gives the file's divisors of frequencies."""
    d = model.description
    if d.rope_scaling != RopeScaling.TENSOR:
        return d
    tensor = next(one for one in model.tensors if one.name == _ROPE_FREQS)
    found = b"".join(bytes(chunk) for chunk in model.chunks(tensor, "f32"))
    for factor, low, high, context in _KNOWN_LLAMA3:
        tried = dataclasses.replace(
            d,
            rope_scaling=RopeScaling.LLAMA3,
            rope_factor=factor,
            rope_low=low,
            rope_high=high,
            rope_context=context,
        )
        made = numpy.frombuffer(gguf_model.rope_factors(tried), numpy.float32)
        given = numpy.frombuffer(found, numpy.float32)
        if made.shape == given.shape and (abs(made - given) <= 1e-5 * made).all():
            return tried
    raise Unsupported(
        f"{model.path}: config.json cannot state the rope scaling of {_ROPE_FREQS}; use --to gguf"
    )


def _write_tensors(model: Model, folder: pathlib.Path, values: str, shard_bytes: int) -> int:
    family = model.description.family
    stem = "transformer." if names.is_transposed(family, "blk.0.ffn_up.weight") else "model."
    noted = model.note("prefix")
    prefix = stem if model.part("metadata") is not None or noted else ""
    shards: list[list[tuple[_Tensor, str, str, tuple[int, ...], int]]] = [[]]
    filled = total = 0
    for tensor in model.tensors:
        if tensor.name == _ROPE_FREQS:
            continue
        kind = _plain(tensor, values)
        size = tensor.rows * int(_scant.row_bytes(kind, tensor.dims[-1]))
        if filled and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        filled += size
        total += size
        turned = names.is_transposed(family, tensor.name)
        dims = tensor.dims[::-1] if turned else tensor.dims
        shards[-1].append((tensor, names.to_hf(family, tensor.name, prefix), kind, dims, size))
    weights: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = file if len(shards) > 1 else "model.safetensors"
        weights |= {name: file for _, name, *_ in shard}
        _write(folder / file, _shard(model, shard))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weights}
        text = json.dumps(index, indent=2, sort_keys=True)
        _write(folder / "model.safetensors.index.json", [text.encode()])
    return total


def _shard(
    model: Model, shard: list[tuple[_Tensor, str, str, tuple[int, ...], int]]
) -> Iterator[Any]:
    rows = [(name, _DTYPES[kind], dims) for _, name, kind, dims, _ in shard]
    yield tensor_files.head(rows, {"format": "pt"})  # as transformers asks for it
    for tensor, _, kind, _, size in shard:
        if not names.is_transposed(model.description.family, tensor.name):
            yield from _turned(model, tensor, kind, halves=True)
            continue
        unit = numpy.uint32 if kind == "f32" else numpy.uint16
        whole = numpy.empty(size, numpy.uint8)
        at = 0
        for chunk in model.chunks(tensor, kind):
            whole[at : at + chunk.nbytes] = chunk
            at += chunk.nbytes
        yield numpy.ascontiguousarray(whole.view(unit).reshape(tensor.dims).T)


def _write(path: pathlib.Path, pieces: Any) -> None:
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
