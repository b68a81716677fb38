"""What can go wrong with a model that scant.torch.wrap() has, and what must not."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from ranks import RANK, SIZE, raises, run_cases
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817
from torch.utils.checkpoint import checkpoint
from waiting import wait_until
from wrapping import GLOO, all_equal, batch, flat, loss_of, network, train, wrap

import scant
import scant.torch


def case_a_gradient_that_a_later_backward_does_not_reach() -> None:
    """It stays as it was; what no_sync gave is averaged with the next backward outside."""
    for plan in ("plain", "bf16"):
        ours, theirs = wrap(network(), plan=plan), network()
        for rank in range(SIZE):
            x, y = batch(0, rank)
            (F.cross_entropy(theirs(x), y) / SIZE).backward()
        loss_of(ours, 0).backward()
        before = [parameter.grad.clone() for parameter in ours.module.branch.parameters()]
        loss_of(ours, 1, branch=False).backward()
        for parameter, gradient in zip(ours.module.branch.parameters(), before, strict=True):
            assert torch.equal(parameter.grad, gradient)
        ours = wrap(network(), plan=plan)
        with ours.no_sync():
            loss_of(ours, 0).backward()
        loss_of(ours, 1, branch=False).backward()
        pairs = zip(ours.module.branch.parameters(), theirs.branch.parameters(), strict=True)
        for mine, other in pairs:
            torch.testing.assert_close(mine.grad, other.grad, rtol=0.02, atol=1e-3)


def case_what_is_kept_counts_where_others_go_on() -> None:
    model = wrap(network(), unused="zeros")
    loss_of(model, 0).backward()
    before = model.module.branch.bias.grad.clone()
    (model(batch(1)[0], branch=RANK == 0).sum() * 0).backward()
    torch.testing.assert_close(model.module.branch.bias.grad, before)


def odd_one_out(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """A step whose loss does not depend on the model, on the last rank."""
    loss = loss_of(model, 0)
    if RANK == SIZE - 1:
        loss = torch.zeros((), requires_grad=True) * float(loss.detach())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def case_a_backward_that_reaches_nothing_on_one_rank() -> None:
    for late in (False, True):
        module = network()
        optimizer = torch.optim.AdamW(module.parameters(), 0.01)
        model = wrap(module, optimizer, step_in_forward=late)
        loss_of(model, 0).backward()
        optimizer.step()
        model.settle()
        before = flat(model.module)
        with raises(scant.Mismatch, "bias", f"rank {SIZE - 1}"):
            odd_one_out(model, optimizer)
            model.settle()
        assert torch.equal(flat(model.module), before)
        model.close()


def case_a_backward_that_reaches_nothing_counts_as_zeros() -> None:
    """After settle() every rank has the average, to be clipped, too."""
    for plan in ("plain", "bf16"):
        model = wrap(network(), unused="zeros", plan=plan)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(3):
            before = flat(model.module)
            optimizer.zero_grad()
            loss = loss_of(model, step)
            if RANK == SIZE - 1:
                loss = torch.zeros((), requires_grad=True) * float(loss.detach())
            loss.backward()
            model.settle()
            norm = nn.utils.clip_grad_norm_(model.module.parameters(), 0.01)
            assert norm > 0.01
            optimizer.step()
            all_equal(model.module)
            moved = (flat(model.module) - before).norm()
            torch.testing.assert_close(moved, torch.tensor(0.001), rtol=0.01, atol=0)
        assert all(model.last_step["present"])
        model.close()


def case_zeros_that_come_too_late_are_refused() -> None:
    model = wrap(network(), unused="zeros")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if RANK == SIZE - 1:
        with raises(scant.InvalidArgument, "settle()"):
            odd_one_out(model, optimizer)
    else:
        odd_one_out(model, optimizer)
    model.close()


def case_two_models_that_nothing_reaches() -> None:
    """The same models on all ranks, none of which is waited for before all are told."""
    models = [wrap(network(), broadcast_buffers=False) for _ in range(2)]
    optimizer = torch.optim.SGD([one for model in models for one in model.parameters()], 0.1)
    loss = loss_of(models[0], 0) + loss_of(models[1], 0)
    if RANK > 0:
        loss = torch.zeros((), requires_grad=True) * float(loss.detach())
    with raises(scant.Mismatch, "bias"):
        loss.backward()
        optimizer.step()
    dist.barrier(group=GLOO)  # who closes a model ends the step of those who still wait for it
    for model in models:
        model.close()


def case_what_no_sync_gave_counts_where_nothing_else_comes() -> None:
    model, theirs = wrap(network(), broadcast_buffers=False), network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with model.no_sync():
        loss_of(model, 0).backward()
    odd_one = RANK == SIZE - 1
    loss = loss_of(model, 1)
    if odd_one:
        loss = torch.zeros((), requires_grad=True) * float(loss.detach())
    loss.backward()
    model.settle()
    optimizer.step()
    for rank in range(SIZE):
        for step in range(1 if rank == SIZE - 1 else 2):
            x, y = batch(step, rank)
            (F.cross_entropy(theirs(x), y) / SIZE).backward()
    for mine, other in zip(model.module.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)
    all_equal(model.module)


def case_forwards_without_a_backward_cost_nothing() -> None:
    """Evaluation that forgot no_grad, on one rank."""
    model = wrap(network(), broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        loss_of(model, step).backward()
        report = model.last_step
        if RANK == 0:
            loss_of(model, 7)
        optimizer.step()
        assert model.last_step is report
        if RANK == 0:
            loss_of(model, 8)
    all_equal(model.module)


def case_channels_last_and_a_fused_optimizer() -> None:
    """Fused optimizers take equal strides of parameter and gradient for granted."""
    torch.manual_seed(1)
    plain = nn.Conv2d(8, 8, 3)
    plain.weight.data = plain.weight.data.to(memory_format=torch.channels_last)
    model = wrap(copy.deepcopy(plain))
    x = torch.randn(2, 8, 6, 6)  # the same on every rank
    for one in (model, plain):
        optimizer = torch.optim.AdamW(one.parameters(), 0.1, fused=True)
        for _ in range(2):
            optimizer.zero_grad()
            one(x).pow(2).sum().backward()
            optimizer.step()
    torch.testing.assert_close(flat(model), flat(plain))


def case_another_default_dtype() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            model = wrap(network().float())
            with torch.no_grad():
                x = batch(0)[0].float()
            (model(x).sum() * (RANK + 1)).backward()
        finally:
            torch.set_default_dtype(torch.float32)
        expected = 16 * (SIZE + 1) / 2
        assert model.module.last.bias.grad.tolist() == [expected] * 4


def case_a_plan_of_ones_own() -> None:
    layout = scant._scant.GradientLayout([(1, 4), (4, 8)], SIZE)
    plan = scant._scant.FusionPlan.uniform(layout, "split", 1.0, "bf16", 64, 64, 0)
    model = wrap(nn.Linear(8, 4), plan=plan)
    model(torch.ones(2, 8)).sum().backward()
    assert model.module.bias.grad.tolist() == [2.0] * 4
    other = scant._scant.FusionPlan.uniform(layout, "all_reduce", 1.0, "f32", 64, 64, 0)
    with raises(scant.Mismatch, "option 'plan' is a FusionPlan of hash"):
        wrap(nn.Linear(8, 4), plan=other if RANK == 1 else plan)


def case_a_mistake_of_one_rank_ends_wrap_on_all() -> None:
    """At once: a timeout would be another error."""
    wrapped, ddp = wrap(network()), DDP(network(), process_group=GLOO)
    sparse, other = nn.Embedding(10, 4, sparse=True), torch.optim.SGD(nn.Linear(2, 2).parameters())

    def partly() -> Any:
        module = network()
        optimizer = torch.optim.SGD(list(module.parameters())[2:])
        return wrap(module, optimizer, step_in_forward=True)

    def hooked(**options: Any) -> Any:
        return scant.torch.HookState(dist.group.WORLD, **options)

    refused, unable = scant.InvalidArgument, scant.Unsupported
    for kind, text, mistake in (
        (refused, "fidelity_min=0.5", lambda: wrap(network(), plan="q4", fidelity_min=0.5)),
        (refused, "'101% q4'", lambda: wrap(network(), plan="101% q4")),
        (refused, "no 'q5'", lambda: wrap(network(), plan="q5")),
        (refused, "residual_decay", lambda: wrap(network(), residual_decay=2.0)),
        (refused, "wrapped already", lambda: wrap(wrapped.module)),
        (refused, "DistributedDataParallel", lambda: wrap(ddp)),
        (refused, "no parameter", lambda: wrap(nn.Sequential())),
        (refused, "no parameter", lambda: wrap(nn.Linear(0, 4, bias=False))),
        (refused, "torch.nn.Module is needed", lambda: wrap(network)),
        (unable, "'' has sparse gradients", lambda: wrap(sparse)),
        (unable, "on meta", lambda: wrap(network().to("meta"))),
        (refused, "(2, 2) that is not the model's", lambda: wrap(network(), other)),
        (refused, "needs the optimizer", lambda: wrap(network(), step_in_forward=True)),
        (refused, "lacks 2 of the model's", partly),
        (refused, "'f8'", lambda: hooked(residual="f8")),
        (refused, "is for scant.torch.wrap()", lambda: hooked(step_in_forward=True)),
    ):
        with raises(kind, "rank 1: ", text):
            try:
                if RANK == 1:
                    mistake()
                elif "scant.torch.wrap()" in text or text == "'f8'":
                    hooked()
                else:
                    wrap(network())
            except scant.Error as error:
                assert error.rank == RANK
                assert error.peer == (None if RANK == 1 else 1)
                raise
    with raises(TypeError if RANK == 1 else scant.InvalidArgument, "no option 'plam'"):
        wrap(network(), **{"plam" if RANK == 1 else "plan": "q4"})
    again = wrap(network())
    train(again, 2)
    all_equal(again)


def case_copies_of_the_model_can_be_wrapped() -> None:
    model = wrap(network())
    for other in (copy.deepcopy(model.module), pickle.loads(pickle.dumps(model.module))):
        loss_of(wrap(other), 0).backward()
    for function in (copy.deepcopy, pickle.dumps):
        with raises(scant.InvalidArgument, "model.module"):
            function(model)


def threads_of_averagers() -> int:
    count = 0
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # a thread that ends meanwhile
            count += path.read_text().startswith("scant-grad")
    return count


def case_a_dropped_model_takes_its_threads_along() -> None:
    threads = threads_of_averagers

    gc.collect()
    before = threads()
    inner = wrap(network()).module  # the inner model keeps what averages its gradients
    gc.collect()
    (inner(batch(0)[0]).sum() * (RANK + 1)).backward()
    assert inner.last.bias.grad.tolist() == [16 * (SIZE + 1) / 2] * 4
    assert threads() == before + 1
    del inner
    gc.collect()
    # A joined thread may stay in the list for a moment.
    wait_until(lambda: threads() == before, "the averager's thread gone")


def case_other_parameters_than_at_wrap_are_refused() -> None:
    words = ("was replaced, added or unfrozen after wrap()", "close()")
    model = wrap(network())
    train(model, 1)
    model.load_state_dict(model.state_dict(), assign=True)
    with raises(scant.InvalidArgument, "first.weight", *words):
        model(batch(0)[0])
    inner = network()
    inner.first.weight.requires_grad_(False)
    model = wrap(inner)
    inner.first.weight.requires_grad_(True)
    with raises(scant.InvalidArgument, "'first.weight'", *words):
        model(batch(0)[0])
    model.close()
    loss_of(wrap(inner), 0).backward()


def case_double_backward() -> None:
    model = wrap(network())
    with raises(scant.Unsupported, "torch.autograd.grad"):
        loss_of(model, 0).backward(create_graph=True)
    model.close()
    model = wrap(network())
    wanted = list(model.parameters())
    gradients = torch.autograd.grad(loss_of(model, 0), wanted, create_graph=True)
    torch.stack([gradient.pow(2).sum() for gradient in gradients]).sum().backward()
    assert model.last_step is not None
    assert model.last_step["step"] == 1


class Raising(torch.autograd.Function):
    """Its backward raises."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> None:
        raise ValueError("raised in backward")


