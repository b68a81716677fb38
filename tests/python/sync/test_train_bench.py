"""The benchmark of trainings, run small, and what it makes of rows whose figures are known."""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
from typing import Any

import pytest
from programs import ROOT, run

sys.path.insert(0, str(ROOT / "bench"))
sys.path.insert(0, str(ROOT / "bench" / "sync"))

import train_figures
import train_report
import train_sides

Row = dict[str, Any]


def lab_of(**more: Any) -> Row:
    return {"model": "transformer", "ranks": 4, "network": "100mbit", **more}


def training(name: str, losses: list[float], step_s: float, seed: int = 1, **more: Any) -> Row:
    return lab_of(
        case="training",
        configuration=name,
        seed=seed,
        loss=losses,
        at_s=[step_s * (i + 1) for i in range(len(losses))],
        held_out=[(len(losses), 1, losses[-1])],
        alone_s=[0.9, 1.1],
        **more,
    )


def side(seconds: float, kept: float | None = None, **said: Any) -> Row:
    row: Row = {"seconds": [seconds] * 3, "samples": [seconds], "exposed_s": seconds - 1}
    row |= {"cpu_s": 1.0, "wire_bytes_per_rank": 1e6}
    if kept is not None:
        row["said"] = {"kept": kept, "plan": "a plan", "step_s": seconds, **said}
    return row


def falling(rate: float) -> list[float]:
    return [5.0 - rate * i for i in range(100)]


def steps_row(auto_s: float = 1.1) -> Row:
    sides = {
        "alone": side(1.0),
        "plain": side(5.0, 1.0, predicted_s=4.0),
        "q4": side(1.0, 0.97, predicted_s=None),
        "q8": side(1.05, 0.999, predicted_s=1.05),
        "auto": side(auto_s, 0.99, predicted_s=auto_s),
        "DDP, 25 MB": side(5.0),
        "PowerSGD 4": side(1.5),
        "PowerSGD 16": side(1.4),
    }
    kinds = {"alone": "alone", "plain": "pinned", "q4": "pinned", "q8": "pinned", "auto": "auto"}
    return lab_of(
        case="steps",
        rho=5.0,
        sides=sides,
        kinds={name: kinds.get(name, "peer") for name in sides},
        curves={name: "f32" if name.startswith("DDP") else name for name in sides},
        plans=["a plan"],
    )


def all_rows(**more: Any) -> list[Row]:
    return [
        steps_row(**more),
        training("f32", falling(0.02), 5.0),
        training("PowerSGD 4", falling(0.01), 1.5),
        training("auto", falling(0.02), 1.25),
    ]


def test_share_of_the_limit_and_the_best_peer() -> None:
    rows = all_rows()
    (one,), missing = train_figures.outcomes(rows, train_figures.Curves(rows))
    assert missing == []
    assert one.plain_steps == one.auto_steps == 80
    assert one.share == pytest.approx(80 * 1.0 / (80 * 1.25))
    # PowerSGD 4 has half the slope: in 100 steps it does not get there, and 16 has no curve.
    assert one.peers == {"DDP, 25 MB": pytest.approx(400.0), "PowerSGD 4": None}
    assert one.unknown == ["PowerSGD 16"]
    assert one.best_peer == "DDP, 25 MB"
    assert one.peer_ratio == pytest.approx(4.0)


def test_a_training_that_misses_the_target_has_no_share() -> None:
    rows = [*all_rows()[:-1], training("auto", falling(0.01), 1.0)]
    (one,), _ = train_figures.outcomes(rows, train_figures.Curves(rows))
    assert (one.auto_steps, one.share, one.peer_ratio) == (None, None, None)
    missed = train_figures.gate(rows, train_figures.Curves(rows), [])
    assert any("was not reached" in line for line in missed)


def test_seeds_are_compared_with_their_own() -> None:
    rows = [
        training("f32", falling(0.02), 5.0, seed=1),
        training("f32", falling(0.03), 5.0, seed=2),
        training("auto", falling(0.03), 1.0, seed=2),
        training("auto", falling(0.5), 1.0, seed=3),
    ]
    (one,), _ = train_figures.outcomes(rows, train_figures.Curves(rows))
    assert one.seeds == [2]
    assert one.plain_steps == one.auto_steps == 80


def test_never_worse_counts_plans_of_at_least_the_fidelity() -> None:
    (one,) = train_figures.never_worse([steps_row(auto_s=1.26)])
    assert one.pinned == "q8"  # q4 is faster and keeps less
    assert one.ratio == pytest.approx(1.2)
    missed = train_figures.gate([steps_row(auto_s=1.26)], train_figures.Curves([]), [])
    assert any("auto ÷ q8 1.200 > 1.1" in line for line in missed), missed


