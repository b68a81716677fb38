"""What ``./dev test --only NAME`` runs, and what has to be built for it.

NAME is a label of CTest (a room, a plane, a kind of test), a folder of tests/python, "python", the
name of a test, or a pattern in it. The first of these that fits is meant alone. A pattern is looked
for in the names of CTest's tests, and in those of Python's files, functions and workers' cases.

Prints lines of a key and its words, for the shell: "ctest" (a pattern of exact names), "targets"
(files to build), "python" (test files), "name" (the pattern, where Python's files are not whole),
"package" (whether these need the package built, or only its sources: "built" or "sources").
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON_TESTS = ROOT / "tests/python"
ALL_PYTHON = "python"
LONG = "long"
# Folders whose tests and what they import load no extension.
OF_SOURCES_ALONE = {"lab"}


@dataclass(frozen=True)
class Program:
    """A test of CTest."""

    name: str
    labels: frozenset[str]
    files: tuple[str, ...]  # that it runs, relative to the build


@dataclass
class Selection:
    """What is run."""

    programs: list[Program] = field(default_factory=list)
    python: list[Path] = field(default_factory=list)
    name: str = ""

    def lines(self) -> list[str]:
        """For the shell."""
        names = "|".join(re.escape(program.name) for program in self.programs)
        targets = sorted({file for program in self.programs for file in program.files})
        python = [str(path.relative_to(ROOT)) for path in self.python]
        sources = all(path.parent.name in OF_SOURCES_ALONE for path in self.python)
        rows = [
            ("ctest", f"^({names})$" if names else ""),
            ("targets", " ".join(targets)),
            ("python", " ".join(python)),
            ("name", self.name),
            ("package", ("sources" if sources else "built") if python else ""),
        ]
        return [f"{key} {words}" for key, words in rows if words]


def read_programs(build: Path) -> list[Program]:
    """Tests of a configured build; nothing of it needs to be built."""
    command = ["ctest", "--test-dir", str(build), "--show-only=json-v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    programs = []
    for test in json.loads(done.stdout)["tests"]:
        values = {row["name"]: row["value"] for row in test.get("properties", [])}
        files = tuple(
            str(Path(file).relative_to(build)) for file in values.get("REQUIRED_FILES", [])
        )
        programs.append(Program(test["name"], frozenset(values.get("LABELS", [])), files))
    return programs


def read_python() -> dict[str, list[Path]]:
    """Test files by folder."""
    files: dict[str, list[Path]] = {}
    for path in sorted(PYTHON_TESTS.glob("*/test_*.py")):
        files.setdefault(path.parent.name, []).append(path)
    return files


def python_names(path: Path) -> list[str]:
    """Names in one file that a pattern is looked for in; cases as pytest calls them."""
    text = path.read_text()
    names = [path.stem]
    names += re.findall(r"^(?:    )?def (test_\w+)\(", text, flags=re.MULTILINE)
    for worker in re.findall(r"\"(\w+\.py)\"", text):
        for found in PYTHON_TESTS.glob(f"*/workers/{worker}"):
            names += re.findall(r"^def (case_\w+)\(", found.read_text(), flags=re.MULTILINE)
    return names


def select(only: str, programs: list[Program], python: dict[str, list[Path]]) -> Selection:
    """All that NAME means; empty when it means nothing."""
    labels = {label for program in programs for label in program.labels} - {LONG}
    if only == ALL_PYTHON:
        return Selection(python=[path for files in python.values() for path in files])
    if only in labels or only in python:
        return Selection([one for one in programs if only in one.labels], python.get(only, []))
    if any(only == one.name for one in programs):
        return Selection([one for one in programs if only == one.name])
    pattern = re.compile(only)
    found = Selection([one for one in programs if pattern.search(one.name)], name=only)
    for path in (path for files in python.values() for path in files):
        if any(pattern.search(name) for name in python_names(path)):
            found.python.append(path)
    return found


def what_there_is(programs: list[Program], python: dict[str, list[Path]]) -> str:
    """All labels and folders in one line."""
    labels = {label for program in programs for label in program.labels} - {LONG}
    return " ".join(sorted(labels | set(python) | {ALL_PYTHON}))


def main() -> int:
    """Command line; a NAME that means nothing is one line and exit code 2."""
    parser = argparse.ArgumentParser(description="What ./dev test --only NAME runs and builds.")
    parser.add_argument("only", metavar="NAME")
    parser.add_argument("--build", type=Path, required=True, help="a configured build")
    parser.add_argument("--long", action="store_true", help="with the slow tests")
    arguments = parser.parse_args()
    programs, python = read_programs(arguments.build.resolve()), read_python()
    try:
        found = select(arguments.only, programs, python)
    except re.error as error:
        print(f"./dev: test: --only {arguments.only}: no pattern ({error})", file=sys.stderr)
        return 2
    if not found.programs and not found.python:
        print(
            f"./dev: test: nothing has the name '{arguments.only}'; there are: "
            f"{what_there_is(programs, python)}, and parts of the names of tests",
            file=sys.stderr,
        )
        return 2
    if not arguments.long:
        found.programs = [one for one in found.programs if LONG not in one.labels]
        if not found.programs and not found.python:
            print(
                f"./dev: test: what '{arguments.only}' names is slow: add --long", file=sys.stderr
            )
            return 2
    print("\n".join(found.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
