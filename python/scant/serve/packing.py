"""From a source to a packed file, some rows at a time."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scant import _scant
from scant.errors import InvalidArgument
from scant.serve import names
from scant.serve.sources import Source, SourceTensor

__all__ = [
    "AS",
    "SPARSE",
    "WHOLE",
    "Choice",
    "PackedTensor",
    "choices_as",
    "in_order",
    "is_matrix",
    "pack",
    "pack_as",
    "parts_of",
]

AS = ("keep", "bf16", "q8", "q4", "q3", "q2")
SPARSE = ("bf16", "q8", "q4")
WHOLE = ("token_embd.weight", "output.weight")  # with --as never below 8 bits, and never sparse


@dataclass(frozen=True)
class PackedTensor:
    """What a tensor became."""

    name: str
    kind: str
    source_kind: str
    dims: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Choice:
    """How a tensor is written."""

    kind: str
    density: float = 1.0
    column_weights: bytes = b""  # floats: what magnitudes are multiplied with; nothing: all are 1


def is_matrix(source: Source, tensor: SourceTensor) -> bool:
    """Only matrices that are multiplied get another kind than they have."""
    multiplied = tensor.name in names.expected(source.description) and len(tensor.dims) == 2
    return multiplied and tensor.name != "position_embd.weight"


def choices_as(source: Source, wanted: str, sparsity: float) -> dict[str, Choice]:
    """All matrices alike; but the embedding and the head get 8 bits with any codes."""
    if not 0 <= sparsity < 1:
        raise InvalidArgument(f"sparsity is {sparsity}; it must be at least 0 and below 1")
    if sparsity > 0 and wanted not in SPARSE:
        raise InvalidArgument(
            f"there is no sparse kind of {wanted!r}; sparsity needs one of {', '.join(SPARSE)}"
        )
    chosen: dict[str, Choice] = {}
    for tensor in source.tensors:
        if wanted == "keep" or not is_matrix(source, tensor):
            continue
        dense = Choice("bf16 tiles" if wanted == "bf16" else wanted)
        if tensor.name in WHOLE:
            chosen[tensor.name] = dense if wanted == "bf16" else Choice("q8")
        else:
            chosen[tensor.name] = Choice(f"sparse {wanted}", 1 - sparsity) if sparsity else dense
    return chosen


def in_order(source: Source) -> list[list[SourceTensor]]:
    """Runs of tensors in the order of use; the last has those that no description knows."""
    order = {name: i for i, name in enumerate(names.expected(source.description))}
    runs: dict[int, list[SourceTensor]] = {}
    for tensor in sorted(source.tensors, key=lambda one: (order.get(one.name, 2**32), one.place)):
        runs.setdefault(names.run_of(tensor.name), []).append(tensor)
    return [runs[number] for number in sorted(runs)]


@functools.lru_cache(maxsize=256)
def _hashed(path: pathlib.Path, _: int, __: int) -> tuple[int, str]:
    """Bytes and sha256 of a file; once for a file of this size and time."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
        return file.tell(), digest.hexdigest()


def _provenance(source: Source, options: str) -> bytes:
    import scant

    lines = [
        f"tool scant {scant.__version__} {_scant.commit}",
        f"source {source.format}",
        f"options {options}",
        *(f"{key} {value}" for key, value in source.notes.items()),
    ]
    for path in source.files:
        seen = path.stat()
        size, digest = _hashed(path, seen.st_size, seen.st_mtime_ns)
        name = "".join(one if one.isprintable() else "?" for one in path.name)
        lines.append(f"file {name} {size} sha256 {digest}")
    return "".join(line + "\n" for line in lines).encode("utf-8", "replace")


def parts_of(source: Source, options: str) -> list[tuple[str, str, bytes]]:
    """All parts but the description."""
    return [*source.parts, ("provenance", "", _provenance(source, options))]


def pack(
    source: Source,
    path: pathlib.Path,
    chosen: Mapping[str, Choice],
    options: str,
    told: Callable[[PackedTensor], None] = lambda _: None,
) -> int:
    """Writes the packed file, which appears whole or not at all; returns its bytes.

    Tensors that are not in ``chosen`` stay as they are. ``options`` are told in the provenance.
    """
    writer = _scant.PackedWriter(str(path))
    try:
        for run in in_order(source):
            writer.begin_run()
            for tensor in run:
                choice = chosen.get(tensor.name, Choice(tensor.kind))
                writer.begin_tensor(
                    tensor.name, choice.kind, tensor.dims, tensor.place, choice.density,
                    choice.column_weights,
                )  # fmt: skip
                for rows in source.chunks(tensor):
                    writer.add_rows(tensor.kind, rows.ctypes.data, rows.nbytes)
                size = writer.end_tensor()
                told(PackedTensor(tensor.name, choice.kind, tensor.kind, tensor.dims, size))
        for part in parts_of(source, options):
            writer.add_part(*part)
        return writer.finish(source.description.as_dict())
    finally:
        writer.close()


def pack_as(
    source: Source,
    path: pathlib.Path,
    wanted: str = "keep",
    sparsity: float = 0.0,
    told: Callable[[PackedTensor], None] = lambda _: None,
) -> int:
    """Packs all matrices alike; see :func:`choices_as`."""
    chosen = choices_as(source, wanted, sparsity)
    return pack(source, path, chosen, f"as {wanted} sparsity {sparsity:g}", told)
