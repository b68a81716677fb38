"""What the others learn of a rank whose program fails, and of one that holds another secret."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Launch, launch_ranks, worker_path

pytest.importorskip("numpy")

DEADLINE_S = 60.0


def errors_of(launch: Launch, rank: int) -> list[Any]:
    """Code, peer and text of each error that the rank printed."""
    lines = launch.outputs[rank].splitlines()
    return [json.loads(line.split(" ", 1)[1]) for line in lines if line.startswith("@error ")]


@pytest.mark.parametrize("how", ["uncaught", "block"])
def test_an_exception_of_a_rank_is_its_failure_to_the_others(how: str) -> None:
    launch = launch_ranks([str(worker_path("fails.py")), how], 3, DEADLINE_S)
    assert not launch.timed_out, launch.text()
    for rank in (0, 1):
        text = "failed: rank 2 failed: ValueError: no more data"
        assert errors_of(launch, rank) == [["failed", 2, text]], launch.text()
    # Who ends by that error adds nothing: the cause is rank 2.
    assert "scant.errors.Failed" in launch.outputs[0], launch.text()
    assert launch.returncodes == [1, 0, 1], launch.text()


def test_a_rank_that_exits_has_closed() -> None:
    launch = launch_ranks([str(worker_path("fails.py")), "exit"], 3, DEADLINE_S)
    assert not launch.timed_out, launch.text()
    (error,) = errors_of(launch, 1)
    assert error[0] == "closed", launch.text()
    assert launch.returncodes == [1, 0, 3], launch.text()


def test_another_secret_is_refused_and_named() -> None:
    launch = launch_ranks([str(worker_path("other_secret.py"))], 2, DEADLINE_S)
    assert not launch.timed_out, launch.text()
    for rank in (0, 1):
        ((code, peer, text),) = errors_of(launch, rank)
        assert (code, peer) == ("refused", 1 - rank), launch.text()
        assert "hold different secrets of the job" in text, launch.text()
