"""The benchmarks of codecs, run small so that they cannot rot; real ranks against simulated."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from programs import run

MODELS = ("transformer", "resnet")


def rows_of(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_benchmark_of_codecs_measures_every_part(tmp_path: pathlib.Path) -> None:
    done = run("bench/codec/codecs.py", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "codecs.jsonl")
    cases = {row["case"] for row in rows}
    assert cases == {"encode", "decode", "topk", "probe", "memory", "quality", "hook"}
    for row in rows:
        if row["case"] == "encode":
            assert row["entries"] == pytest.approx(row["wanted"], rel=0.02)
            limit = row["bytes_per_entry_max"]
            assert limit is None or row["bytes_per_entry"] <= limit
        if row["case"] == "memory":
            assert row["saved"] > 0.1
    quality = {row["method"]: row for row in rows if row["case"] == "quality"}
    assert quality["q4"]["energy_kept"] > 0.98
    # At the bytes of 2 bits the allocator keeps more than 2 bits everywhere.
    chosen = quality["allocator, 0.27 bytes/element"]
    assert chosen["bytes_per_element"] <= 0.27
    assert chosen["energy_kept"] > quality["q2"]["energy_kept"]
    assert "| encode |" in done.stdout


def test_real_ranks_train_to_the_same_bits_as_simulated_ones(tmp_path: pathlib.Path) -> None:
    arguments = ["--steps", "3", "--configurations", "f32", "1% q4", "--jobs", "1", "--real"]
    arguments += ["--models", *MODELS, "--out", str(tmp_path)]
    done = run("bench/codec/convergence.py", "--quick", *arguments)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "convergence.jsonl")
    for model in MODELS:
        own = [row for row in rows if row["model"] == model]
        trainings = {row["configuration"]: row for row in own if row["case"] == "convergence"}
        assert trainings["f32"]["bytes_per_element"] == 6.0  # 2 (P - 1) / P of 4, P = 4
        assert trainings["1% q4"]["bytes_per_element"] < 3 * 0.025
        for row in trainings.values():  # the resnet's first steps lead upwards
            assert model == "resnet" or row["loss"][-1] < row["loss"][0]
        real = [row for row in own if row["case"] == "real"]
        assert {row["configuration"] for row in real} == {
            "q4", "1% q4", "rank 8 of q8, q1", "rank 32 of q4",
        }  # fmt: skip
        assert all(row["same_bits"] for row in real)
        assert f"Model: {model}" in done.stdout


@pytest.mark.parametrize("name", ["codecs", "convergence"])
def test_benchmarks_of_codecs_explain_themselves(name: str) -> None:
    done = run(f"bench/codec/{name}.py", "--help", timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout and "with --quick:" in done.stdout
