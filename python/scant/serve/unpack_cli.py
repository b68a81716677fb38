"""``scant unpack``: a packed model as GGUF or as a Hugging Face folder."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from scant import planes
from scant.errors import Error, InvalidArgument
from scant.serve import unpacking
from scant.serve.opening import fault

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scant unpack", description="Turn a packed model into GGUF or a Hugging Face folder."
    )
    parser.add_argument("file", type=pathlib.Path, metavar="FILE", help="the packed file")
    parser.add_argument(
        "out", type=pathlib.Path, metavar="OUT", help="file or folder to write; it must not exist"
    )
    parser.add_argument("--to", choices=("gguf", "hf"), required=True, help="the format of OUT")
    parser.add_argument(
        "--values",
        choices=unpacking.VALUES,
        default="f32",
        help="how to write values whose kind the format of OUT lacks (default: f32, exact)",
    )
    parser.add_argument(
        "--no-tokenizer",
        action="store_true",
        help="leave the tokenizer out when the format changes, for example if OUT cannot hold it",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        planes.need("serve")
        return _unpack(arguments)
    except (Error, OSError) as error:
        print(f"scant unpack: {fault(error)}", file=sys.stderr)
        return 2


def _unpack(arguments: argparse.Namespace) -> int:
    if arguments.out.exists():
        raise InvalidArgument(f"{arguments.out} exists; name another OUT, or remove it first")
    model = unpacking.Model(arguments.file)
    write = unpacking.to_gguf if arguments.to == "gguf" else unpacking.to_hf
    total = write(model, arguments.out, arguments.values, not arguments.no_tokenizer)
    print(f"{arguments.out}: {total:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
