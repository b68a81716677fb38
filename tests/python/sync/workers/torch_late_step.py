"""wrap(model, optimizer, step_in_forward=True): the same training as without, to the bit."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from ranks import RANK, raises, run_cases
from stepping import OPTIMIZERS, at_once, late, losses, one_by_one, same_state
from torch import nn
from wrapping import GLOO, all_equal, batch, flat, loss_of, network

import scant
from scant import _scant


def case_any_optimizer_trains_as_without() -> None:
    for name, make in OPTIMIZERS.items():
        one, its = late(network(), make)
        other, others = at_once(network(), make)
        assert losses(one, its) == losses(other, others), name
        assert torch.equal(flat(one), flat(other)), name
        same_state(its, others)
        all_equal(one)
        one.close(), other.close()


def case_any_plan_trains_as_without() -> None:
    for plan in ("plain", "bf16", "10% q4", "10% q4, gather"):
        one, its = late(network(), plan=plan)
        other, others = at_once(network(), plan=plan)
        mine, theirs = losses(one, its), losses(other, others)
        if plan == "plain":  # the all_reduce may have taken another algorithm meanwhile
            torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs))
            torch.testing.assert_close(flat(one), flat(other), rtol=1e-3, atol=1e-3)
        else:
            assert mine == theirs, plan
            assert torch.equal(flat(one), flat(other)), plan
        all_equal(one)
        one.close(), other.close()


def case_the_last_buffers_first() -> None:
    module = network()
    one, _ = late(module)
    layout = one._averaging.layout
    point = (1.0, "q4", 1.0, "q4")
    buffers = [("split", 1, [point]) for _ in layout.parts]
    found = []
    for turned in (0, len(buffers), 3):
        plan = _scant.FusionPlan.make(layout, buffers, turned)
        assert plan.reversed == turned
        other, others = late(network(), plan=plan)
        found.append((losses(other, others), flat(other)))
        other.close()
    for values, parameters in found[1:]:
        assert values == found[0][0]
        assert torch.equal(parameters, found[0][1])
    with raises(scant.InvalidArgument, "1 reversed buffers"):
        _scant.FusionPlan.make(layout, buffers, 1)
    one.close()


def case_each_layer_is_stepped_when_forward_reaches_it() -> None:
    calls: list[int] = []

    class Counting(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            calls.append(sum(one.grad is not None for one in self.param_groups[0]["params"]))
            return super().step(closure)

    def make(parameters: Any) -> torch.optim.Optimizer:
        return Counting(parameters, 0.01)

    one, its = late(network(), make)
    one_by_one(one)
    found = losses(one, its)
    one.settle()
    # The first whole, before the forward that learns; then a call for each of five layers; the
    # last was settled.
    assert calls == [10] + [2] * 5 * 4 + [10], calls
    other, others = at_once(network(), make)
    assert found == losses(other, others)
    assert torch.equal(flat(one), flat(other))


class Attention(nn.Module):
    """Reads parameters of modules that it does not call: its projection's, and a tied one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.unentered = nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        self.scale = nn.Parameter(torch.ones(32))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + F.linear(x, self.unentered.weight, self.unentered.bias)
        x = self.norm(x) * self.scale
        out: torch.Tensor = x @ self.embedding.weight.T
        return out


