"""``scant pack``: a model as kernels read it, in one file."""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Sequence

from scant import amounts, planes
from scant.errors import Error, InvalidArgument
from scant.serve import packing, sources

__all__ = ["main"]

_WHAT = """\
Pack a Hugging Face folder (config.json, safetensors, tokenizer.json) or a GGUF file into one file,
which readers map. Norms, biases and other vectors stay as they are."""
_AS = """\
how to write matrices: keep (every bit as in the source; the default), bf16, or codes of 8, 4, 3 or
2 bits; the embedding and the head get 8 with any codes"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scant pack", description=_WHAT)
    parser.add_argument("source", type=pathlib.Path, metavar="SOURCE", help="folder or GGUF file")
    parser.add_argument("file", type=pathlib.Path, metavar="FILE", help="the packed file to write")
    parser.add_argument(
        "--as",
        dest="wanted",
        choices=packing.AS,
        default="keep",
        help=_AS,
    )
    parser.add_argument(
        "--sparsity",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="drop this share of each row of the layers' matrices, the smallest magnitudes; needs "
        "--as bf16, q8 or q4 (default: 0)",
    )
    parser.add_argument("--replace", action="store_true", help="replace FILE if it exists")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        planes.need("serve")
        return _pack(arguments)
    except (Error, OSError) as error:
        print(f"scant pack: {error}", file=sys.stderr)
        return 2


def _pack(arguments: argparse.Namespace) -> int:
    if arguments.file.exists() and not arguments.replace:
        raise InvalidArgument(f"{arguments.file} exists; --replace replaces it")
    began_s = time.monotonic()
    source = sources.open_source(arguments.source)
    kinds: dict[str, tuple[int, int]] = {}

    def told(tensor: packing.PackedTensor) -> None:
        kind = (
            tensor.kind
            if tensor.kind == tensor.source_kind
            else (f"{tensor.source_kind} → {tensor.kind}")
        )
        count, total = kinds.get(kind, (0, 0))
        kinds[kind] = (count + 1, total + tensor.bytes)

    total = packing.pack(source, arguments.file, arguments.wanted, arguments.sparsity, told)
    for kind, (count, bytes_) in sorted(kinds.items(), key=lambda item: -item[1][1]):
        print(f"{kind:<22}  {count:>5} tensors  {amounts.size(bytes_):>10}")
    took = amounts.duration(time.monotonic() - began_s)
    print(f"{arguments.file}: {total:,} bytes in {took}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
