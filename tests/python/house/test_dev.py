"""./dev refuses what it does not know in one line that lists what there is, and touches nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("tests", "no command 'tests'; there are: demo test check bench"),
        ("build debug", "build: no preset 'debug'; there are: dev release clang"),
        ("check --only tidiness", "check: no 'tidiness'; there are: format lint"),
        ("check --fast", "check: no option '--fast'; there are: --long, --only"),
        ("bench speed", "no benchmark 'speed'; there are: codecs collectives convergence ddp_step"),
        ("fuzz wire", "fuzz: no target 'wire'; there are: address_record_fuzz agreement_fuzz"),
        ("fuzz control_fuzz soon", "fuzz: seconds must be a number, not 'soon'"),
        ("clean --everything", "clean: no '--everything'; there is: --all"),
    ],
)
def test_the_unknown_is_refused_by_name(arguments: str, text: str) -> None:
    assert refused(arguments).startswith(f"./dev: {text}")


@pytest.mark.parametrize(
    ("benchmark", "options"),
    [
        ("collectives", "--quick --ranks --networks --operations --sizes --repeats --no-mpi --out"),
        ("ddp_step", "--quick --ranks --networks --steps --repeats --seed --out --gate"),
        ("train", "--quick --models --parts --train-steps --buckets-mb --powersgd --curves --gate"),
        ("codecs", "--quick --elements --repeats --threads --capture-step --gate"),
        ("journal", "--quick --kinds --every --unsynced --base-every --settle --disk --gate"),
        ("journal_faults", "--quick --runs --faults --seed --out --disk"),
    ],
)
def test_a_benchmarks_own_options_are_among_those_that_there_are(
    benchmark: str, options: str
) -> None:
    said, _, known = refused(f"bench {benchmark} --speed").partition("; there are: ")
    assert said == f"./dev: bench {benchmark}: no option '--speed'"
    assert set(options.split()) <= set(known.split())


def refused(arguments: str) -> str:
    """The one line that it says."""
    done = subprocess.run(
        [str(ROOT / "dev"), *arguments.split()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line
