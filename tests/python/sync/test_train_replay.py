"""Trainings whose computing is replayed: on a clock that only waiting moves."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any

import pytest
import torch
from programs import ROOT, run

sys.path.insert(0, str(ROOT / "bench"))
sys.path.insert(0, str(ROOT / "bench" / "sync"))

import replay_figures
import train_figures
import train_replay
import train_report
from train_replay import Recording, ReplayTask, Timeline


class FakeClock:
    """Sleeping moves it, a bit too far as real ones do; so does `busy`, what a host does else."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.at, self.late_s, self.slept = 100.0, late_s, 0.0

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.at += seconds + self.late_s
        self.slept += seconds

    def timeline(self) -> Timeline:
        return Timeline(self.now, self.sleep)


def recording_of(layers: int = 3) -> Recording:
    draw = torch.Generator().manual_seed(1)
    return Recording(
        names=[f"layer_{i}" for i in range(layers)],
        forward_s=[0.1 * (i + 1) for i in range(layers)],
        backward_s=[0.25 * (i + 1) for i in range(layers)],
        after_s=0.05,
        optimizer_s=0.4,
        gradients=[
            [torch.randn((3, i + 2), generator=draw) for i in range(layers)] for _ in range(2)
        ],
    )


def one_step(task: ReplayTask, model: torch.nn.Module) -> None:
    task.loss(model, torch.Generator()).backward()  # type: ignore[no-untyped-call]


def test_backward_hands_out_exactly_the_recorded_gradients_in_turn() -> None:
    recording = recording_of()
    task = ReplayTask(recording, FakeClock().timeline())
    model = task.model()
    for step in range(5):
        model.zero_grad(set_to_none=True)
        one_step(task, model)
        got = [one.grad for one in model.parameters()]
        for gradient, wanted in zip(got, recording.gradients[step % 2], strict=True):
            assert gradient is not None
            assert torch.equal(gradient, wanted)
            gradient.zero_()  # what is handed out is a copy


def arrivals(clock: FakeClock, task: ReplayTask, busy_s: float = 0.0) -> list[float]:
    """The moments at which gradients are there, from the last layer's on."""
    model = task.model()
    at: list[float] = []

    def arrived(_: torch.Tensor) -> None:
        at.append(clock.at)
        clock.at += busy_s

    for parameter in model.parameters():
        untyped: Any = parameter
        untyped.register_post_accumulate_grad_hook(arrived)
    one_step(task, model)
    return at


def test_waits_by_the_recorded_schedule() -> None:
    clock = FakeClock()
    task = ReplayTask(recording_of(), clock.timeline())
    at = arrivals(clock, task)
    forward_ends = 100.0 + 0.1 + 0.2 + 0.3
    assert at == pytest.approx([forward_ends + 0.75, forward_ends + 1.25, forward_ends + 1.5])
    assert clock.at == pytest.approx(forward_ends + 1.55)
    assert clock.slept == pytest.approx(2.15)


def test_what_the_host_does_meanwhile_delays_no_gradient() -> None:
    clock = FakeClock(late_s=0.01)
    at = arrivals(clock, ReplayTask(recording_of(), clock.timeline()), busy_s=0.2)
    # A sleep ends late by itself; deadlines do not move with it.
    begins = at[0] - 0.75 - 0.01
    assert at == pytest.approx([begins + 0.76, begins + 1.26, begins + 1.51])
    # Nor does what is late by less than work is launched ahead.
    clock = FakeClock(late_s=0.9 * train_replay.LAUNCHED_AHEAD_S)
    at = arrivals(clock, ReplayTask(recording_of(), clock.timeline()))
    assert at[0] == pytest.approx(100.0 + 0.1 + 0.2 + 0.3 + 0.75 + clock.late_s)
    # A host that is busy for longer than a layer takes finds its gradient there.
    clock = FakeClock()
    at = arrivals(clock, ReplayTask(recording_of(), clock.timeline()), busy_s=0.6)
    assert at == pytest.approx([at[0], at[0] + 0.6, at[0] + 1.2])


def test_a_forward_that_waits_for_a_parameter_starts_late() -> None:
    clock = FakeClock()
    task = ReplayTask(recording_of(), clock.timeline())
    model = task.model()
    layers: Any = model.layers
    layers["layer_1"].register_forward_pre_hook(lambda *_: setattr(clock, "at", 107.0))
    task.loss(model, torch.Generator())
    assert clock.at == pytest.approx(107.0 + 0.2 + 0.3)


def test_the_optimizer_takes_the_time_of_the_elements_that_have_a_gradient() -> None:
    clock, recording = FakeClock(), recording_of()
    task = ReplayTask(recording, clock.timeline())
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    one_step(task, model)
    began = clock.at
    optimizer.step()
    assert clock.at - began == pytest.approx(0.4)
    for parameter, gradient in zip(model.parameters(), recording.gradients[0], strict=True):
        assert torch.equal(parameter, -train_replay.RATE * gradient)
    last = list(model.parameters())[-1]
    for parameter in model.parameters():
        parameter.grad = last.grad if parameter is last else None
    began = clock.at
    optimizer.step()
    assert clock.at - began == pytest.approx(0.4 * last.numel() / recording.elements)


def test_the_made_recording_is_the_stated_one() -> None:
    one = train_replay.made(quick=False, seed=1, rank=2)
    assert len(one.names) == 16
    assert one.elements == 3_200_000
    step_s = sum(one.forward_s) + sum(one.backward_s) + one.after_s + one.optimizer_s
    assert step_s == pytest.approx(0.321)
    same, other = (train_replay.made(quick=False, seed=1, rank=rank) for rank in (2, 3))
    assert torch.equal(one.gradients[1][5], same.gradients[1][5])
    assert not torch.equal(one.gradients[1][5], other.gradients[1][5])


