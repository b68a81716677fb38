"""From a source to a packed file, some rows at a time."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

from scant import _scant
from scant.errors import InvalidArgument
from scant.serve import names
from scant.serve.sources import Source, SourceTensor

__all__ = ["AS", "PackedTensor", "kind_of", "pack"]

AS = ("keep", "bf16", "q8", "q4", "q3", "q2")
_SPARSE = ("bf16", "q8", "q4")
_WHOLE = ("token_embd.weight", "output.weight")  # never below 8 bits, never sparse


@dataclass(frozen=True)
class PackedTensor:
    """What a tensor became."""

    name: str
    kind: str
    source_kind: str
    dims: tuple[int, ...]
    bytes: int


def kind_of(source: Source, tensor: SourceTensor, wanted: str, sparsity: float) -> str:
    """The kind that a tensor gets. Only matrices that are multiplied get another than they have."""
    multiplied = tensor.name in names.expected(source.description) and len(tensor.dims) == 2
    if wanted == "keep" or not multiplied or tensor.name == "position_embd.weight":
        return tensor.kind
    if tensor.name in _WHOLE:
        return "bf16 tiles" if wanted == "bf16" else "q8"
    if sparsity > 0:
        return f"sparse {wanted}"
    return "bf16 tiles" if wanted == "bf16" else wanted


def _in_order(source: Source) -> list[list[SourceTensor]]:
    """Runs of tensors in the order of use; the last has those that no description knows."""
    order = {name: i for i, name in enumerate(names.expected(source.description))}
    runs: dict[int, list[SourceTensor]] = {}
    for tensor in sorted(source.tensors, key=lambda one: (order.get(one.name, 2**32), one.place)):
        runs.setdefault(names.run_of(tensor.name), []).append(tensor)
    return [runs[number] for number in sorted(runs)]


def _provenance(source: Source, options: str) -> bytes:
    import scant

    lines = [
        f"tool scant {scant.__version__} {_scant.commit}",
        f"source {source.format}",
        f"options {options}",
        *(f"{key} {value}" for key, value in source.notes.items()),
    ]
    for path in source.files:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
            name = "".join(one if one.isprintable() else "?" for one in path.name)
            lines.append(f"file {name} {file.tell()} sha256 {digest.hexdigest()}")
    return "".join(line + "\n" for line in lines).encode("utf-8", "replace")


def pack(
    source: Source,
    path: pathlib.Path,
    wanted: str = "keep",
    sparsity: float = 0.0,
    told: Callable[[PackedTensor], None] = lambda _: None,
) -> int:
    """Writes the packed file, which appears whole or not at all; returns its bytes."""
    if not 0 <= sparsity < 1:
        raise InvalidArgument(f"sparsity is {sparsity}; it must lie from 0 up to below 1")
    if sparsity > 0 and wanted not in _SPARSE:
        raise InvalidArgument(
            f"there is no sparse kind of {wanted!r}; sparsity needs one of {', '.join(_SPARSE)}"
        )
    writer = _scant.PackedWriter(str(path))
    try:
        for run in _in_order(source):
            writer.begin_run()
            for tensor in run:
                kind = kind_of(source, tensor, wanted, sparsity)
                writer.begin_tensor(tensor.name, kind, tensor.dims, tensor.place, 1 - sparsity)
                for rows in source.chunks(tensor):
                    writer.add_rows(tensor.kind, rows.ctypes.data, rows.nbytes)
                size = writer.end_tensor()
                told(PackedTensor(tensor.name, kind, tensor.kind, tensor.dims, size))
        for kind, name, content in source.parts:
            writer.add_part(kind, name, content)
        options = f"as {wanted} sparsity {sparsity:g}"
        writer.add_part("provenance", "", _provenance(source, options))
        return writer.finish(source.description.as_dict())
    finally:
        writer.close()
