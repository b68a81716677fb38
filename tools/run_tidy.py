"""clang-tidy over every C++ source of a build, remembering what was clean.

A file is checked again when its own text, a header it includes, the rules or the program changed;
headers come from ninja's record of the build. Clean results stand in build/tidy/ as empty files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIDY = "clang-tidy-14"


def read_dependencies(build: Path) -> dict[str, list[Path]]:
    """Object file to the files of this checkout that it was made from."""
    text = subprocess.run(
        ["ninja", "-C", str(build), "-t", "deps"], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, list[Path]] = {}
    target = ""
    for line in text.splitlines():
        if line.startswith("    "):
            path = (build / line.strip()).resolve()
            if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "build"):
                found[target].append(path)
        elif ":" in line:
            target = line.split(":", 1)[0]
            found[target] = []
    return found


def digest(paths: Iterable[Path], extra: str) -> str:
    """One name for the contents of these files."""
    hasher = hashlib.sha256(extra.encode())
    for path in sorted(set(paths)):
        hasher.update(str(path.relative_to(ROOT)).encode())
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


# Following every path through GoogleTest takes two thirds of the time and has found nothing.
TEST_CHECKS = "--checks=-clang-analyzer-*"


def check(build: Path, source: Path) -> str:
    """The complaints about one source, empty when clean."""
    fewer = [TEST_CHECKS] if source.name.endswith("_test.cc") else []
    done = subprocess.run(
        [TIDY, "--quiet", "-p", str(build), *fewer, str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ""
    return done.stdout + done.stderr


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Runs clang-tidy where something changed.")
    parser.add_argument("--build", type=Path, required=True, help="a clang build, up to date")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    version = subprocess.run([TIDY, "--version"], capture_output=True, text=True, check=True).stdout
    rules = version + (ROOT / ".clang-tidy").read_text()
    cache = ROOT / "build/tidy"
    cache.mkdir(parents=True, exist_ok=True)

    dependencies = read_dependencies(build)
    todo: list[tuple[Path, Path]] = []
    total = 0
    for row in json.loads((build / "compile_commands.json").read_text()):
        source = Path(row["file"])
        if not source.is_relative_to(ROOT) or source.is_relative_to(ROOT / "build"):
            continue
        total += 1
        inputs = dependencies.get(row.get("output", ""), [])
        stamp = cache / digest([source, *inputs], rules + row["command"])
        if not stamp.exists():
            todo.append((source, stamp))

    dirty = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = pool.map(lambda item: check(build, item[0]), todo)
        for (source, stamp), complaints in zip(todo, results, strict=True):
            print(f"{'complaints' if complaints else 'clean'}: {source.relative_to(ROOT)}")
            if complaints:
                dirty += 1
                print(complaints, flush=True)
            else:
                stamp.touch()
    print(f"{total} files, {len(todo)} checked now, {dirty} with complaints")
    return 1 if dirty else 0


if __name__ == "__main__":
    sys.exit(main())
