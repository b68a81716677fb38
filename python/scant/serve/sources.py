"""What can be packed: Hugging Face folders and GGUF files, read some rows of a tensor at a time.

The most in memory are some megabytes, or one matrix where GPT-2's folders hold it transposed.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy

from scant import _scant
from scant.errors import Corrupt, Unsupported
from scant.journal import tensor_files
from scant.serve import config, gguf_model, gguf_values, names
from scant.serve.description import Description, Family

__all__ = ["CHUNK_BYTES", "GgufSource", "HfSource", "Source", "SourceTensor", "open_source"]

CHUNK_BYTES = 4 << 20  # of rows that are read at once
_KINDS = {"F32": "f32", "BF16": "bf16", "F16": "f16"}
_JSON_BYTES_MAX = 1 << 30  # what a packed file takes as a part
_INDEX = "model.safetensors.index.json"
# Files of a folder that go along as they are.
_KEPT = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.json",
)  # fmt: skip


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a source, with the name and the order of dimensions of a packed file."""

    name: str
    kind: str
    dims: tuple[int, ...]
    place: int

    @property
    def rows(self) -> int:
        """All dimensions but the last."""
        count = 1
        for dim in self.dims[:-1]:
            count *= dim
        return count

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the source's kind."""
        return int(_scant.row_bytes(self.kind, self.dims[-1]))