class TwoLayers:
    """A model to record."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def model(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=0.01)

    def loss(self, model: torch.nn.Module, draw: torch.Generator) -> torch.Tensor:
        loss: torch.Tensor = model(torch.randn(5, 3, generator=draw)).square().mean()
        names = [name for name, _ in model.named_parameters()]
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        self.seen.append(dict(zip(names, gradients, strict=True)))
        return loss

    def held_out_loss(self, model: torch.nn.Module) -> float:
        return 0.0


def test_records_a_models_gradients_and_the_order_of_its_layers() -> None:
    task = TwoLayers()
    recording = train_replay.record(task, seed=3, rank=1)
    assert {name[0] for name in recording.names[:2]} == {"0"}
    assert {name[0] for name in recording.names[2:]} == {"2"}
    for step, gradients in zip(task.seen[train_replay.WARM_UP :], recording.gradients, strict=True):
        for name, gradient in zip(recording.names, gradients, strict=True):
            assert torch.equal(gradient, step[name.replace("/", ".")])
    times = [*recording.forward_s, *recording.backward_s, recording.after_s]
    assert min(times) >= 0
    assert sum(recording.forward_s) > 0
    assert recording.optimizer_s > 0
    clock = FakeClock()
    arrived = arrivals(clock, ReplayTask(recording, clock.timeline()))
    assert len(arrived) == 4
    assert clock.slept == pytest.approx(sum(times))


# ---- what rows of it say --------------------------------------------------------------------


def replay_row(rho: float = 5.0, auto_s: float = 0.34, **more: Any) -> dict[str, Any]:
    seconds = {"alone": 0.32, "auto": auto_s, "auto, step in forward": 0.33, "DDP, 25 MB": 1.9}
    kinds = {"alone": "alone", "auto": "auto", "auto, step in forward": "auto"}
    sides = {
        name: {
            "seconds": [one] * 3,
            "samples": [one, one],
            "exposed_s": one - 0.32,
            "cpu_s": 0.1,
            "wire_bytes_per_rank": 1e6,
        }
        for name, one in seconds.items()
    }
    row: dict[str, Any] = {"case": "replay", "compute": "replayed", "model": train_replay.MADE}
    row |= {"ranks": 4, "network": "100mbit", "rho": rho, "sides": sides}
    return row | {"kinds": {name: kinds.get(name, "peer") for name in sides}} | more


LABS = [(train_replay.MADE, 4, "100mbit")]


def test_gate_wants_the_stated_share() -> None:
    assert replay_figures.gate([replay_row()], LABS) == []
    place = "made, 4 ranks, 100mbit, auto"
    for rho, auto_s, share, least in [(5.0, 0.35, "0.914", 0.93), (0.5, 0.34, "0.941", 0.96)]:
        missed = replay_figures.gate([replay_row(rho, auto_s)], LABS)
        assert missed == [f"{place}: share of a free step {share} < {least}"]
    assert replay_figures.gate([replay_row(20.0, 0.5)], LABS) == []
    assert replay_figures.gate([replay_row(5.0, 0.35, model="resnet")], []) == []


def test_gate_wants_every_row_and_no_faster_peer() -> None:
    missed = replay_figures.gate([], LABS)
    assert missed == ["made, 4, 100mbit: no row"]
    missed = replay_figures.gate([replay_row(20.0, 2.0)], LABS)
    assert missed == ["made, 4 ranks, 100mbit, auto: DDP, 25 MB ÷ scant 0.950 < 1.0"]


def test_replayed_rows_are_told_apart(tmp_path: pathlib.Path) -> None:
    row = replay_row()
    assert train_figures.good([row], "steps") == []
    text = train_report.write([row], [], tmp_path)
    assert "| replayed | made | 4 | 100mbit | 5.00 | auto | 0.941 (0.941–0.941) |" in text
    assert "Compute replayed, made, 4 ranks, 100mbit" in text
    assert "Compute replayed" in (tmp_path / "train.html").read_text()


def test_replayed_benchmark_measures_every_side(tmp_path: pathlib.Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    more = ("--compute", "replay", "--models", "made", "transformer")
    done = run("bench/sync/train.py", "--quick", *more, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["made", "transformer"]
    for row in rows:
        assert (row["case"], row["compute"]) == ("replay", "replayed")
        peers = {"DDP, 25 MB", "fp16, 25 MB", "PowerSGD 1"}
        assert set(row["sides"]) == {"alone", *train_figures.OURS} | peers
        # Two ranks: each sends its gradients once.
        sent = row["sides"]["DDP, 25 MB"]["wire_bytes_per_rank"]
        assert sent > 4 * row["elements"]
        assert row["sides"]["alone"]["wire_bytes_per_rank"] < 0.1 * sent
    # 16 ms by the schedule, of which none may be left out.
    assert rows[0]["sides"]["alone"]["seconds"][1] >= 0.016
    assert "share of a free step" in (tmp_path / "train.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--models", "made"), "--compute replay"),
        (("--compute", "replay", "--parts", "training"), "--parts"),
    ],
)
def test_replayed_benchmark_refuses_what_it_cannot_do(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], named: str
) -> None:
    done = run("bench/sync/train.py", *arguments, "--out", str(tmp_path), timeout=60)
    assert done.returncode == 2
    assert named in done.stderr