def case_an_exception_in_backward_ends_the_training() -> None:
    for plan in ("plain", "5% q4"):
        model = wrap(network(), plan=plan)
        train(model, 1)
        x, _ = batch(1)
        hidden = model.module.norm(model.module.first(x))
        with raises(ValueError, "raised in backward"):
            model.module.last(Raising.apply(hidden)).sum().backward()
        with raises(scant.Closed, "wrap the model again"):
            model(x)
        dist.barrier(group=GLOO)
        model.close()
        again = wrap(model.module, plan=plan)
        train(again, 2)
        all_equal(again)


def case_models_that_ranks_reach_in_another_order() -> None:
    first, second = wrap(nn.Linear(4, 4)), wrap(nn.Linear(4, 4))
    x = torch.ones(1, 4)
    for _ in range(2):
        (first(second(x)) if RANK == 0 else second(first(x))).sum().backward()
    all_equal(first)
    for model in (first, second):
        assert model.last_step is not None
        assert model.last_step["step"] == 2


def case_a_reentrant_checkpoint_takes_a_step_for_each_segment() -> None:
    torch.manual_seed(1)
    inner = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    ours, theirs = wrap(copy.deepcopy(inner)), DDP(inner, process_group=GLOO)
    x = batch(0)[0].requires_grad_()
    hidden = checkpoint(ours.module[0], x, use_reentrant=True)
    checkpoint(ours.module[1], hidden, use_reentrant=True).pow(2).sum().backward()
    theirs(x).pow(2).sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def case_a_checkpoint_of_ddp() -> None:
    model = wrap(network(), plan="q4")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(DDP(network(), process_group=GLOO).state_dict())
    assert torch.equal(flat(model), flat(network()))


run_cases(globals(), lambda: dist.barrier(group=GLOO))
dist.destroy_process_group()
