"""``scant journal``: look at a journal, without torch, beside whoever writes it."""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from scant import _scant, amounts, planes
from scant.errors import Corrupt, Error
from scant.journal import tensor_files
from scant.journal.damage import damage_of

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scant journal", description="Look at the journal of a training."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        one.add_argument("journal", type=pathlib.Path, metavar="PATH", help="its folder")
        return one

    ls = add("ls", "bases, and the steps of the log behind the newest")
    ls.add_argument("--entries", action="store_true", help="a line for each entry of the log")
    ls.add_argument("--json", action="store_true", help="the same for programs")
    add("verify", "read and check every byte; exit status 1: something is damaged")
    export = add("export", "copy a base's tensors as safetensors files with torch's names")
    export.add_argument("out", type=pathlib.Path, metavar="FOLDER", help="must not exist")
    export.add_argument("--base", type=int, metavar="STEP", help="(default: the newest whole one)")
    diff = add("diff", "which tensors differ between two bases")
    diff.add_argument("other", type=pathlib.Path, metavar="OTHER", help="its folder; may be PATH")
    diff.add_argument("--base", type=int, metavar="STEP", help="base of PATH (default: its newest)")
    diff.add_argument("--other-base", type=int, metavar="STEP", help="base of OTHER (likewise)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = _parser().parse_args(argv)
    run = {"ls": _ls, "verify": _verify, "export": _export, "diff": _diff}[arguments.command]
    try:
        planes.need("journal")
        return run(arguments)
    except BrokenPipeError:
        return 0
    except (Error, OSError) as error:
        print(f"scant journal: {error}", file=sys.stderr)
        return 2


def _contents(path: pathlib.Path) -> tuple[_scant.JournalFolder, dict[str, Any]]:
    folder = _scant.JournalFolder(str(path), False)
    contents = folder.look()
    if contents["manifest"] is None and not contents["bases"] and not contents["problems"]:
        raise Corrupt(f"{path} holds no journal (or one whose first base was not finished)")
    return folder, contents


def _base(contents: dict[str, Any], path: pathlib.Path, step: int | None) -> dict[str, Any]:
    """The base of a step, or the newest whole one."""
    for base in contents["bases"]:
        if step is None and not base["problem"]:
            return dict(base)
        if step is not None and base["step"] == step:
            if base["problem"]:
                raise Corrupt(f"{path}: base {step} is damaged: {base['problem']}")
            return dict(base)
    steps = ", ".join(str(base["step"]) for base in contents["bases"])
    wanted = "no base is whole" if step is None else f"no base of step {step}"
    raise Corrupt(f"{path}: {wanted}; there are: {steps or 'none'}")


# ---- ls and verify ---------------------------------------------------------------------------


def _ls(arguments: argparse.Namespace) -> int:
    folder, contents = _contents(arguments.journal)
    state = folder.state() if any(not one["problem"] for one in contents["bases"]) else None
    if arguments.json:
        print(json.dumps({**contents, "state": state}))
        return 0
    for base in reversed(contents["bases"]):
        size = sum(bytes_ for _, bytes_, _ in base["files"])
        how = f"damaged: {base['problem']}" if base["problem"] else "whole"
        print(
            f"base {base['step']:>10}  {amounts.size(size):>10}  {len(base['files'])} files of "
            f"{base['ranks']} ranks  {how}"
        )
    if state is None:
        return 0
    entries = state["entries"]
    if entries:
        total = sum(length for _, _, length, _, _ in entries)
        print(
            f"log  {entries[0][1]:>10} to {entries[-1][1]}  {amounts.size(total)}, "
            f"{amounts.size(total // len(entries))} a step"
        )
    if arguments.entries:
        for sequence, step, length, segment, offset in entries:
            print(_entry_line(folder, sequence, step, length, segment, offset))
    print(f"newest state: step {state['step']} (base {state['base']['step']})")
    for line in _problems(contents, state):
        print(line)
    return 0


def _entry_line(
    folder: _scant.JournalFolder, sequence: int, step: int, length: int, segment: str, offset: int
) -> str:
    summary = folder.summary(sequence, segment, offset)
    by_kind: dict[str, int] = {}
    for kind, _, size in summary["parts"]:
        by_kind[kind] = by_kind.get(kind, 0) + size
    parts = ", ".join(f"{amounts.size(size)} {kind}" for kind, size in by_kind.items())
    factor = "" if summary["factor"] == 1 else f", times {summary['factor']:.6g}"
    return (
        f"  step {step}  entry {sequence}  {amounts.size(length)}: {parts}{factor}  "
        f"({segment} at {offset})"
    )


def _problems(contents: dict[str, Any], state: dict[str, Any] | None) -> list[str]:
    lines = [f"damaged: {one}" for one in contents["problems"]]
    end = state["end"] if state is not None else None
    if damage := damage_of(state):
        lines.append(f"damaged: {damage}")
    elif end is not None:
        lines.append(
            f"the last write was not finished ({end['segment']} at byte {end['offset']}): nothing "
            "that was acknowledged is missing"
        )
    return lines


def _verify(arguments: argparse.Namespace) -> int:
    folder, contents = _contents(arguments.journal)
    damaged = bool(contents["problems"])
    whole = [one for one in contents["bases"] if not one["problem"]]
    for base in contents["bases"]:
        print(f"base {base['step']}: {base['problem'] or 'whole'}")
    newest = 0
    for base in whole:
        state = folder.state(base["step"], False)
        newest = max(newest, state["step"])
        entries = 0
        try:
            for sequence, _, _, segment, offset in state["entries"]:
                folder.summary(sequence, segment, offset)
                entries += 1
        except Error as error:
            damaged = True
            print(f"log behind base {base['step']}: {error}")
        print(f"log behind base {base['step']}: {entries} entries, to step {state['step']}")
        for line in _problems({"problems": []}, state):
            print(line)
        damaged = damaged or damage_of(state) is not None
    for problem in contents["problems"]:
        print(f"damaged: {problem}")
    if whole:
        print(f"{'damaged' if damaged else 'whole'}; step {newest} can be restored")
    else:
        print("damaged; nothing can be restored")
    return 1 if damaged else 0


# ---- export and diff -------------------------------------------------------------------------


def _tensor_paths(path: pathlib.Path, base: dict[str, Any]) -> list[pathlib.Path]:
    return [
        path / base["folder"] / name
        for name, _, _ in base["files"]
        if name.startswith(("model-", "optimizer-")) and name.endswith(".safetensors")
    ]


def _export(arguments: argparse.Namespace) -> int:
    _, contents = _contents(arguments.journal)
    base = _base(contents, arguments.journal, arguments.base)
    arguments.out.mkdir()
    paths = _tensor_paths(arguments.journal, base)
    for path in paths:
        shutil.copyfile(path, arguments.out / path.name)
    total = sum(path.stat().st_size for path in paths)
    print(
        f"base {base['step']}: {len(paths)} safetensors files, {amounts.size(total)}, in "
        f"{arguments.out}"
    )
    return 0


def _tensors(path: pathlib.Path, step: int | None) -> tuple[int, dict[str, tensor_files.Tensor]]:
    _, contents = _contents(path)
    base = _base(contents, path, step)
    found = {}
    for file in _tensor_paths(path, base):
        kind = file.name.split("-", 1)[0]
        for name, tensor in tensor_files.read(file).items():
            found[f"{kind} {name}"] = tensor
    return base["step"], found


def _diff(arguments: argparse.Namespace) -> int:
    first_step, first = _tensors(arguments.journal, arguments.base)
    other_step, other = _tensors(arguments.other, arguments.other_base)
    lines = []
    for name in sorted(first.keys() | other.keys()):
        a, b = first.get(name), other.get(name)
        if a is None or b is None:
            lines.append(f"{name}: only in {'OTHER' if a is None else 'PATH'}")
        elif (a.kind, a.shape) != (b.kind, b.shape):
            lines.append(f"{name}: {a.kind} {list(a.shape)} and {b.kind} {list(b.shape)}")
        elif a.data != b.data:
            lines.append(f"{name}: {_difference(a, b)}")
    print("\n".join(lines) if lines else "equal to the bit")
    print(f"base {first_step} beside base {other_step}: {len(lines)} of {len(first)} differ")
    return 1 if lines else 0


def _difference(a: tensor_files.Tensor, b: tensor_files.Tensor) -> str:
    """How far apart, where NumPy has the type."""
    import numpy

    kinds = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "u1"}
    if a.kind not in kinds:
        return "other bytes"
    one = numpy.frombuffer(a.data, kinds[a.kind]).astype(float)
    two = numpy.frombuffer(b.data, kinds[b.kind]).astype(float)
    count = int((one != two).sum())
    return f"{count} of {one.size} values, by up to {float(abs(one - two).max()):.6g}"


if __name__ == "__main__":
    sys.exit(main())
