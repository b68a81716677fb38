"""scant.torch.wrap: the cases of its workers on two, three and four ranks."""

from __future__ import annotations

import pytest
from conftest import case_names, check_case, check_exit

pytest.importorskip("torch")

WORKERS = [
    "torch_wrap.py",
    "torch_wrap_edges.py",
    "torch_not_finite.py",
    "torch_optimizers.py",
    "torch_auto.py",
    "torch_late_step.py",
    "torch_late_edges.py",
    "torch_samples.py",
    "torch_factors.py",
]
CASES = [(worker, case) for worker in WORKERS for case in case_names(worker)]


@pytest.mark.parametrize(("worker", "case"), CASES)
def test_three_ranks(worker: str, case: str) -> None:
    check_case(worker, 3, case)


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("worker", "case"), CASES)
def test_other_sizes(worker: str, case: str, size: int) -> None:
    check_case(worker, size, case, timeout_s=600)


@pytest.mark.parametrize("worker", WORKERS)
def test_leaves_cleanly(worker: str) -> None:
    check_exit(worker, 3)