@dataclass
class Source:
    """A model that can be packed. ``parts``: (kind, name, bytes)."""

    path: pathlib.Path
    format: str
    description: Description
    tensors: list[SourceTensor]
    files: list[pathlib.Path]
    parts: list[tuple[str, str, bytes]]
    notes: dict[str, str] = field(default_factory=dict)  # go to the provenance

    def rows(self, tensor: SourceTensor, first: int, count: int) -> numpy.ndarray[Any, Any]:
        """Rows as bytes, without gaps."""
        raise NotImplementedError

    def release(self, tensor: SourceTensor) -> None:
        """Call this when all rows of a tensor have been read; its memory is given back."""

    def chunks(self, tensor: SourceTensor) -> Iterator[numpy.ndarray[Any, Any]]:
        """All rows, some megabytes at a time."""
        step = max(CHUNK_BYTES // tensor.row_bytes // 16 * 16, 16)
        for first in range(0, tensor.rows, step):
            yield self.rows(tensor, first, min(step, tensor.rows - first))
        self.release(tensor)

    def check(self) -> None:
        """Raises :class:`scant.Corrupt` where a tensor is missing that the description needs."""
        try:
            _scant.check_description(self.description.as_dict())
        except Corrupt as error:
            raise Corrupt(f"{self.path}: {error}") from None
        found = {tensor.name: tensor.dims for tensor in self.tensors}
        for name, dims in names.expected(self.description).items():
            if name not in found:
                raise Corrupt(f"{self.path}: the tensor {name!r} is missing")
            if found[name] != dims:
                raise Corrupt(
                    f"{self.path}: tensor {name!r} is {_by(found[name])}, and the description "
                    f"asks for {_by(dims)}"
                )


def _by(dims: tuple[int, ...]) -> str:
    return " × ".join(map(str, dims))


def open_source(path: pathlib.Path) -> Source:
    """A folder or a GGUF file."""
    source = HfSource.open(path) if path.is_dir() else GgufSource.open(path)
    source.check()
    return source


# ---- GGUF --------------------------------------------------------------------------------------


class GgufSource(Source):
    """A GGUF file, mapped."""

    _file: _scant.GgufFile

    @classmethod
    def open(cls, path: pathlib.Path) -> GgufSource:
        """Of a path. Tensors of kinds that Scant does not read are refused by name."""
        file = _scant.GgufFile(str(path))
        pairs = file.pairs()
        values = gguf_values.decode_all(pairs)
        tensors = [
            SourceTensor(name, kind, dims, place)
            for name, kind, dims, _, place, _ in file.tensors()
        ]
        description = gguf_model.from_gguf(values, {one.name: one.dims for one in tensors})
        parts = [("metadata", "", len(pairs).to_bytes(8, "little") + file.pair_bytes())]
        template = values.get("tokenizer.chat_template")
        if isinstance(template, str):
            parts.append(("chat template", "", template.encode("utf-8", "surrogateescape")))
        source = cls(path, "gguf", description, tensors, [path], parts)
        source._file = file
        return source

    def rows(self, tensor: SourceTensor, first: int, count: int) -> numpy.ndarray[Any, Any]:
        room = numpy.empty(count * tensor.row_bytes, numpy.uint8)
        self._file.read(tensor.place, first, count, tensor.kind, room.ctypes.data, room.nbytes)
        self._file.release(tensor.place)
        return room


# ---- Hugging Face's folders --------------------------------------------------------------------


def _load(path: pathlib.Path, needed: bool = True) -> dict[str, Any]:
    if not needed and not path.exists():
        return {}
    try:
        found = json.loads(_whole(path))
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise Corrupt(f"{path}: not a JSON object")
    return found


def _whole(path: pathlib.Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_JSON_BYTES_MAX + 1)
    if len(content) > _JSON_BYTES_MAX:
        raise Corrupt(f"{path}: longer than 1 GiB")
    return content


def _shards(folder: pathlib.Path) -> tuple[list[pathlib.Path], dict[str, str]]:
    """The files that hold tensors; and by tensor the file that the index names, if there is one."""
    single = folder / "model.safetensors"
    if single.exists() or not (folder / _INDEX).exists():
        return [single], {}
    weights = _load(folder / _INDEX).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise Corrupt(f"{folder / _INDEX}: no weight_map")
    for name in weights.values():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
            raise Corrupt(f"{folder / _INDEX}: {name!r} is no name of a file in the folder")
    return [folder / name for name in sorted(set(weights.values()))], weights


class HfSource(Source):
    """A folder of Hugging Face: ``config.json`` and safetensors, in one file or several."""

    _places: dict[int, tuple[BinaryIO, tensor_files.Place]]
    _transposed: dict[int, numpy.ndarray[Any, Any]]

    @classmethod
    def open(cls, folder: pathlib.Path) -> HfSource:
        """Of a path."""
        settings = _load(folder / "config.json")
        generation = _load(folder / "generation_config.json", needed=False)
        tokenizer = _load(folder / "tokenizer_config.json", needed=False)
        adds_bos = tokenizer.get("add_bos_token") is True
        description = config.from_config(settings, generation, adds_bos)
        shards, weights = _shards(folder)
        found = _tensors_of(shards, weights)
        tables = [name for name, _, _ in found]
        stem = "transformer." if description.family == Family.GPT2 else "model."
        prefix = stem if any(name.startswith(stem) for name in tables) else ""
        source = cls(folder, "hf", description, [], shards, [], {"prefix": prefix})
        source._places, source._transposed = {}, {}
        handles = {shard: shard.open("rb", buffering=0) for shard in shards}
        for place, (name, shard, where) in enumerate(found):
            if where.kind not in _KINDS:
                raise Unsupported(f"{shard}: tensor {name!r} is {where.kind}, not F32, BF16 or F16")
            if not where.bytes or not where.shape:
                raise Unsupported(f"{shard}: tensor {name!r} has no dimensions or no values")
            ours = names.to_gguf(description.family, name, prefix) or name
            turned = names.is_transposed(description.family, ours)
            dims = where.shape[::-1] if turned else where.shape
            source.tensors.append(SourceTensor(ours, _KINDS[where.kind], dims, place))
            source._places[place] = (handles[shard], where)
        source._take_parts(tokenizer)
        return source

    def _take_parts(self, tokenizer: dict[str, Any]) -> None:
        template = tokenizer.get("chat_template")
        for name in ("tokenizer.json", "chat_template.jinja", *_KEPT):
            path = self.path / name
            if not path.is_file():
                continue
            self.files.append(path)
            content = _whole(path)
            if name == "tokenizer.json":
                self.parts.append(("tokenizer", "", content))
            elif name == "chat_template.jinja":
                template = content.decode("utf-8", "replace")
                self.parts.append(("file", name, content))
            else:
                self.parts.append(("file", name, content))
        if isinstance(template, str):
            try:
                self.parts.append(("chat template", "", template.encode()))
            except UnicodeEncodeError as error:
                raise Corrupt(f"{self.path}: the chat template is no text: {error}") from error

    def rows(self, tensor: SourceTensor, first: int, count: int) -> numpy.ndarray[Any, Any]:
        file, where = self._places[tensor.place]
        if not names.is_transposed(self.description.family, tensor.name):
            at = where.at + first * tensor.row_bytes
            return _read(file, at, count * tensor.row_bytes)
        if tensor.place not in self._transposed:
            unit = numpy.uint32 if tensor.kind == "f32" else numpy.uint16
            whole = _read(file, where.at, where.bytes).view(unit)
            self._transposed[tensor.place] = numpy.ascontiguousarray(whole.reshape(where.shape).T)
        part = self._transposed[tensor.place][first : first + count]
        return part.reshape(-1).view(numpy.uint8)

    def release(self, tensor: SourceTensor) -> None:
        self._transposed.pop(tensor.place, None)


def _tensors_of(
    shards: list[pathlib.Path], weights: dict[str, str]
) -> list[tuple[str, pathlib.Path, tensor_files.Place]]:
    found: dict[str, tuple[pathlib.Path, tensor_files.Place]] = {}
    for shard in shards:
        for name, where in tensor_files.places(shard).items():
            if name in found:
                raise Corrupt(f"{shard}: tensor {name!r} is in {found[name][0].name} too")
            if weights and weights.get(name) != shard.name:
                raise Corrupt(f"{shard}: the index says that tensor {name!r} is elsewhere")
            found[name] = (shard, where)
    for name in weights:
        if name not in found:
            raise Corrupt(f"{shards[0].parent / _INDEX}: tensor {name!r} is in no file")
    return [(name, shard, where) for name, (shard, where) in found.items()]


def _read(file: BinaryIO, at: int, count: int) -> numpy.ndarray[Any, Any]:
    room = numpy.empty(count, numpy.uint8)
    view = room.data
    while view:
        got = os.preadv(file.fileno(), [view], at)  # threads share the file, so it has no place
        if not got:
            raise Corrupt(f"{file.name}: shorter than its head says")
        view, at = view[got:], at + got
    return room