def test_predictions_of_periods_that_were_predicted() -> None:
    errors = dict(train_figures.prediction_errors([steps_row()]))
    assert {name.split(", ")[-1]: error for name, error in errors.items()} == {
        "plain": pytest.approx(-0.2),
        "q8": 0.0,
        "auto": 0.0,
    }


def test_gate_names_what_is_missing() -> None:
    rows = all_rows()
    labs = [("transformer", 4, "100mbit"), ("resnet", 8, "none")]
    missed = train_figures.gate(rows, train_figures.Curves(rows), labs)
    assert "resnet, 8, none: no row" in missed
    assert "transformer, 4 ranks, 100mbit, auto: share of the limit 0.800 < 0.88" in missed
    assert "transformer, 4 ranks, 100mbit, auto: no recorded training for PowerSGD 16" in missed
    assert not any(line.startswith("transformer, 4, 100mbit") for line in missed)


def misses(rows: list[Row]) -> list[str]:
    return train_figures.gate(rows, train_figures.Curves(rows), [])


def test_gate_wants_bytes_within_the_budget_and_no_tensor_left_out() -> None:
    rows = all_rows()
    sides = rows[0]["sides"]
    sides["q4"]["said"]["sent_to_budget"] = 1.009
    sides["q8"]["silent"] = sides["q4"]["silent"] = [0, 70]
    assert not any("budget" in line or "sent nothing" in line for line in misses(rows))
    sides["q8"]["said"]["sent_to_budget"] = 0.98
    sides["auto"]["silent"] = [1, 70]
    rows[-1] |= {"silent": [2, 70], "sent_to_budget": 1.011}
    place = "transformer, 4 ranks, 100mbit"
    found = [line for line in misses(rows) if "budget" in line or "sent nothing" in line]
    assert found == [
        f"{place}, q8: bytes sent ÷ budget 0.980, off by more than 0.01",
        f"{place}, auto: 1 times a tensor's part sent nothing",
        f"{place}, training auto: 2 times a tensor's part sent nothing",
        f"{place}, training auto: bytes sent ÷ budget 1.011, off by more than 0.01",
    ]


def test_a_part_is_silent_when_all_it_had_is_left() -> None:
    parts = {"energy": [4.0, 0.0, 2.0, float("inf")], "energy_left": [4.0, 0.0, 1.0, float("inf")]}
    assert train_sides.silent_parts({"parts": parts}) == (1, 2)


def test_gate_wants_seeds_and_tuned_peers() -> None:
    rows = all_rows()
    place = "transformer, 4 ranks, 100mbit, auto"
    few = [f"{place}: 1 of 3 seeds", f"{place}: 1 of 2 DDP sides"]
    few.append(f"{place}: 2 of 3 PowerSGD sides")
    assert [line for line in misses(rows) if " of " in line and "sides" in line] == few[1:]
    assert few[0] in misses(rows)
    rows[0]["kinds"] |= {"DDP, 1 MB": "peer", "PowerSGD 1": "peer"}
    rows[0]["curves"] |= {"DDP, 1 MB": "f32", "PowerSGD 1": "PowerSGD 1"}
    rows[0]["sides"]["DDP, 1 MB"] = side(5.0)
    for seed in (2, 3):
        rows += [training("f32", falling(0.02), 5.0, seed)]
        rows += [training("auto", falling(0.02), 1.25, seed)]
    assert not set(few) & set(misses(rows))


def test_no_peer_that_reaches_the_target_is_no_miss(tmp_path: pathlib.Path) -> None:
    rows = all_rows()
    for name in ("DDP, 25 MB", "PowerSGD 16"):
        del rows[0]["kinds"][name], rows[0]["sides"][name], rows[0]["curves"][name]
    (one,), _ = train_figures.outcomes(rows, train_figures.Curves(rows))
    assert one.no_peer
    assert one.peer_ratio is None
    assert not any("÷ scant" in line for line in misses(rows))
    assert "no peer reaches it" in train_report.write(rows, [], tmp_path)
    rows[-1] = training("auto", falling(0.01), 1.0)
    assert "no peer reaches it" not in train_report.write(rows, [], tmp_path)


