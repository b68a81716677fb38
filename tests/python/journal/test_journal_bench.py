"""The journal's benchmark and its runs with faults, small, so that they cannot rot."""

from __future__ import annotations

import json
import os
import pathlib
import random
import sys
from typing import Any

import pytest
from programs import ROOT, run

torch = pytest.importorskip("torch")
sys.path.insert(0, str(ROOT / "bench"))
sys.path.insert(0, str(ROOT / "bench" / "journal"))

import journal_damage  # noqa: E402

import journal as bench  # noqa: E402

Row = dict[str, Any]


def rows_of(path: pathlib.Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_benchmark_of_the_journal_measures_every_way(tmp_path: pathlib.Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    done = run("bench/journal/journal.py", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "journal.jsonl")
    assert [row["name"] for row in rows] == [
        "journal", "journal, unsynced_steps=1", 'journal, log="never"', "torch.save each 1",
        "dcp.save each 1", "dcp.async_save each 1",
    ]  # fmt: skip
    by_name = {row["name"]: row for row in rows}
    for row in rows:
        assert len(row["with"]["samples"]) == len(row["without"]["samples"]) == 2
        assert row["recovery_s"] > 0
        assert row["stall_s"] == sorted(row["stall_s"])
    journal, saved = by_name["journal"], by_name["torch.save each 1"]
    assert journal["lost"] == journal["holes"] == 0
    assert journal["replayed"] > 0
    # 4 bits of a gradient's 32 in the log; 3 f32 numbers of each parameter in a checkpoint.
    assert 3.5 < saved["state_bytes"] / journal["log_bytes_per_step"] / 6 < 4.5
    assert by_name['journal, log="never"']["log_bytes_per_step"] == 0
    assert "steps replayed" in (tmp_path / "journal.md").read_text()
    assert not [one for one in tmp_path.iterdir() if one.is_dir()]


def row_of(**changed: Any) -> Row:
    row = {
        "network": "loopback", "ranks": 4, "plan": "q4", "name": "journal",
        "ratio": [1.0, 1.01, 1.02], "stall_s": [1e-3, 4e-3, 9e-3], "rss_bytes": [20e6, 10e6],
        "memory_bytes_max": [36e6, 17e6], "holes": 0,
    }  # fmt: skip
    return {**row, **changed}


def test_gate_names_what_is_missed_and_what_is_missing() -> None:
    place = ("loopback", 4, "q4", "journal")
    assert bench.gate([row_of()], [place]) == []
    rows = [
        row_of(ratio=[1.0, 1.03, 1.1], stall_s=[1e-3, 6e-3, 9e-3], rss_bytes=[20e6, 40e6], holes=1)
    ]
    assert bench.gate(rows, [place, (*place[:3], "dcp.save each 1")]) == [
        "loopback, 4 ranks, q4, journal: overhead 3.0 % > 2 %",
        "loopback, 4 ranks, q4, journal: p99 stall 6.00 ms > 5 ms",
        "loopback, 4 ranks, q4, journal: rank 1 took 40.00 MB more, its bound is 17.00 MB",
        "loopback, 4 ranks, q4, journal: 1 steps are not in the log",
        "loopback, 4, q4, dcp.save each 1: no row",
    ]
    assert bench.gate([row_of(error="lost")], [place])[0].endswith("journal: lost")


def test_high_quantiles() -> None:
    assert bench.high([float(one) for one in range(1, 201)]) == [100.5, 198.0, 200.0]
    assert bench.high([3.0]) == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--steps", "25"), "--steps"),
        (("--ranks", "1"), "--ranks"),
        (("--base-every", "0"), "--base-every"),
        (("--networks", "fast"), "fast"),
    ],
)
def test_benchmark_of_the_journal_refuses_what_cannot_be_measured(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], named: str
) -> None:
    done = run("bench/journal/journal.py", *arguments, "--out", str(tmp_path), timeout=60)
    assert done.returncode == 2
    assert named in done.stderr


# ---- faults ----------------------------------------------------------------------------------


def test_runs_with_faults_all_resume(tmp_path: pathlib.Path) -> None:
    done = run("bench/journal/journal_faults.py", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "journal_faults.jsonl")
    assert len(rows) == 10
    assert all(row["outcome"] != "wrong" and not row["wrong"] for row in rows)
    assert sum(row["fault"] == "kill" for row in rows) == 6
    assert "kill -9" in (tmp_path / "journal_faults.md").read_text()


BASES = [
    journal_damage.Base(
        10, "base-000000000010", (journal_damage.Entry(20, 11, "log-20.scj", 48, 100),)
    ),
    journal_damage.Base(
        8,
        "base-000000000008",
        (
            journal_damage.Entry(18, 9, "log-18.scj", 48, 100),
            journal_damage.Entry(19, 10, "log-18.scj", 100, 150),
            journal_damage.Entry(20, 11, "log-20.scj", 48, 100),
        ),
    ),
]


@pytest.mark.parametrize(
    ("gone", "without", "step"),
    [
        (set(), "", 11),
        ({20}, "", 10),
        ({18}, "", 11),
        (set(), "base-000000000010", 11),
        ({19}, "base-000000000010", 9),
        ({20}, "base-000000000010", 10),
    ],
)
def test_what_damage_leaves(gone: set[int], without: str, step: int) -> None:
    assert journal_damage.newest(BASES, gone, without) == step
    assert journal_damage.newest([], gone) is None


def test_damage_of_a_journal_is_where_it_says(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "j"
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    import scant

    with scant.Journal(path, base_every=5, log="always").attach(model, optimizer) as journal:
        journal.restore()
        for _ in range(8):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
    assert journal_damage.newest(journal_damage.listing(path)) == 8
    damage = journal_damage.torn(path, random.Random(1))
    assert damage.newest is not None and 5 <= damage.newest < 8
    assert journal_damage.newest(journal_damage.listing(path)) == damage.newest
