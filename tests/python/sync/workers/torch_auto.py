"""Plans that scant.torch.wrap() chooses by itself: all ranks take the same; nothing is lost."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import RANK, SIZE, raises, run_cases
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817
from wrapping import GLOO, all_equal, flat, loss_of, network, train

import scant
import scant.torch
from scant.runlog import History, read
from scant.runlog.top import snapshot
from scant.runlog.words import tell


def agreements(model: scant.torch.Wrapped, steps: int) -> list[tuple[int, list[dict[str, Any]]]]:
    """Trains, and gives each agreement with its step; parameters are compared after every step."""
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    found = []
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        all_equal(model)
        assert model.last_step is not None
        if "agreement" in model.last_step:
            found.append((step, model.last_step["agreement"]))
    return found


def same_on_all(value: object) -> None:
    everyone: list[object] = [None] * SIZE
    dist.all_gather_object(everyone, value, group=GLOO)
    assert all(one == value for one in everyone), everyone


def case_all_ranks_agree_and_rank_0_tells() -> None:
    model = scant.torch.wrap(network())
    found = agreements(model, 45)
    steps = [step for step, _ in found]
    assert steps[0] == 4, steps
    assert len(steps) >= 2, steps
    same_on_all(steps)
    assert all(bool(lines) == (RANK == 0) for _, lines in found)
    if RANK == 0:
        kinds = [line["kind"] for line in found[0][1]]
        assert kinds == ["steps", "profile", "plan"], kinds
        chosen = found[0][1][2]
        assert chosen["why"] == "the first choice"
        assert 0 < chosen["chosen"]["kept"] <= 1
        assert abs(sum(chosen["points"].values()) - 1) < 1e-6


def case_the_log_tells_the_run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl"
        model = scant.torch.wrap(network(), log=str(path), fidelity_min=0.5)
        agreements(model, 20)
        model.close()
        assert path.exists() == (RANK == 0)
        if RANK == 0:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            assert lines[0]["kind"] == "run"
            assert lines[0]["ranks"] == SIZE
            assert lines[1]["kind"] == "steps"
            assert lines[1]["measuring"] is True
            history = History.of(read(path))
            assert history.run is not None
            assert f"{SIZE} ranks" in tell(history)
            shown = "\n".join(snapshot(history, str(path)))
            assert history.last is not None
            assert f"step {history.last.step:.0f} after" in shown, shown
            assert " a step, dense " in shown, shown


def case_exact_only() -> None:
    """fidelity_min=1: the same training as DistributedDataParallel's."""
    ours = scant.torch.wrap(network(), fidelity_min=1.0)
    theirs = DDP(network(), process_group=GLOO)
    train(ours, 20)
    train(theirs, 20)
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-3, atol=1e-4)


def case_a_plan_by_hand_is_measured_and_stays() -> None:
    model = scant.torch.wrap(network(), plan="q4")
    found = agreements(model, 30)
    assert len(found) >= 2
    if RANK == 0:
        kinds = {line["kind"] for _, lines in found for line in lines}
        assert kinds == {"steps"}, kinds
        last = found[-1][1][0]
        assert last["predicted_s"] > 0
        assert last["measuring"] is False


def case_by_hand_and_back() -> None:
    """What was kept by one plan goes on by the next, whoever chose it."""
    model = scant.torch.wrap(network())
    train(model, 7)
    model.set_plan("q2")
    train(model, 3)
    before = model.residual_norm
    assert before > 0
    model.set_plan("auto")
    found = agreements(model, 12)
    assert found[0][0] == 4
    model.set_plan("plain")
    train(model, 2)
    assert model.residual_norm == 0
    all_equal(model)