def test_plans_without_a_recorded_training_are_reported(tmp_path: pathlib.Path) -> None:
    names = ("fp16", "ssfusion 1%", "adtopk 1%")
    assert set(names) < set(train_sides.PLANS)
    wanted = train_sides.specs([25], [1], names)
    rows = all_rows()
    for one in wanted:
        if one.kind == "pinned":
            rows[0]["kinds"][one.name], rows[0]["curves"][one.name] = one.kind, one.curve
            rows[0]["sides"][one.name] = side(1.2, 0.5)
    text = train_report.write(rows, [], tmp_path)
    assert all(f"| {name} | 1,200.0" in text for name in names)


def test_curves_of_the_resnet_come_from_its_own_trainings() -> None:
    lab = {"model": "resnet", "ranks": 8}
    rows = [
        training(name, falling(0.02), 1.0) | lab for name in ("f32", "fp16", "PowerSGD 2", "auto")
    ]
    simulated = {"case": "convergence", "configuration": "PowerSGD 4", "seed": 1, "loss": [1.0]}
    curves = train_figures.Curves([*rows, simulated])
    like = lab_of(**lab)
    for name in ("f32", "fp16", "PowerSGD 2"):
        assert curves.loss(like, name, [1]) == falling(0.02)
    assert curves.loss(like, "PowerSGD 4", [1]) is None
    assert curves.loss(lab_of(), "PowerSGD 4", [1]) == [1.0]


def test_report_of_rows(tmp_path: pathlib.Path) -> None:
    rows = [*all_rows(), lab_of(case="lab", error="exit codes [1]")]
    text = train_report.write(rows, [], tmp_path)
    assert "| 0.800 |" in text
    assert "exit codes [1]" in text
    assert "no recorded training of PowerSGD 16" in text
    page = (tmp_path / "train.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == 2


def test_benchmark_of_trainings_measures_every_side(tmp_path: pathlib.Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    more = ("--models", "transformer", "resnet", "--train", "f32", "auto", "--train-steps", "6")
    done = run("bench/sync/train.py", "--quick", *more, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    for model in ("transformer", "resnet"):
        steps, plain, auto = [row for row in rows if row["model"] == model]
        peers = {"DDP, 25 MB", "fp16, 25 MB", "PowerSGD 1", "DDP on scant"}
        assert set(steps["sides"]) == {"alone", "plain", "q4", *train_figures.OURS} | peers
        assert steps["rho"] > 0
        sides = steps["sides"]
        assert all(len(one["samples"]) == 2 for one in sides.values())
        # Two ranks: each sends its gradients once, all of them or an eighth.
        dense = 4 * steps["elements"]
        for name in ("plain", "DDP, 25 MB", "DDP on scant"):
            assert dense < sides[name]["wire_bytes_per_rank"] < 1.3 * dense
        assert sides["q4"]["wire_bytes_per_rank"] < 0.3 * dense
        assert sides["alone"]["wire_bytes_per_rank"] < 0.01 * dense
        assert 0.9 < sides["q4"]["said"]["kept"] < 1
        for row in (plain, auto):
            assert row["same_parameters"]
            assert len(row["loss"]) == len(row["at_s"]) == 6
            assert row["at_s"] == sorted(row["at_s"])
        # The same weights and samples; what is rounded away is not seen before the second loss.
        assert auto["loss"][0] == pytest.approx(plain["loss"][0], rel=1e-6)
        assert auto["plans"][0][0] == 5
        if model == "transformer":  # two pictures a step show no trend so soon
            assert auto["loss"][-1] < auto["loss"][0]
    assert "share of the limit" in (tmp_path / "train.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--steps", "0"), "--steps"),
        (("--ranks", "1"), "--ranks"),
        (("--networks", "fast"), "fast"),
        (("--train", "PowerSGD"), "PowerSGD"),
    ],
)
def test_benchmark_of_trainings_refuses_what_cannot_be_measured(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], named: str
) -> None:
    done = run("bench/sync/train.py", *arguments, "--out", str(tmp_path), timeout=60)
    assert done.returncode == 2
    assert named in done.stderr
    assert not list(tmp_path.iterdir())


def test_benchmark_of_trainings_shows_its_defaults() -> None:
    done = run("bench/sync/train.py", "--help", timeout=60)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split("options:")[1].split())
    for option, text in {
        "models": "transformer resnet; with --quick: transformer",
        "ranks": "4 8; with --quick: 2",
        "networks": "none 1gbit 100mbit 25mbit; with --quick: 1gbit",
        "train-steps": "250; with --quick: 12",
    }.items():
        assert re.search(rf"--{option} [^()]*\(default: {re.escape(text)}\)", shown), shown
