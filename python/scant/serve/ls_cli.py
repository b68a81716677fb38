"""``scant ls``: what a packed or a GGUF file holds, and whether a packed file is damaged."""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from scant import _scant, amounts, planes
from scant.errors import Corrupt, Error
from scant.serve.description import Description
from scant.serve.opening import fault

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scant ls", description="List what a packed file or a GGUF file holds."
    )
    parser.add_argument("file", type=pathlib.Path, metavar="FILE", help="packed or GGUF file")
    parser.add_argument("--tensors", action="store_true", help="print a line for each tensor")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check every byte of a packed file; exit status 1: a tensor is damaged, 2: the file "
        "cannot be opened",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        planes.need("serve")
        return _ls(arguments)
    except BrokenPipeError:
        return 0
    except (Error, OSError) as error:
        print(f"scant ls: {fault(error)}", file=sys.stderr)
        return 2


def _open(path: pathlib.Path) -> _scant.PackedFile | _scant.GgufFile:
    with path.open("rb") as file:
        begun = file.read(4)
    return _scant.GgufFile(str(path)) if begun == b"GGUF" else _scant.PackedFile(str(path))


def _look(file: _scant.PackedFile | _scant.GgufFile) -> dict[str, Any]:
    of_format: dict[str, Any]
    if isinstance(file, _scant.PackedFile):
        of_format = {
            "format": "packed",
            "description": file.description(),
            "parts": file.parts(),
            "runs": file.runs(),
        }
    else:
        of_format = {
            "format": f"GGUF {file.version}",
            "description": None,
            "parts": [],
            "runs": [len(file.tensors())],
        }
    return {
        **of_format,
        "tensors": [
            {"name": name, "kind": kind, "dims": dims, "bytes": size, "kept": kept}
            for name, kind, dims, size, _, kept in file.tensors()
        ],
    }


def _ls(arguments: argparse.Namespace) -> int:
    file = _open(arguments.file)
    found = _look(file)
    damaged = _damaged(file) if arguments.verify else None
    if arguments.json:
        print(json.dumps({**found, "damaged": damaged}))
        return 1 if damaged else 0
    if found["description"] is not None:
        print(_description(found["description"]))
    for kind, name, size in found["parts"]:
        print(f"part  {name or kind:<24}  {amounts.size(size):>10}")
    at = 0
    for number, count in enumerate(found["runs"]):
        tensors = found["tensors"][at : at + count]
        at += count
        total = sum(one["bytes"] for one in tensors)
        if len(found["runs"]) > 1:
            kinds = ", ".join(dict.fromkeys(one["kind"] for one in tensors))
            print(f"run {number:>4}  {count:>5} tensors  {amounts.size(total):>10}  {kinds}")
        if arguments.tensors:
            print("\n".join(map(_tensor, tensors)))
    print(_sum(found["tensors"], arguments.file))
    for line in damaged or []:
        print(f"damaged: {line}")
    if damaged == []:
        print("whole: every page has its checksum")
    return 1 if damaged else 0


def _description(given: dict[str, Any]) -> str:
    d = Description.from_dict(given)
    return (
        f"{d.family.name.lower()}: {d.layers} layers of {d.width}, {d.heads} heads of "
        f"{d.head_size} ({d.kv_heads} of keys and values), {d.ffn} in the feed-forward net, "
        f"vocabulary {d.vocabulary:,}, context {d.context:,}"
    )


def _bits(tensor: dict[str, Any]) -> float:
    return float(8 * tensor["bytes"] / math.prod(tensor["dims"]))


def _tensor(tensor: dict[str, Any]) -> str:
    dims = " × ".join(map(str, tensor["dims"]))
    kept = f"  {tensor['kept']:,} kept" if tensor["kept"] else ""
    return (
        f"  {tensor['name']:<28}  {tensor['kind']:<11}  {dims:<16}  {tensor['bytes']:>13,} bytes  "
        f"{_bits(tensor):.3f} bits a value{kept}"
    )


def _sum(tensors: list[dict[str, Any]], path: pathlib.Path) -> str:
    values = sum(math.prod(one["dims"]) for one in tensors)
    total = sum(one["bytes"] for one in tensors)
    bits = f", {8 * total / values:.3f} bits a value" if values else ""
    return (
        f"{len(tensors)} tensors, {values:,} values, {total:,} bytes{bits}; the file has "
        f"{path.stat().st_size:,} bytes"
    )


def _damaged(file: _scant.PackedFile | _scant.GgufFile) -> list[str]:
    if isinstance(file, _scant.GgufFile):
        raise Corrupt("a GGUF file has no checksums: scant pack makes a file that can be verified")
    found = []
    for index in range(len(file.tensors())):
        try:
            file.check(index)
        except Corrupt as error:
            found.append(str(error))
        file.release(index)
    return found


if __name__ == "__main__":
    sys.exit(main())