def case_parameters_that_others_read() -> None:
    found = []
    for way in (late, at_once):
        torch.manual_seed(3)
        model, optimizer = way(Attention())
        if way is late:
            one_by_one(model)
        draw = torch.Generator().manual_seed(RANK)
        values = []
        for _ in range(6):
            tokens = torch.randint(16, (8, 12), generator=draw)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
            loss.backward()
            optimizer.step()
            values.append(float(loss.detach()))
        found.append((values, flat(model)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def case_clipping() -> None:
    """Parameters got from the wrapped model are settled; the norm is of what is applied."""
    found = []
    for way in (late, at_once):
        model, optimizer = way(network())
        norms = []
        for step in range(5):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
            optimizer.step()
        found.append((norms, flat(model)))
    assert found[0][0] == found[1][0]
    assert min(found[0][0]) > 0.1
    assert torch.equal(found[0][1], found[1][1])


def case_schedulers_before_and_after() -> None:
    found = []
    for way in (late, at_once):
        for early in (False, True):
            module = network()
            optimizer = torch.optim.AdamW(module.parameters(), 0.01)

            def given(_: Any, made: Any = optimizer) -> Any:
                return made

            def schedule(made: Any = optimizer) -> Any:
                return torch.optim.lr_scheduler.OneCycleLR(made, 0.05, total_steps=8)

            scheduler = schedule() if early else None
            model, _ = way(module, given)
            scheduler = scheduler or schedule()
            for step in range(6):
                loss_of(model, step).backward()
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            found.append(flat(model))
            model.close()
    for one in found[1:]:
        assert torch.equal(one, found[0])


def case_other_forwards_between() -> None:
    """Evaluation sees the stepped parameters; so do saving and a second model."""
    found = []
    for way in (late, at_once):
        model, optimizer = way(network())
        seen = []
        for step in range(5):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
            model.eval()
            if step == 2:
                with torch.inference_mode():
                    seen.append(float(loss_of(model, 90)))
            with torch.no_grad():
                seen.append(float(loss_of(model, 91)))
            model.train()
            if step == 3:
                state = copy.deepcopy(model.module.state_dict())
                seen.append(float(sum(one.double().sum() for one in state.values())))
                seen.append(float(optimizer.state_dict()["state"][0]["exp_avg"].sum()))
            if step == 4:
                seen.append(float(model.module(batch(5)[0]).sum()))  # past the wrapper
        found.append((seen, flat(model)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def case_accumulation_and_discarded_gradients() -> None:
    found = []
    for way in (late, at_once):
        model, optimizer = way(network())
        for step in range(5):
            optimizer.zero_grad()
            with model.no_sync():
                loss_of(model, 100 + step).backward()
            loss_of(model, step).backward()
            if step == 2:
                optimizer.zero_grad()  # thrown away
            if step == 3:
                loss_of(model, 200).backward()  # adds to the average
            optimizer.step()
        found.append(flat(model))
    assert torch.equal(found[0], found[1])


def case_parameters_that_nobody_uses_or_some() -> None:
    for unused in ("error", "zeros"):
        found = []
        for way in (late, at_once):
            model, optimizer = way(network(), unused=unused)
            for step in range(6):
                branch = step % 2 == 0 if unused == "error" else (step + RANK) % 3 == 0
                optimizer.zero_grad()
                loss_of(model, step, branch=branch).backward()
                optimizer.step()
            found.append(flat(model))
            all_equal(model)
        assert torch.equal(found[0], found[1]), unused


def case_half_precision_and_groups() -> None:
    found = []
    for way in (late, at_once):
        module = network().to(torch.bfloat16)

        def make(_: Any, module: nn.Module = module) -> torch.optim.Optimizer:
            parameters = list(module.parameters())
            groups = [{"params": parameters[:4], "lr": 0.02}, {"params": parameters[4:]}]
            return torch.optim.AdamW(groups, 0.01)

        model, optimizer = way(module, make)
        for step in range(4):
            x, y = batch(step)
            optimizer.zero_grad()
            F.cross_entropy(model(x.bfloat16()).float(), y).backward()
            optimizer.step()
        found.append(flat(model))
    assert torch.equal(found[0], found[1])


def case_the_planner_chooses() -> None:
    model, optimizer = late(network(), plan="auto")
    values = losses(model, optimizer, 60)
    report = model.last_step  # the last that a forward ended
    model.settle()
    assert values[-1] < values[0]
    all_equal(model)
    assert len(report["parts"]["needed"]) == len(model._averaging.layout.parts)
    assert max(report["parts"]["needed"]) > 0


run_cases(globals(), lambda: dist.barrier(group=GLOO))
dist.destroy_process_group()
