"""clang-tidy over what changed last, or over every source of a configured clang build.

What changed last: on a branch, the files that differ from main; on main, the LAST_MAX sources that
commits or an editor changed last, where a file that only moved did not change. A header stands for
one source that includes it, its own before others. What it does to the rest, --all sees.

Clang's own warnings are a part of it (clang-diagnostic-*), so that nothing needs to be built first;
sources of Highway kernels are also compiled, since some of their errors show only then. Two rows of
a build that differ in their object file alone are one. A source is checked again when its own text,
a file it includes, its options, the rules or the program changed: build/tidy/ holds, for each that
was clean, the files that it was made from and a hash of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIDY = "clang-tidy-14"
# Following every path through GoogleTest takes two thirds of the time and has found nothing.
TEST_CHECKS = "--checks=-clang-analyzer-*"
KERNELS = "hwy/foreach_target.h"
MAIN = ("main", "origin/main")
LAST_MAX = 24  # sources; a minute and a half on two cores
COMMITS_MAX = 300  # that are looked through for them
SUFFIXES = (".cc", ".h")


@dataclass(frozen=True)
class Unit:
    """One source with the options that it is compiled with; ``command`` lacks input and output."""

    source: Path
    directory: Path
    command: tuple[str, ...]

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A program in the folder that the options are relative to."""
        return subprocess.run(
            [str(word) for word in words],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )


def read_units(build: Path) -> list[Unit]:
    """What there is to check."""
    units: dict[Unit, None] = {}
    for row in json.loads((build / "compile_commands.json").read_text()):
        source = Path(row["file"])
        if not source.is_relative_to(ROOT) or source.is_relative_to(ROOT / "build"):
            continue
        words = shlex.split(row["command"])
        output, compile_only = words.index("-o"), words.index("-c")
        dropped = (output, output + 1, compile_only, compile_only + 1)
        command = tuple(word for at, word in enumerate(words) if at not in dropped)
        units[Unit(source, Path(row["directory"]), command)] = None
    return list(units)


def dependencies(unit: Unit) -> list[Path]:
    """The files of this checkout that the source is made from; none when it does not preprocess."""
    done = unit.run(*unit.command, "-MM", "-MT", "x", unit.source)
    if done.returncode != 0:
        return []
    found = set()
    for word in shlex.split(done.stdout.replace("\\\n", " "))[1:]:
        path = (unit.directory / word).resolve()
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "build"):
            found.add(path)
    return sorted(found)


def digest(paths: Iterable[Path]) -> str:
    """One name for the contents of these files."""
    hasher = hashlib.sha256()
    for path in paths:
        hasher.update(f"{path.relative_to(ROOT)}\n".encode())
        hasher.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    return hasher.hexdigest()


def is_clean(record: Path) -> bool:
    """Whether nothing changed since the source was found clean."""
    if not record.is_file():
        return False
    wanted, *names = record.read_text().splitlines()
    return wanted == digest(ROOT / name for name in names)


def complaints(unit: Unit) -> str:
    """What is wrong with one source, empty when clean."""
    fewer = [TEST_CHECKS] if unit.source.name.endswith("_test.cc") else []
    done = unit.run(TIDY, "--quiet", *fewer, unit.source, "--", *unit.command[1:])
    found = done.stdout + done.stderr if done.returncode else ""
    if not found and KERNELS in unit.source.read_text():
        done = unit.run(*unit.command, "-c", "-o", "/dev/null", unit.source)
        found = done.stdout + done.stderr if done.returncode else ""
    return found


def check(unit: Unit, record: Path) -> str:
    """Complaints about one source; remembers it when there are none."""
    begin = time.time()
    inputs = dependencies(unit)
    found = complaints(unit)
    # What was edited meanwhile may not be what was checked.
    if not found and inputs and all(path.stat().st_mtime < begin for path in inputs):
        lines = [digest(inputs), *(str(path.relative_to(ROOT)) for path in inputs)]
        record.write_text("\n".join(lines) + "\n")
    return found


