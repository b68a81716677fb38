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
        ("check --only tidiness", "check: no check 'tidiness'; there are: format lint"),
        ("check --fast", "check: no option '--fast'; there are: --long, --only NAME"),
        ("test --fast", "test: no option '--fast'; there are: --long, --only NAME"),
        ("test --only", "test: --only needs a name"),
        ("demo --fast", "demo: no option '--fast'; there are: --no-tuning --out --ranks --rate"),
        ("bench train --fast", "bench train: no option '--fast'; there are: --block-s"),
        ("bench speed", "no benchmark 'speed'; there are: codecs collectives convergence ddp_step"),
        ("fuzz wire", "fuzz: no target 'wire'; there are: address_record_fuzz agreement_fuzz"),
        ("fuzz control_fuzz soon", "fuzz: seconds must be a number, not 'soon'"),
        ("clean --everything", "clean: no option '--everything'; there is: --all"),
    ],
)
def test_the_unknown_is_refused_by_name(arguments: str, text: str) -> None:
    done = subprocess.run(
        [str(ROOT / "dev"), *arguments.split()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.startswith(f"./dev: {text}"), done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("benchmark", "options"),
    [
        ("ddp_step", "--gate --networks --out --quick --ranks --repeats --seed --steps"),
        ("journal_faults", "--disk --faults --out --quick --runs --seed"),
    ],
)
def test_a_benchmark_is_shown_with_its_own_options(benchmark: str, options: str) -> None:
    done = subprocess.run(
        [str(ROOT / "dev"), "bench", benchmark, "--fast"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    text = f"./dev: bench {benchmark}: no option '--fast'; there are: {options}\n"
    assert done.stderr == text
