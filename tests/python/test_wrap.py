"""scant.torch.wrap: the cases of workers/torch_wrap.py on two, three and four ranks."""

from __future__ import annotations

import pytest
from conftest import case_names, check_case, check_exit

pytest.importorskip("torch")

WORKER = "torch_wrap.py"


@pytest.mark.parametrize("case", case_names(WORKER))
def test_three_ranks(case: str) -> None:
    check_case(WORKER, 3, case)


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", case_names(WORKER))
def test_other_sizes(case: str, size: int) -> None:
    check_case(WORKER, size, case, timeout_s=600)


def test_leaves_cleanly() -> None:
    check_exit(WORKER, 3)
