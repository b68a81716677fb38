"""What users and optimizers do beside a plain loop when the optimizer steps in forward."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import torch
import torch.distributed as dist
from ranks import RANK, SIZE, raises, run_cases
from stepping import OPTIMIZERS, adamw, at_once, late, losses, one_by_one
from torch import nn
from torch.utils.checkpoint import checkpoint
from wrapping import GLOO, all_equal, batch, flat, loss_of, network

import scant
import scant.torch
from scant.torch.gradient.late_step import Travelling


def zero_each_time(optimizer: Any, step: int) -> None:
    optimizer.zero_grad(set_to_none=False)


def zero_seldom(optimizer: Any, step: int) -> None:
    if step % 2:
        optimizer.zero_grad()


def step_again(optimizer: Any, step: int) -> None:
    optimizer.step()
    optimizer.zero_grad()


def case_what_users_do_after_a_step() -> None:
    """Gradients stay until they are zeroed, to None or to 0; a second step uses them again."""
    for after in (zero_each_time, zero_seldom, step_again):
        found = []
        for way in (late, at_once):
            model, optimizer = way(network(), OPTIMIZERS["momentum"])
            if way is late:
                one_by_one(model)
            for step in range(6):
                loss_of(model, step, branch=step % 2 == 0).backward()
                optimizer.step(None)
                after(optimizer, step)
            found.append(flat(model))
            model.close()
        assert torch.equal(found[0], found[1]), after


def case_hooks_of_the_optimizer_see_one_step() -> None:
    found = []
    for way in (late, at_once):
        model, optimizer = way(network())
        calls: list[int] = []

        def clip(made: Any, *_: Any) -> None:
            nn.utils.clip_grad_norm_(made.param_groups[0]["params"], 0.1)

        optimizer.register_step_pre_hook(clip)
        optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append(1))
        losses(model, optimizer)
        found.append((len(calls), flat(model)))
    assert found[0][0] == found[1][0] == 6
    assert torch.equal(found[0][1], found[1][1])


class Sometimes(nn.Module):
    """Reads another's bias after a layer that is left out now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 4)
        self.skipped = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, branch: bool = True) -> torch.Tensor:
        x = self.first(x)
        if branch:
            x = x + self.skipped(x)
        out: torch.Tensor = x + self.other.bias
        return out


def case_a_path_that_was_not_taken_before() -> None:
    found = []
    for way in (late, at_once):
        torch.manual_seed(2)
        model, optimizer = way(Sometimes())
        if way is late:
            one_by_one(model)
        values = []
        for step in range(6):
            optimizer.zero_grad()
            loss = loss_of(model, step, branch=step < 3)
            loss.backward()
            optimizer.step()
            values.append(float(loss.detach()))
        found.append((values, flat(model)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def case_loading_after_a_step() -> None:
    for outer in (False, True):
        found = []
        for way in (late, at_once):
            model, optimizer = way(network())
            state = copy.deepcopy(model.module.state_dict())
            losses(model, optimizer, 3)
            if outer:  # as DistributedDataParallel saves it
                model.load_state_dict({f"module.{name}": one for name, one in state.items()})
            else:
                model.module.load_state_dict(state)
            found.append(flat(model))
        assert torch.equal(found[0], found[1]), outer
        assert torch.equal(found[0], flat(network())), outer


def case_a_rate_that_is_a_tensor_of_the_users() -> None:
    found = []
    for way in (late, at_once):
        rate = torch.tensor(0.05)
        model, optimizer = way(network(), functools.partial(torch.optim.SGD, lr=rate))
        for step in range(5):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
            rate.mul_(1.5)
        found.append(flat(model))
    assert torch.equal(found[0], found[1])


def case_copies_do_not_step() -> None:
    model, optimizer = late(network())
    losses(model, optimizer, 3)
    model.settle()
    copies = [copy.deepcopy(model.module), pickle.loads(pickle.dumps(model.module))]
    for other in copies:
        assert torch.equal(flat(other), flat(model))
    for other in copies:
        loss_of(model, 4).backward()
        optimizer.step()
        other(batch(4)[0])
        assert model._late._stepped
        assert model._late._travels
        model.settle()
    averaged = torch.optim.swa_utils.AveragedModel(model.module)
    loss_of(model, 5).backward()
    optimizer.step()
    averaged.update_parameters(model)  # its parameters() settle
    assert torch.equal(flat(averaged.module), flat(model))


def case_a_script_inside() -> None:
    found = []
    for way in (late, at_once):
        module: Any = network()
        module.branch = torch.jit.script(module.branch)
        model, optimizer = way(module)
        found.append((losses(model, optimizer), flat(model)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def case_checkpointing() -> None:
    """Recomputing runs the layers' hooks in backward."""

    class Deep(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
            self.last = nn.Linear(16, 4)
            self.reentrant = reentrant

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.requires_grad_(self.reentrant)  # else its first segment has no gradients
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=self.reentrant).relu()
            out: torch.Tensor = self.last(x)
            return out

    for reentrant in (False, True):
        found = []
        for way in (late, at_once):
            torch.manual_seed(1)
            model, optimizer = way(Deep(reentrant))
            if way is late:
                one_by_one(model)
            found.append((losses(model, optimizer), flat(model)))
            all_equal(model)
        assert found[0][0] == found[1][0], reentrant
        assert torch.equal(found[0][1], found[1][1]), reentrant


def case_compiled_in_place() -> None:
    module = network()
    optimizer = adamw(module.parameters())
    module.compile(backend="eager")
    model = scant.torch.wrap(module, optimizer, step_in_forward=True, plan="q4")
    losses(model, optimizer)
    all_equal(model)


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
    one_by_one(one)
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


def case_wrong_use_is_refused() -> None:
    with raises(scant.InvalidArgument, "wrap(model, optimizer)"):
        scant.torch.wrap(network(), step_in_forward=True)
    with raises(scant.InvalidArgument, "step_in_forward"):
        scant.torch.HookState(dist.group.WORLD, step_in_forward=True)
    with raises(scant.InvalidArgument, "lacks 2 of the model's parameters"):
        late(network(), lambda parameters: adamw(list(parameters)[2:]))
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
    optimizer.zero_grad()
    loss_of(model, 3, branch=RANK != SIZE - 1).backward()
    optimizer.step()
    if SIZE > 1:
        with raises(scant.Mismatch, f"rank {SIZE - 1}"):
            loss_of(model, 4)


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


run_cases(globals(), lambda: dist.barrier(group=GLOO))
dist.destroy_process_group()