def case_options_that_contradict() -> None:
    with raises(scant.InvalidArgument, "fidelity_min", "plan='plain'"):
        scant.torch.wrap(network(), plan="plain", fidelity_min=0.5)
    with raises(TypeError, "wrap: no option 'plann'; there are: plan, fidelity_min"):
        scant.torch.wrap(network(), plann="q4")
    with raises(TypeError, "HookState: no option 'plann'; there are: plan, fidelity"):
        scant.torch.HookState(dist.group.WORLD, plann="q4")
    with raises(scant.InvalidArgument, "fidelity_min must lie in 0 to 1"):
        scant.torch.wrap(network(), fidelity_min=1.5)
    layout = scant._scant.GradientLayout([(1, 4), (4, 8)], SIZE)
    plan = scant._scant.FusionPlan.uniform(layout, "split", 1.0, "bf16", 64, 64, 0)
    for name in ("buffer_bytes", "first_buffer_bytes"):
        with raises(scant.InvalidArgument, f"{name}=4096", "plan='auto' has buffers of its own"):
            scant.torch.wrap(network(), **{name: 4096})
        with raises(scant.InvalidArgument, f"{name}=4096", "a FusionPlan has buffers of its own"):
            scant.torch.wrap(nn.Linear(8, 4), plan=plan, **{name: 4096})
    with raises(scant.InvalidArgument, "residual='none'", "plan='auto'"):
        scant.torch.wrap(network(), residual="none")
    with raises(scant.InvalidArgument, "residual_decay=0.5", "residual='none'"):
        scant.torch.wrap(network(), plan="q4", residual="none", residual_decay=0.5)
    model = scant.torch.wrap(network(), plan="q4", residual="none", buffer_bytes=4096)
    with raises(scant.InvalidArgument, "residual='none'", "plan='auto'"):
        model.set_plan("auto")
    train(model, 2)
    assert model.residual_norm == 0
    model = scant.torch.wrap(network(), plan="q4", buffer_bytes=4096)
    model.set_plan("auto")  # which leaves the buffers' size behind
    train(model, 2)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    with raises(scant.InvalidArgument, "the optimizer", "(2, 2)"):
        scant.torch.wrap(network(), other)


def case_a_log_that_rank_0_cannot_open() -> None:
    """All ranks are told, and can wrap again."""
    with raises(scant.InvalidArgument, "rank 0", "/nonexistent/run.jsonl"):
        scant.torch.wrap(network(), log="/nonexistent/run.jsonl")
    train(scant.torch.wrap(network()), 2)


def case_a_plan_by_hand_after_a_floor() -> None:
    """The floor rests while a plan is named, and holds again as soon as the planner chooses."""
    model = scant.torch.wrap(network(), fidelity_min=1.0)
    model.set_plan("q4")
    train(model, 2)
    assert model.residual_norm > 0
    model.set_plan("auto")
    for step in range(10):
        train(model, 1)
        assert model.residual_norm == 0, f"step {step} of exact averages left something"


def case_accumulated_gradients() -> None:
    """Steps of several backwards count as one."""
    model = scant.torch.wrap(network())
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for step in range(14):
        optimizer.zero_grad()
        with model.no_sync():
            loss_of(model, 2 * step).backward()
        loss_of(model, 2 * step + 1).backward()
        optimizer.step()
        all_equal(model)


def hooked(plan: str) -> tuple[nn.Module, scant.torch.HookState]:
    """A model of DDP on gloo, in many small buckets, whose gradients go by a plan."""
    model = DDP(network(), process_group=GLOO, bucket_cap_mb=0.02)
    state = scant.torch.HookState(dist.group.WORLD, plan=plan)
    model.register_comm_hook(state, scant.torch.ddp_hook)
    return model, state


def case_the_hook_of_ddp_by_plans() -> None:
    theirs = DDP(network(), process_group=GLOO)
    train(theirs, 8)
    model, state = hooked("plain")
    train(model, 8)
    torch.testing.assert_close(flat(model), flat(theirs), rtol=1e-4, atol=1e-5)
    state.close()
    for plan in ("q4", "auto"):
        model, state = hooked(plan)
        losses = train(model, 30)
        all_equal(model)
        assert sum(losses[-5:]) < sum(losses[:5])
        assert state.last_step is not None
        assert state.last_step["step"] == 28, "two steps pass before buckets are settled"
        saved = state.save()
        assert saved
        state.restore(saved)
        state.close()


