"""scant.Journal of several ranks: the cases of its workers, ranks that are killed, other numbers of
ranks than before.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Launch, case_names, check_case, check_exit, launch_ranks, worker_path

pytest.importorskip("torch")

WORKER = "torch_journal.py"
EDGES = "torch_journal_edges.py"
RUN = str(worker_path("journal_run.py"))


CASES = [(worker, case) for worker in (WORKER, EDGES) for case in case_names(worker)]


@pytest.mark.parametrize(("worker", "case"), CASES)
def test_three_ranks(worker: str, case: str) -> None:
    check_case(worker, 3, case)


@pytest.mark.parametrize("worker", [WORKER, EDGES])
def test_leaves_cleanly(worker: str) -> None:
    check_exit(worker, 3)


# ---- killed ranks ----------------------------------------------------------------------------


def rows_of(launch: Launch, rank: int) -> list[dict[str, Any]]:
    lines = launch.outputs[rank].splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def steps_of(launch: Launch) -> dict[int, str]:
    """Digests of the steps that rank 0 completed."""
    return {row["step"]: row["is"] for row in rows_of(launch, 0) if "step" in row}


@pytest.mark.parametrize(
    ("who", "where"),
    [("0", "backward"), pytest.param("2", "step", marks=pytest.mark.long), ("all", "step")],
)
def test_killed_ranks_lose_no_step(who: str, where: str, tmp_path: Path) -> None:
    journal = str(tmp_path / "j")
    died = launch_ranks([RUN, journal, "20", f"{who}:13:{where}"], 3, 120.0)
    killed = range(3) if who == "all" else [int(who)]
    for rank in killed:
        assert died.returncodes[rank] == -signal.SIGKILL, died.text()
    assert not died.timed_out, died.text()
    completed = steps_of(died)
    # Where a rank dies after its average, the others may have taken step 13, and logged it.
    last = max(completed)
    assert last in ((12, 13) if where == "step" else (12,)), died.text()
    again = launch_ranks([RUN, journal, "16"], 3, 120.0)
    assert again.returncodes == [0, 0, 0], again.text()
    for rank in range(3):
        begun = rows_of(again, rank)[0]
        assert begun["first"] == last, again.text()
        assert begun["restored"] == completed[last]
    assert max(steps_of(again)) == 16


@pytest.mark.parametrize(
    ("plan", "who", "where"),
    [
        ("rank 4 q1", "1", "backward"),
        pytest.param("rank 4 q1", "all", "step", marks=pytest.mark.long),
        ("rank 8 of q4", "all", "step"),
        pytest.param("rank 4 of q8, q2, gather", "0", "step", marks=pytest.mark.long),
    ],
)
def test_killed_ranks_lose_no_step_with_factors(
    plan: str, who: str, where: str, tmp_path: Path
) -> None:
    journal = str(tmp_path / "j")
    died = launch_ranks([RUN, journal, "20", f"{who}:13:{where}"], 4, 120.0, env={"PLAN": plan})
    for rank in range(4) if who == "all" else [int(who)]:
        assert died.returncodes[rank] == -signal.SIGKILL, died.text()
    assert not died.timed_out, died.text()
    completed = steps_of(died)
    again = launch_ranks([RUN, journal, "15"], 4, 120.0, env={"PLAN": plan})
    assert again.returncodes == [0] * 4, again.text()
    begun = [rows_of(again, rank)[0] for rank in range(4)]
    assert len({(row["first"], row["base"]) for row in begun}) == 1, again.text()
    assert begun[0]["base"] in (5, 10), again.text()  # whether the second had its name by then
    assert begun[0]["first"] in ((12, 13) if where == "step" else (12,)), again.text()
    assert {row["restored"] for row in begun} == {completed[begun[0]["first"]]}, again.text()


# ---- other numbers of ranks ------------------------------------------------------------------


def residuals_of(rows: list[dict[str, Any]], owners: float) -> list[list[float]]:
    """Over the ranks, by tensor; owners' count so many times."""
    total = [[0.0, 0.0] for _ in range(64)]
    for row in rows:
        for kind, weight in (("worker", 1.0), ("owner", owners)):
            for tensor, sums in enumerate(row["residuals"][kind]):
                for i in range(2):
                    total[tensor][i] += weight * sums[i]
    return total


@pytest.mark.parametrize(
    ("ranks", "plan"),
    [(2, "5% bf16, gather"), pytest.param(2, "q4", marks=pytest.mark.long), (4, "q4")],
)
def test_another_number_of_ranks(ranks: int, plan: str, tmp_path: Path) -> None:
    journal = str(tmp_path / "j")
    first = launch_ranks([RUN, journal, "12"], 3, 120.0, env={"PLAN": plan})
    assert first.returncodes == [0] * 3, first.text()
    again = launch_ranks([RUN, journal, "14"], ranks, 120.0, env={"PLAN": plan})
    assert again.returncodes == [0] * ranks, again.text()
    begun = [rows_of(again, rank)[0] for rank in range(ranks)]
    for row in begun:
        assert (row["first"], row["base"]) == (12, 10), again.text()
        assert row["restored"] == steps_of(first)[12]
    ends = {rows_of(again, rank)[-1]["is"] for rank in range(ranks)}
    assert len(ends) == 1, again.text()
    kept = [next(row for row in rows_of(first, rank) if row.get("step") == 10) for rank in range(3)]
    before, after = residuals_of(kept, ranks), residuals_of(begun, ranks)
    assert any(abs(sums[0]) > 1e-3 for sums in before)
    for tensor, (one, other) in enumerate(zip(before, after, strict=True)):
        for a, b in zip(one, other, strict=True):
            assert abs(a - b) <= 1e-5 * max(1.0, abs(a)), (tensor, one, other)


def test_after_a_kill_there_may_be_fewer_ranks(tmp_path: Path) -> None:
    journal = str(tmp_path / "j")
    died = launch_ranks([RUN, journal, "20", "1:8:step"], 3, 120.0)
    assert died.returncodes[1] == -signal.SIGKILL, died.text()
    again = launch_ranks([RUN, journal, "11"], 2, 120.0)
    assert again.returncodes == [0, 0], again.text()
    begun = rows_of(again, 0)[0]
    assert begun["restored"] == steps_of(died)[begun["first"]]
    assert begun["first"] >= 7
