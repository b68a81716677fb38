"""Adds up the XML results of CTest, GoogleTest and pytest; prints every skip with its reason.

A skip must be covered by the list of allowed skips (pattern, how many, why). The last line of the
output is "N passed, N failed, N skipped"; the exit status is 1 when anything failed, when more was
skipped than allowed, or when there was nothing to add up.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One test case: where it ran, its name, and how it ended."""

    suite: str  # "dev", "asan", "python"
    name: str
    outcome: str  # "passed", "failed", "skipped"
    reason: str = ""

    @property
    def identity(self) -> str:
        """What patterns of the allowed list are matched against."""
        return f"{self.suite}:{self.name}"


@dataclass(frozen=True)
class Allowance:
    """One line of the list of allowed skips."""

    pattern: str
    count: int
    why: str


def first_line(text: str | None) -> str:
    """The first line that is not empty."""
    return next((line.strip() for line in (text or "").splitlines() if line.strip()), "")


def read_cases(path: Path, suite: str, prefix: str = "") -> list[Case]:
    """Test cases of one JUnit-like file."""
    cases = []
    for node in ElementTree.parse(path).getroot().iter("testcase"):  # noqa: S314  our own files
        name = prefix + ".".join(
            part for part in (node.get("classname", ""), node.get("name", "")) if part
        )
        skipped = node.find("skipped")
        if node.find("failure") is not None or node.find("error") is not None:
            problem = node.find("failure")
            problem = node.find("error") if problem is None else problem
            assert problem is not None
            cases.append(Case(suite, name, "failed", first_line(problem.get("message"))))
        elif skipped is not None or node.get("status") in ("notrun", "disabled"):
            reason = skipped.get("message") or skipped.text if skipped is not None else "disabled"
            lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
            cases.append(Case(suite, name, "skipped", lines[-1] if lines else "no reason given"))
        else:
            cases.append(Case(suite, name, "passed"))
    return cases


def read_ctest(folder: Path) -> list[Case]:
    """CTest's own rows, each replaced by the cases of its GoogleTest file where there is one.

    A program that failed without a failed case (a crash, a sanitizer's report, a time-out) counts
    as one failure beside the cases it did finish.
    """
    suite = folder.name
    cases: list[Case] = []
    for row in ElementTree.parse(folder / "ctest.xml").getroot().iter("testcase"):  # noqa: S314
        program = row.get("name", "")
        failed = row.find("failure") is not None or row.get("status") == "fail"
        inner: list[Case] = []
        for path in [folder / f"{program}.xml", *sorted(folder.glob(f"{program}_[0-9]*.xml"))]:
            if path.is_file():
                inner += read_cases(path, suite, prefix=f"{program}.")
        if not inner or (failed and all(case.outcome != "failed" for case in inner)):
            outcome = "failed" if failed else "passed"
            reason = ""
            if row.find("skipped") is not None or row.get("status") in ("notrun", "disabled"):
                outcome, reason = "skipped", "not run"
                failed_to_start = row.find("skipped")
                if failed_to_start is not None:
                    reason = failed_to_start.get("message") or reason
            inner.append(Case(suite, program, outcome, reason))
        cases += inner
    return cases


def read_allowed(path: Path) -> list[Allowance]:
    """Lines of "pattern count why"; "#" starts a comment."""
    allowed = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split(maxsplit=2)
        if len(fields) != 3 or not fields[1].isdigit():
            raise SystemExit(f"{path}:{number}: want 'pattern count why', have '{line}'")
        allowed.append(Allowance(fields[0], int(fields[1]), fields[2]))
    return allowed


def not_allowed(skips: list[Case], allowed: list[Allowance]) -> list[Case]:
    """Skips that no line covers, or that exceed their line's number."""
    used: Counter[Allowance] = Counter()
    excess = []
    for case in skips:
        for allowance in allowed:
            if fnmatch.fnmatchcase(case.identity, allowance.pattern):
                used[allowance] += 1
                if used[allowance] > allowance.count:
                    excess.append(case)
                break
        else:
            excess.append(case)
    return excess


def report(cases: list[Case], allowed: list[Allowance]) -> int:
    """Prints the tables and the closing line; the exit status."""
    outcomes = Counter(case.outcome for case in cases)
    for suite in sorted({case.suite for case in cases}):
        counts = Counter(case.outcome for case in cases if case.suite == suite)
        print(
            f"  {suite:8} {counts['passed']:6} passed {counts['failed']:4} failed "
            f"{counts['skipped']:4} skipped"
        )
    skips = [case for case in cases if case.outcome == "skipped"]
    for case in skips:
        print(f"skipped: {case.identity}: {case.reason}")
    for case in cases:
        if case.outcome == "failed":
            print(f"failed:  {case.identity}: {case.reason}")
    excess = not_allowed(skips, allowed)
    for case in excess:
        print(f"not an allowed skip: {case.identity}")
    if not cases:
        print("no test ran (slow ones need --long)")
    print(
        f"{outcomes['passed']} passed, {outcomes['failed']} failed, {outcomes['skipped']} skipped"
    )
    return 1 if outcomes["failed"] or excess or not cases else 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path, help="folder with one folder a suite")
    parser.add_argument("--allowed-skips", type=Path, required=True)
    arguments = parser.parse_args()
    cases: list[Case] = []
    for folder in sorted(path for path in arguments.results.iterdir() if path.is_dir()):
        if (folder / "ctest.xml").is_file():
            cases += read_ctest(folder)
        for path in sorted(folder.glob("pytest*.xml")):
            cases += read_cases(path, folder.name)
    return report(cases, read_allowed(arguments.allowed_skips))


if __name__ == "__main__":
    sys.exit(main())
