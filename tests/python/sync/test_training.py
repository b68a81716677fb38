"""DDP, FSDP2, checkpoints, meshes and the compiler on the backend."""

from __future__ import annotations

import pytest
from conftest import case_names, check_case, check_exit

pytest.importorskip("torch")

WORKER = "torch_training.py"


@pytest.mark.parametrize("case", case_names(WORKER))
def test_two_ranks(case: str) -> None:
    check_case(WORKER, 2, case)


@pytest.mark.long
@pytest.mark.parametrize("case", case_names(WORKER))
def test_four_ranks(case: str) -> None:
    check_case(WORKER, 4, case, timeout_s=600)


def test_leaves_cleanly() -> None:
    check_exit(WORKER, 2)