def git(*words: str) -> list[str]:
    """Lines that git prints; none when it fails."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def changed_names(rows: Iterable[str]) -> list[str]:
    """Of rows of ``git --name-status``: names in their order, without those only moved."""
    fields = (row.split("\t") for row in rows if row)
    names = (row[-1] for row in fields if row[0] not in ("D", "R100"))
    return list(dict.fromkeys(name for name in names if name.endswith(SUFFIXES)))


def changed_files() -> tuple[list[str], bool]:
    """Names, the one changed last first; whether these are all that a branch changed."""
    status = ("--name-status", "-M", "--", *(f"*{suffix}" for suffix in SUFFIXES))
    names = git("ls-files", "--others", "--exclude-standard", "--", *status[3:])
    names += changed_names(git("diff", "HEAD", *status))
    head = git("rev-parse", "HEAD")
    bases = [base for name in MAIN for base in git("merge-base", "HEAD", name)]
    on_branch = bool(bases) and head[0] not in bases
    if on_branch:
        names += changed_names(git("diff", bases[0], "HEAD", *status))
    else:
        names += changed_names(git("log", "--format=", "-n", str(COMMITS_MAX), *status))
    return list(dict.fromkeys(names)), on_branch


def stands_for(path: Path, units: list[Unit]) -> list[Unit]:
    """The units of a source; for a header, those of one source that includes it."""
    found = [unit for unit in units if unit.source == path]
    if path.suffix != ".h" or not path.is_file():
        return found
    include = re.compile(rf'#include "[^"]*\b{re.escape(path.parent.name)}/{re.escape(path.name)}"')

    def distance(source: Path) -> tuple[bool, bool, int, str]:
        other_folders = set(source.parent.parts) ^ set(path.parent.parts)
        other_name = source.stem not in (path.stem, f"{path.stem}_test")
        return other_name, source.name.endswith("_test.cc"), len(other_folders), str(source)

    users = [unit.source for unit in units if include.search(unit.source.read_text())]
    nearest = min(users, key=distance, default=None)
    return [unit for unit in units if unit.source == nearest]


def changed_units(units: list[Unit]) -> list[Unit]:
    """What changed last, as the head of this file says."""
    names, on_branch = changed_files()
    found: dict[Unit, None] = {}
    for name in names:
        if on_branch or len(found) < LAST_MAX:
            found.update(dict.fromkeys(stands_for(ROOT / name, units)))
    return list(found)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Runs clang-tidy where something changed.")
    parser.add_argument("--build", type=Path, required=True, help="a configured clang build")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="every source, not what changed last")
    arguments = parser.parse_args()
    version = subprocess.run([TIDY, "--version"], capture_output=True, text=True, check=True).stdout
    rules = version + (ROOT / ".clang-tidy").read_text() + Path(__file__).read_text()
    records = ROOT / "build/tidy"
    records.mkdir(parents=True, exist_ok=True)

    every = read_units(arguments.build.resolve())
    units = every if arguments.all else changed_units(every)
    todo: list[tuple[Unit, Path]] = []
    for unit in units:
        name = hashlib.sha256(f"{rules}{unit.source}{unit.command}".encode()).hexdigest()
        if not is_clean(records / name):
            todo.append((unit, records / name))

    dirty = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for (unit, _), found in zip(todo, pool.map(lambda item: check(*item), todo), strict=True):
            print(f"{'complaints' if found else 'clean'}: {unit.source.relative_to(ROOT)}")
            if found:
                dirty += 1
                print(found, flush=True)
    what = "all" if arguments.all else f"what changed last of {len(every)}"
    print(f"{len(units)} files ({what}), {len(todo)} checked now, {dirty} with complaints")
    return 1 if dirty or not every else 0


if __name__ == "__main__":
    sys.exit(main())
