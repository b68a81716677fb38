"""The command ``scant``. Each subcommand imports only what it needs."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence

import scant

__all__ = ["main"]

# name -> (module with main(argv) -> int, one line of help)
_FORWARDED = {
    "chat": ("scant.serve.chat_cli", "talk with a packed model or a GGUF file"),
    "explain": ("scant.runlog.explain", "what a run chose and why, in words and in a picture"),
    "journal": ("scant.journal.cli", "what a journal of a training holds, and whether it is whole"),
    "lab": ("scant.lab.cli", "run a command as ranks on hosts with shaped links"),
    "ls": ("scant.serve.ls_cli", "what a packed model or a GGUF file holds"),
    "pack": ("scant.serve.pack_cli", "pack a model from a Hugging Face folder or a GGUF file"),
    "replay": ("scant.serve.replay_cli", "send the load of a trace to a server and measure it"),
    "report": ("scant.report.cli", "turn recorded runs into a self-contained HTML page"),
    "run": ("scant.serve.run_cli", "answer one prompt with a packed model or a GGUF file"),
    "serve": ("scant.serve.serve_cli", "serve a model over HTTP, by OpenAI's protocol"),
    "top": ("scant.runlog.top", "watch a run while it goes"),
    "unpack": ("scant.serve.unpack_cli", "turn a packed model into GGUF or a Hugging Face folder"),
}

_CTRL_C = 130  # as shells have it


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scant", description="Collectives and training where the network is scarce."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, text) in _FORWARDED.items():
        commands.add_parser(name, help=text, add_help=False)
    commands.add_parser("env", help="what Scant finds on this machine")
    commands.add_parser("version", help="version and commit")
    commands.add_parser("help", help="this text")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in _FORWARDED:
        # The subcommand parses its own line: what follows may be a program with options.
        try:
            module = importlib.import_module(_FORWARDED[arguments[0]][0])
            return int(module.main(arguments[1:]) or 0)
        except KeyboardInterrupt:  # where a command has nothing more to say
            return _CTRL_C
    if arguments and arguments[0] in ("-V", "--version"):
        arguments = ["version"]
    parser = _parser()
    command = parser.parse_args(arguments or ["help"]).command
    if command == "help":
        parser.print_help()
    else:
        healthy, lines = (True, _version()) if command == "version" else _env()
        print("\n".join(lines))
        return 0 if healthy else 1
    return 0


def _version() -> list[str]:
    try:
        from scant import _scant

        commit = _scant.commit
    except ImportError as error:
        commit = f"extension not built: {error}"
    return [f"scant {scant.__version__} ({commit})"]


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _env() -> tuple[bool, list[str]]:
    from scant import environment

    lines = _version()
    lines.append(f"python {platform.python_version()} on {platform.platform()}")
    lines.append(f"cpus {len(os.sched_getaffinity(0))} of {os.cpu_count()}")
    lines += [f"{name} {_installed(name)}" for name in ("numpy", "torch")]
    healthy, backend = _backend()
    lines.append(f"torch backend 'scant': {backend}")
    try:
        lines += _kernels()
    except scant.InvalidArgument as error:
        healthy = False
        lines.append(f"kernels of serving: {error}")
    try:
        rank, size = environment.rank_and_size()
        lines.append(f"launcher: rank {rank} of {size}")
    except scant.InvalidArgument as error:
        lines.append(f"launcher: none ({error})")
    try:
        found = environment.options()
    except scant.InvalidArgument as error:
        return False, [*lines, f"options: {error}"]
    lines += [f"option {name} = {value}" for name, value in sorted(found.items())]
    return healthy, lines


def _kernels() -> list[str]:
    """The instruction sets that gradients and served models are computed with."""
    try:
        from scant import _scant
    except ImportError:
        return []  # the version says so
    lines = [f"kernels of gradients: {_scant.codec_kernels}"]
    if "serve" in _scant.planes:
        from scant.serve import kernels

        lines.append(f"kernels of serving: {kernels.chosen()} of {', '.join(kernels.known())}")
    return lines


def _backend() -> tuple[bool, str]:
    if importlib.util.find_spec("torch") is None:
        return True, "torch is not installed"
    try:
        importlib.import_module("scant.torch")
        return True, "registered"
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
