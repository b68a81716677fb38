"""``scant pack``: a model as kernels read it, in one file."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from scant import amounts, planes
from scant.errors import Error, InvalidArgument
from scant.serve import choosing, fewer_bytes, packing, sources
from scant.serve.opening import bytes_of, count_of, fault

__all__ = ["main"]

_WHAT = """\
Pack a Hugging Face folder (config.json, safetensors, tokenizer.json) or a GGUF file into one file
that scant serve, run and chat read. Norms, biases and other vectors stay as they are."""
_FEWER = """\
With --bytes or --bits each matrix gets its own format, so that the file loses as little as it can.
The command measures this loss on a text and prints it. It downloads nothing."""
_AS = """\
how to write matrices: keep (every bit as in the source; the default), bf16, or codes of 8, 4, 3 or
2 bits; with codes, the embedding and the head always get 8 bits"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scant pack", description=_WHAT, epilog=_FEWER)
    parser.add_argument("source", type=pathlib.Path, metavar="SOURCE", help="folder or GGUF file")
    parser.add_argument("file", type=pathlib.Path, metavar="FILE", help="the packed file to write")
    parser.add_argument(
        "--as",
        dest="wanted",
        choices=packing.AS,
        help=_AS,
    )
    budget = parser.add_argument_group("fewer bytes")
    budget.add_argument(
        "--bytes", type=bytes_of, metavar="SIZE", help="largest size of FILE, such as 700MB"
    )
    budget.add_argument(
        "--bits",
        type=int,
        choices=fewer_bytes.BITS,
        help="as many bytes as --as takes for codes of so many bits, but shared out among the "
        "matrices",
    )
    budget.add_argument(
        "--calibrate",
        type=pathlib.Path,
        metavar="TEXT",
        help="text file like the texts that the model will read (default: the model writes one)",
    )
    budget.add_argument(
        "--held-out",
        type=pathlib.Path,
        metavar="TEXT",
        help="another text file, on which the loss is measured (default: the last fifth of "
        "--calibrate, or some of what the model wrote)",
    )
    budget.add_argument(
        "--threads",
        type=count_of(1, 4096),
        metavar="N",
        help="how many threads compute (default: all CPUs)",
    )
    budget.add_argument("--verbose", action="store_true", help="print a line for each matrix")
    budget.add_argument(
        "--json", action="store_true", help="print what was chosen as one JSON object"
    )
    parser.add_argument(
        "--sparsity",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="drop this share of each row of the layers' matrices, the smallest values first; "
        "needs --as bf16, q8 or q4, or --bytes, or --bits (default: 0)",
    )
    parser.add_argument("--replace", action="store_true", help="replace FILE if it exists")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        planes.need("serve")
        with _leaving_at_sigterm():
            return _pack(arguments)
    except (Error, OSError) as error:
        print(f"scant pack: {fault(error)}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _leaving_at_sigterm() -> Iterator[None]:
    """What lies beside FILE meanwhile is removed before the process ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _pack(arguments: argparse.Namespace) -> int:
    _check(arguments)
    if arguments.file.exists() and not arguments.replace:
        raise InvalidArgument(f"{arguments.file} exists; --replace overwrites it")
    began_s = time.monotonic()
    source = sources.open_source(arguments.source)
    if arguments.bytes is not None or arguments.bits is not None:
        return _pack_fewer(arguments, source, began_s)
    kinds: dict[str, tuple[int, int]] = {}

    def told(tensor: packing.PackedTensor) -> None:
        kind = (
            tensor.kind
            if tensor.kind == tensor.source_kind
            else (f"{tensor.source_kind} → {tensor.kind}")
        )
        count, total = kinds.get(kind, (0, 0))
        kinds[kind] = (count + 1, total + tensor.bytes)

    wanted = arguments.wanted or "keep"
    total = packing.pack_as(source, arguments.file, wanted, arguments.sparsity, told)
    _print_kinds(kinds)
    took = amounts.duration(time.monotonic() - began_s)
    print(f"{arguments.file}: {total:,} bytes in {took}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Options that contradict one another."""
    budget = arguments.bytes is not None or arguments.bits is not None
    if arguments.bytes is not None and arguments.bits is not None:
        raise InvalidArgument("--bytes and --bits are two budgets: give only one")
    if budget and arguments.wanted is not None:
        raise InvalidArgument(
            "--as writes all matrices alike, and a budget (--bytes, --bits) shares out its bytes "
            "among them: give only one"
        )
    for name in ("calibrate", "held_out", "threads", "verbose", "json"):
        if not budget and getattr(arguments, name):
            raise InvalidArgument(f"--{name.replace('_', '-')} needs --bytes or --bits")
    if not 0 <= arguments.sparsity < 1:
        raise InvalidArgument(
            f"--sparsity is {arguments.sparsity}; it must be at least 0 and below 1"
        )
    if arguments.bits is not None and arguments.sparsity > 0 and arguments.bits < 4:
        raise InvalidArgument("sparse matrices have 4, 8 or 16 bits: give one of these as --bits")


def _print_kinds(kinds: Mapping[str, tuple[int, int]]) -> None:
    for kind, (count, bytes_) in sorted(kinds.items(), key=lambda item: -item[1][1]):
        print(f"{kind:<24}  {count:>5} tensors  {amounts.size(bytes_):>10}")


# ---- a budget ----------------------------------------------------------------------------------


def _pack_fewer(arguments: argparse.Namespace, source: sources.Source, began_s: float) -> int:
    from scant.serve.model_engine import usable_threads

    wanted = fewer_bytes.Wanted(
        bytes=arguments.bytes,
        bits=arguments.bits,
        sparsity=arguments.sparsity,
        calibrate=arguments.calibrate,
        held_out=arguments.held_out,
        threads=arguments.threads or usable_threads(),
    )

    def step(text: str) -> None:
        print(f"{text} …", file=sys.stderr, flush=True)

    result = fewer_bytes.pack(source, arguments.file, wanted, step)
    took_s = time.monotonic() - began_s
    if arguments.json:
        print(json.dumps(_as_json(source, result, took_s)))
    else:
        _print(arguments, source, result, took_s)
    return 0


def _rows(result: fewer_bytes.Result) -> list[tuple[choosing.Curve, choosing.Point]]:
    return list(zip(result.curves, result.chosen.points, strict=True))


def _print(
    arguments: argparse.Namespace,
    source: sources.Source,
    result: fewer_bytes.Result,
    took_s: float,
) -> None:
    kinds: dict[str, tuple[int, int]] = {}
    matrices = set()
    for curve, point in _rows(result):
        matrices.add(curve.tensor.name)
        if arguments.verbose:
            print(
                f"{curve.tensor.name:<28}  {point.name:<22}  {amounts.size(point.bytes):>10}  "
                f"error {point.error:.2%}"
            )
        count, total = kinds.get(point.name, (0, 0))
        kinds[point.name] = (count + 1, total + point.bytes)
    others = [one for one in source.tensors if one.name not in matrices]
    rest = sum(one.rows * one.row_bytes for one in others)
    kinds["all other tensors"] = (len(others), rest)
    _print_kinds(kinds)
    around = result.bytes - rest - sum(one.bytes for one in result.chosen.points)
    print(f"{'tokenizer, index, gaps':<24}  {'':>13}  {amounts.size(around):>10}")
    before = sum(one.rows * one.row_bytes for one in source.tensors)
    print(
        f"{arguments.file}: {result.bytes:,} bytes of {result.budget:,} allowed; tensors had "
        f"{amounts.size(before)}"
    )
    lost = result.difference
    print(f"on {result.held_out}, {lost.tokens:,} tokens:")
    print(f"  perplexity           {lost.perplexity_before:.2f} before, {lost.perplexity:.2f} now")
    print(
        f"  divergence           {lost.divergence:.4f} nats a token, 99 % of tokens below "
        f"{lost.divergence_p99:.3f}"
    )
    print(f"  same likeliest token {lost.same_first:.1%}")
    print(f"in {amounts.duration(took_s)}")


def _as_json(
    source: sources.Source, result: fewer_bytes.Result, took_s: float
) -> dict[str, object]:
    return {
        "bytes": result.bytes,
        "budget": result.budget,
        "tensors": {
            curve.tensor.name: {
                "kind": point.choice.kind,
                "density": point.choice.density,
                "bytes": point.bytes,
                "error": point.error,
                "weight": curve.weight,
            }
            for curve, point in _rows(result)
        },
        "held_out": result.held_out,
        **dataclasses.asdict(result.difference),
        "seconds": took_s,
    }


if __name__ == "__main__":
    sys.exit(main())
