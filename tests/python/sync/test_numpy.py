"""scant.Communicator without torch."""

from __future__ import annotations

import pytest
from conftest import case_names, check_case, check_exit

WORKER = "numpy_collectives.py"


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("case", case_names(WORKER))
def test_case(case: str, size: int) -> None:
    check_case(WORKER, size, case, timeout_s=90)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_leaves_cleanly(size: int) -> None:
    check_exit(WORKER, size)
