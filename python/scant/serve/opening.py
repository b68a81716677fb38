"""What `scant serve`, `run` and `chat` share: options of the engine, opening a model."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

from scant import planes
from scant.errors import Corrupt, Error, InvalidArgument, reason
from scant.serve.engine import Engine
from scant.serve.text import need

__all__ = [
    "Opener", "add_options", "bytes_of", "count_of", "fault", "open_engine", "seconds_of",
]  # fmt: skip

Opener = Callable[[argparse.Namespace], Engine]

_UNITS = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40,
}  # fmt: skip
_THREADS_MAX = 256  # of a pool of workers
_SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


def bytes_of(text: str) -> int:
    """``700MB``, ``1.5 GiB``, ``65536``."""
    match = _SIZE.fullmatch(text)
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 700MB or 2GiB")
    return round(float(match[1]) * factor)


def count_of(low: int, high: int) -> Callable[[str], int]:
    """Reads a whole number within bounds."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return read


def seconds_of(low: float, high: float = 1e6) -> Callable[[str], float]:
    """Reads a time within bounds."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= float(text) <= high:
                return float(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {low:g} on")

    return read


def _threads(text: str) -> int | None:
    """None: auto."""
    if text == "auto":
        return None
    return count_of(1, _THREADS_MAX)(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model's file and what the engine is made with."""
    parser.add_argument(
        "file", type=pathlib.Path, metavar="FILE", help="the model: a packed or a GGUF file"
    )
    parser.add_argument(
        "--threads",
        type=_threads,
        default=None,
        metavar="N",
        help="how many threads compute; auto: the number that measures best while it runs, of "
        "the CPUs that it may use (default: auto)",
    )
    parser.add_argument(
        "--kv-bytes",
        type=bytes_of,
        metavar="SIZE",
        help="memory for keys and values, such as 700MB or 2GiB (default: a quarter of the free "
        "memory)",
    )
    parser.add_argument(
        "--kv-type",
        choices=("bf16", "int8"),
        default="bf16",
        help="format of keys and values (default: bf16)",
    )


def open_engine(arguments: argparse.Namespace) -> Engine:
    """The engine over this file; what is missing for it is told first."""
    planes.need("serve")
    need("tokenizers", "jinja2")
    _check_file(arguments.file)
    from scant import _scant
    from scant.serve.model_engine import ModelEngine

    _scant.keep_memory_small()

    options: dict[str, Any] = {
        "threads": arguments.threads,
        "kv_bytes": arguments.kv_bytes,
        "kv_type": arguments.kv_type,
        "max_waiting": getattr(arguments, "max_waiting", None),
        "name": getattr(arguments, "name", None) or name_of(arguments.file),
    }
    return ModelEngine(os.fspath(arguments.file), **options)


def _check_file(path: pathlib.Path) -> None:
    if path.is_dir():
        raise InvalidArgument(f"{path} is a folder: scant pack makes a file of a model's folder")
    with path.open("rb") as file:
        begun = file.read(4)
    if begun not in (b"GGUF", b"SCPK"):
        raise Corrupt(f"{path}: neither a packed file nor GGUF")


def fault(error: Error | OSError) -> str:
    """One line for stderr."""
    name = getattr(error, "filename", None)
    return f"{name}: {reason(error)}" if name is not None else str(error)


def name_of(path: pathlib.Path) -> str:
    """What a model is called after its file."""
    return path.stem or "model"
