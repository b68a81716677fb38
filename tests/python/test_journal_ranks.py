"""scant.Journal of wrapped models: the cases of its worker, and other numbers of ranks."""

from __future__ import annotations

import pytest
from conftest import case_names, check_case, check_exit

pytest.importorskip("torch")

WORKER = "torch_journal.py"


@pytest.mark.parametrize("case", case_names(WORKER))
def test_three_ranks(case: str) -> None:
    check_case(WORKER, 3, case)


def test_leaves_cleanly() -> None:
    check_exit(WORKER, 3)
