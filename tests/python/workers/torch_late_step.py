"""wrap(model, optimizer, step_in_forward=True): the same training as without, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from ranks import RANK, SIZE, raises, run_cases
from torch import nn
from wrapping import GLOO, all_equal, batch, flat, loss_of, network

import scant
import scant.torch
from scant import _scant
from scant.torch.late_step import Travelling

Make = Callable[[Any], torch.optim.Optimizer]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 0.01)


def late(module: nn.Module, make: Make = adamw, **options: Any) -> Any:
    """(the wrapped model, its optimizer); several buffers, so that some come before others."""
    options.setdefault("plan", "q4")
    options = {"buffer_bytes": 4096, "first_buffer_bytes": 1, **options}
    optimizer = make(module.parameters())
    return scant.torch.wrap(module, optimizer, step_in_forward=True, **options), optimizer


def at_once(module: nn.Module, make: Make = adamw, **options: Any) -> Any:
    model, optimizer = late(module, make, **options)
    model.close()
    options = {"plan": "q4", "buffer_bytes": 4096, "first_buffer_bytes": 1, **options}
    return scant.torch.wrap(module, optimizer, **options), optimizer


def losses(model: Any, optimizer: Any, steps: int = 6, **more: Any) -> list[float]:
    found = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, step, **more)
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def same_state(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    for mine, theirs in zip(one.state.values(), other.state.values(), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, theirs[name]), name
            else:
                assert value == theirs[name], name


OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 0.1, 0.9, nesterov=True),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 0.01, amsgrad=True),
    "AdamW, foreach": lambda parameters: torch.optim.AdamW(parameters, 0.01, foreach=True),
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, 0.01, fused=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, 0.01),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, 0.01, momentum=0.9),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, 0.01),
    "Adadelta": lambda parameters: torch.optim.Adadelta(parameters, 0.1),
    "Adamax": lambda parameters: torch.optim.Adamax(parameters, 0.01),
}


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


class OneByOne:
    """An averager that says of nothing that it is there before it was waited for."""

    def __init__(self, averager: Any) -> None:
        self._averager = averager
        self.waited: list[int] = []

    def wait_for(self, tensors: list[int]) -> bool:
        self.waited += tensors
        there: bool = self._averager.wait_for(tensors)
        return there

    def arrived(self) -> list[int]:
        here = [one for one in self._averager.arrived() if one in self.waited]
        self.waited = []
        return here


def case_each_layer_is_stepped_when_forward_reaches_it() -> None:
    calls: list[int] = []

    class Counting(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            calls.append(sum(one.grad is not None for one in self.param_groups[0]["params"]))
            return super().step(closure)

    def make(parameters: Any) -> torch.optim.Optimizer:
        return Counting(parameters, 0.01)

    one, its = late(network(), make)
    one._late._averager = OneByOne(one._averager)
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
            model._late._averager = OneByOne(model._averager)
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


def case_travelling_gradients_refuse_every_use() -> None:
    model, optimizer = late(network())
    loss_of(model, 0).backward()
    gradients = [one.grad for one in model.module.parameters()]
    assert all(isinstance(one, Travelling) for one in gradients)
    for use in (torch.sum, torch.clone, lambda one: one.mul_(2), lambda one: one.float().norm()):
        with raises(scant.InvalidArgument, "settle()"):
            use(gradients[0])
    with raises(scant.InvalidArgument, "settle()"):
        nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
    model.settle()
    assert not any(isinstance(one.grad, Travelling) for one in model.module.parameters())
    optimizer.step()


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


def case_an_optimizer_that_counts_its_calls() -> None:
    class Counts(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["calls"] = group.get("calls", 0) + 1
                group["lr"] = 0.1 / group["calls"]
            return super().step(closure)

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = Counts(parameters, 0.1)
        optimizer.param_groups[0]["calls"] = 0
        return optimizer

    one, its = late(network(), make)
    one._late._averager = OneByOne(one._averager)
    other, others = at_once(network(), make)
    assert losses(one, its) == losses(other, others)
    assert torch.equal(flat(one), flat(other))
    assert its.param_groups[0]["calls"] == 6


def case_compiled() -> None:
    module = network()
    optimizer = adamw(module.parameters())
    compiled = torch.compile(module, backend="eager")
    model = scant.torch.wrap(compiled, optimizer, step_in_forward=True, plan="q4")
    other, others = at_once(network())
    mine, theirs = losses(model, optimizer), losses(other, others)
    assert mine[0] == theirs[0]
    for one, two in zip(mine, theirs, strict=True):
        assert abs(one - two) < 1e-3
    all_equal(model)


def case_the_planner_chooses() -> None:
    model, optimizer = late(network(), plan="auto")
    values = losses(model, optimizer, 60)
    report = model.last_step  # the last that a forward ended
    model.settle()
    assert values[-1] < values[0]
    all_equal(model)
    assert len(report["parts"]["needed"]) == len(model._averaging.layout.parts)
    assert max(report["parts"]["needed"]) > 0


def case_wrong_use_is_refused() -> None:
    with raises(scant.InvalidArgument, "wrap(model, optimizer)"):
        scant.torch.wrap(network(), step_in_forward=True)
    with raises(scant.InvalidArgument, "step_in_forward"):
        scant.torch.HookState(dist.group.WORLD, step_in_forward=True)
    model, optimizer = late(network())
    loss_of(model, 0).backward()
    with raises(scant.Unsupported, "closure"):
        optimizer.step(lambda: 0.0)
    model.close()
    assert "step" not in vars(optimizer)
    optimizer.step()
    loss_of(model, 1).backward()  # alone, on this rank
    optimizer.step()


def case_a_step_that_fails_ends_in_forward() -> None:
    model, optimizer = late(network())
    losses(model, optimizer, 3)
    model.settle()
    loss_of(model, 3, branch=RANK != SIZE - 1).backward()
    optimizer.step()
    if SIZE > 1:
        with raises(scant.Mismatch, f"rank {SIZE - 1}"):
            loss_of(model, 4)


run_cases(globals(), lambda: dist.barrier(group=GLOO))
dist.destroy_process_group()
