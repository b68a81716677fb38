"""Models that run: a packed file or a GGUF file, and decoders over it, for tests and notebooks."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from scant import _scant, planes
from scant.errors import Corrupt
from scant.serve import gguf_model, gguf_values, kernels
from scant.serve.description import Description

__all__ = ["ActivationSum", "Decoder", "Model", "Piece", "kv_page_bytes"]


def kv_page_bytes(description: Description, kv: str) -> int:
    """Bytes of the keys and values of 16 tokens, of all layers. ``kv``: f32, bf16 or q8."""
    return _scant.kv_page_bytes(description.as_dict(), kv)


@dataclass(frozen=True)
class Piece:
    """Tokens of one sequence that a step runs.

    ``position`` is that of the first token; those before it have been run. Page *i* of ``pages``
    holds positions 16·i to 16·i + 15. The last ``outputs`` tokens have an output each: logits, or
    what the last norm gives, where ``vectors`` is true.
    """

    tokens: Sequence[int]
    position: int
    pages: Sequence[int]
    outputs: int = 1
    vectors: bool = False


@dataclass(frozen=True)
class ActivationSum:
    """Sums of squares over tokens: of each column that a matrix read.

    Where its results are added to what goes from layer to layer, ``added`` is of the results, and
    ``stream`` of what they then are a part of.
    """

    tokens: int
    inputs: numpy.ndarray[Any, Any]
    added: float
    stream: float


class Model:
    """A model that is open. Its file is mapped, and any number of decoders share it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens a packed file or a GGUF file.

        Raises :class:`scant.Corrupt`, which names the tensor, where one is missing or does not fit.
        """
        planes.need("serve")
        name = os.fspath(path)
        with pathlib.Path(name).open("rb") as file:
            begun = file.read(4)
        if begun == b"GGUF":
            self.native = _scant.open_gguf_model(name, _described(name).as_dict())
        else:
            self.native = _scant.open_packed_model(name)
        self.description = Description.from_dict(self.native.description())


def _described(path: str) -> Description:
    file = _scant.GgufFile(path)
    tensors = {name: dims for name, _, dims, *_ in file.tensors()}
    try:
        return gguf_model.from_gguf(gguf_values.decode_all(file.pairs()), tensors)
    except Corrupt as error:
        raise Corrupt(f"{path}: {error}") from None


class Decoder:
    """Runs a model step by step. One thread uses it at a time.

    ``kv`` is how keys and values are kept: ``"f32"``, ``"bf16"`` or ``"q8"``. There are ``pages``
    of 16 tokens each. ``SCANT_KERNELS`` chooses the kernels: :mod:`scant.serve.kernels`.
    """

    def __init__(self, model: Model, *, pages: int, kv: str = "bf16", threads: int = 1) -> None:
        self.model = model
        self._decoder = _scant.Decoder(model.native, kv, pages, threads, kernels.chosen())

    def run(self, pieces: Sequence[Piece]) -> numpy.ndarray[Any, Any]:
        """The logits of all outputs that are logits, one row each, piece by piece."""
        rows = sum(piece.outputs for piece in pieces if not piece.vectors)
        logits = numpy.empty((rows, self.model.description.vocabulary), numpy.float32)
        given = [
            (list(one.tokens), one.position, list(one.pages), one.outputs, one.vectors)
            for one in pieces
        ]
        self._decoder.run(given, logits.ctypes.data, logits.size)
        return logits

    def vectors(self) -> numpy.ndarray[Any, Any]:
        """Of the last run, the outputs that are vectors, one row each, piece by piece."""
        found = numpy.frombuffer(self._decoder.vectors(), numpy.float32)
        return found.reshape(-1, self.model.description.width)

    def use_threads(self, threads: int) -> None:
        """So many of the threads share the next steps. No result depends on it."""
        self._decoder.use_threads(threads)

    def copy_page(self, source: int, target: int) -> None:
        """Page ``target`` becomes a copy of page ``source``."""
        self._decoder.copy_page(source, target)

    def substitute(self, names: Sequence[str], other: Model) -> None:
        """From now on these matrices are those of another model, and no others."""
        self._decoder.substitute(list(names), other.native)

    def watch(self) -> None:
        """From now on, steps add to :meth:`sums`."""
        self._decoder.watch()

    def sums(self) -> dict[str, ActivationSum]:
        """What each matrix read and added since :meth:`watch`, by its name."""
        return {
            name: ActivationSum(tokens, numpy.frombuffer(squares, numpy.float64), added, stream)
            for name, tokens, squares, added, stream in self._decoder.sums()
        }

    def memory_bytes(self) -> int:
        """Bytes of keys, values and all that a step needs, without the model."""
        return self._decoder.memory_bytes()

    def work(self) -> dict[str, int]:
        """Multiply-adds so far.

        ``products``; ``attention``, with keys that a token does not see; ``seen``, without.
        """
        products, attention, seen = self._decoder.work()
        return {"products": products, "attention": attention, "seen": seen}