def case_the_hook_carries_residuals_on() -> None:
    model, state = hooked("q2")
    train(model, 6)
    saved = state.save()
    second = scant.torch.HookState(dist.group.WORLD, plan="q2")
    second.restore(saved)
    assert second.save() == saved
    again = DDP(network(), process_group=GLOO)
    again.register_comm_hook(second, scant.torch.ddp_hook)
    train(again, 2)
    assert second.save() == saved, "nothing was sent by a plan yet"
    with raises(scant.InvalidArgument, "not both"):
        scant.torch.HookState(dist.group.WORLD, scant.torch.WrapOptions(), plan="q4")
    state.close()
    second.close()


def case_the_hook_notices_parameters_that_drift_apart() -> None:
    for check_every, noticed in ((2, True), (0, False)):
        model = DDP(network(), process_group=GLOO)
        state = scant.torch.HookState(dist.group.WORLD, plan="plain", check_every=check_every)
        model.register_comm_hook(state, scant.torch.ddp_hook)
        train(model, 3)
        with torch.no_grad():
            model.module.last.bias[0] += 1e-3 * (RANK == SIZE - 1)
        loss = loss_of(model, 3)  # step 4
        if noticed:
            with raises(scant.Mismatch, "the parameters of rank"):
                loss.backward()
        else:
            loss.backward()
        state.close()


class Recording(scant.torch.HookState):
    """Adds up what DDP hands over, by parameter."""

    given: dict[torch.Tensor, torch.Tensor]

    def bucket(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            self.given[parameter] += gradient
        return super().bucket(bucket)


def left_over(state: scant.torch.HookState) -> list[torch.Tensor]:
    """What all ranks have kept, sent by one exact step: its average, by place."""
    averaging = state._averaging
    assert averaging is not None
    averaging.set_plan(scant.torch.WrapOptions(plan="plain"))
    for place, view in enumerate(averaging.views):
        view.zero_()
        averaging.averager.ready(place)
    averaging.averager.finish(0)
    averaging.wait()
    return averaging.views


def case_the_hook_loses_nothing_of_what_is_not_used() -> None:
    """Applied + kept = given, also of a branch that no rank, or one alone, uses in most steps."""
    for plan, as_view in (("q2", False), ("5% q4", True)):
        model = DDP(
            network(), process_group=GLOO, find_unused_parameters=True,
            gradient_as_bucket_view=as_view,
        )  # fmt: skip
        state = Recording(dist.group.WORLD, plan=plan)
        state.given = {one: torch.zeros_like(one) for one in model.parameters()}
        applied = {one: torch.zeros_like(one) for one in model.parameters()}
        model.register_comm_hook(state, scant.torch.ddp_hook)
        waited = 0
        for step in range(20):
            model.zero_grad()
            used = step % 3 == 0 or (step == 8 and RANK == 0)
            loss_of(model, step, branch=used).backward()
            waited += model.module.branch.weight.grad is None
            for parameter in model.parameters():
                if parameter.grad is not None:
                    applied[parameter] += parameter.grad
        assert waited == 12, "DDP drops the average of what nobody used"
        assert state.last_step is not None
        assert not all(state.last_step["present"])
        views = left_over(state)
        for one, given in state.given.items():
            dist.all_reduce(given, group=GLOO)
            kept = views[state._places[id(one)]]
            torch.testing.assert_close(applied[one] + kept, given / SIZE, rtol=1e-4, atol=1e-5)
        state.close()


def case_hooks_whose_options_differ() -> None:
    with raises(scant.Mismatch, "option 'plan' is 'q2' on rank 0 and 'q4' on rank 1"):
        scant.torch.HookState(dist.group.WORLD, plan="q4" if RANK else "q2")


run_cases(globals(), lambda: dist.barrier(group=GLOO))
dist.destroy_process_group()
