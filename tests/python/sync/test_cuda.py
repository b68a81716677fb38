"""CUDA tensors. Skipped, with a printed reason, where there is no GPU."""

from __future__ import annotations

import pytest
from conftest import case_names, check_case, check_exit

torch = pytest.importorskip("torch")

WORKER = "torch_cuda.py"

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU, or a torch without CUDA"
)


@pytest.mark.parametrize("case", case_names(WORKER))
def test_case(case: str) -> None:
    check_case(WORKER, 2, case)


def test_leaves_cleanly() -> None:
    check_exit(WORKER, 2)
