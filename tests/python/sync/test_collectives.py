"""torch.distributed's calls on the backend, against gloo."""

from __future__ import annotations

import pytest
from conftest import case_names, check_case, check_exit

pytest.importorskip("torch")

WORKER = "torch_collectives.py"


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", case_names(WORKER))
def test_case(case: str, size: int) -> None:
    check_case(WORKER, size, case)


@pytest.mark.parametrize("size", [2, 3])
def test_leaves_cleanly_without_destroy(size: int) -> None:
    check_exit(WORKER, size)
