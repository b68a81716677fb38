"""Gradients with NaN or infinities: errors name rank and tensor, scalers skip the step."""

from __future__ import annotations

import gc
import math
from typing import Any

import torch
import torch.distributed as dist
from ranks import RANK, SIZE, raises, run_cases
from stepping import late
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817
from wrapping import GLOO, all_equal, flat, loss_of, network, train, wrap

import scant
import scant.torch

LAST = SIZE - 1
PLANS = [
    "plain", "bf16", "q4", "1% q4", "5% bf16, gather", "ssfusion 5%", "adtopk 5% q4",
    "rank 4 q2", "rank 4 of q4", "auto",
]  # fmt: skip
OVERFLOWS = 2.0**24  # times a loss: beyond what float16 holds
FITS = 2.0**8


def nan_on(rank: int) -> float:
    return math.nan if rank == RANK else 1.0


def all_finite(tensors: Any) -> bool:
    return all(bool(one.isfinite().all()) for one in tensors)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [one.grad for one in model.parameters() if one.grad is not None]


def case_a_nan_is_an_error_on_every_rank() -> None:
    """It names the tensor that backward reached first; the step is over, so that one may go on."""
    for plan in PLANS:
        for nonfinite in ("auto", "error"):
            model = wrap(network(), plan=plan, nonfinite=nonfinite, check_every=1)
            train(model, 2)
            loss = loss_of(model, 2) * nan_on(LAST)
            words = ("gradient of 'last.", f"on rank {LAST} (step 3), nor are", "nonfinite='pass'")
            with raises(scant.InvalidArgument, *words):
                loss.backward()
            train(model, 2)
            assert all_finite(gradients(model))
            all_equal(model)


def case_one_tensor_of_two_ranks() -> None:
    for plan in ("plain", "q4"):
        model = wrap(network(), plan=plan)
        if RANK != 1:
            model.module.second.bias.register_hook(lambda gradient: gradient / 0.0)
        others = [rank for rank in range(SIZE) if rank != 1]
        who = f"ranks {', '.join(map(str, others[:-1]))} and {others[-1]}"
        if len(others) == 1:
            who = f"rank {others[0]}"
        with raises(scant.InvalidArgument, f"'second.bias' is not finite on {who} (step 1); "):
            loss_of(model, 0).backward()


def case_passing_it_reaches_every_rank() -> None:
    for plan in PLANS:
        model = wrap(network(), plan=plan, nonfinite="pass")
        train(model, 2)
        (loss_of(model, 2) * nan_on(LAST)).backward()
        bad = [bool(parameter.grad.isnan().any()) for parameter in model.parameters()]
        assert all(bad), (plan, bad)
        assert model.last_step is not None
        names, found = model._names, model.last_step["not_finite"]
        assert [names[tensor] for tensor, _ in found] == names
        assert all(ranks == [LAST] for _, ranks in found)
        model.zero_grad()
        loss_of(model, 3).backward()
        good = [bool(parameter.grad.isfinite().all()) for parameter in model.parameters()]
        assert all(good), (plan, good)


def case_a_scaler_on_some_ranks_only_is_not_enough() -> None:
    gc.collect()  # those of other cases
    for enabled, whose in ((True, 0), (False, RANK)):
        scaler = torch.amp.GradScaler("cpu", enabled=enabled) if whose == RANK else None
        model = wrap(network())
        with raises(scant.InvalidArgument, f"is not finite on rank {LAST} (step 1)"):
            (loss_of(model, 0) * nan_on(LAST)).backward()
        del scaler


def half_loss(model: nn.Module, step: int) -> torch.Tensor:
    with torch.autocast("cpu", torch.float16):
        return loss_of(model, step)


def whole_loss(model: nn.Module, step: int) -> torch.Tensor:
    """Overflows with a large scale on the last rank alone."""
    scale = torch.full((), 2.0**120 if RANK == LAST and step == 1 else 1.0)
    return loss_of(model, step) * scale


def scaled_training(model: Any, optimizer: Any, scaler: Any, loss: Any, steps: int) -> list[int]:
    """Steps of this training that were skipped."""
    skipped = []
    for step in range(steps):
        optimizer.zero_grad()
        before, scale, norm = flat(model), scaler.get_scale(), model.residual_norm
        scaler.scale(loss(model, step)).backward()
        model.settle()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        kept = model.residual_norm
        assert math.isfinite(kept), (step, norm, kept)
        factor = scaler.get_scale() / scale
        model.scale_residuals(factor)
        assert math.isclose(model.residual_norm, kept * factor, rel_tol=1e-4)
        model.settle()
        if torch.equal(flat(model), before):
            skipped.append(step)
        assert all_finite(model.parameters())
    return skipped


def case_a_scaler_skips_the_step_on_all_ranks() -> None:
    """And training goes on, whatever a plan has kept."""
    ways = ((half_loss, OVERFLOWS, [0], (False, True)), (whole_loss, FITS, [1], (False,)))
    for plan in ("plain", "bf16", "q4", "1% q4", "rank 8 of q8", "auto"):
        for loss, first, wanted, modes in ways:
            for in_forward in modes:
                if in_forward:
                    model, optimizer = late(network(), plan=plan, check_every=1)
                else:
                    model = wrap(network(), plan=plan, check_every=1)
                    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
                scaler = torch.amp.GradScaler(
                    "cpu", init_scale=first, backoff_factor=FITS / OVERFLOWS
                )
                where = (plan, loss.__name__, in_forward)
                assert scaled_training(model, optimizer, scaler, loss, 2) == wanted, where
                before = float(loss_of(model, 0))
                for _ in range(12):
                    optimizer.zero_grad()
                    scaler.scale(half_loss(model, 0)).backward()
                    model.settle()
                    scaler.step(optimizer)
                    scaler.update()
                assert float(loss_of(model, 0)) < before, where
                assert all_finite(model.parameters()), where
                all_equal(model)


def case_in_forward_the_error_comes_with_the_averages() -> None:
    for plan in ("plain", "q4"):
        model, optimizer = late(network(), plan=plan)
        for step in range(3):
            optimizer.zero_grad()
            (loss_of(model, step) * (nan_on(LAST) if step == 2 else 1.0)).backward()
            optimizer.step()
        with raises(scant.InvalidArgument, f"is not finite on rank {LAST} (step 3)"):
            loss_of(model, 3)
        model.close()


def hooked(**options: Any) -> tuple[Any, scant.torch.HookState]:
    model = DDP(network(), process_group=GLOO)
    state = scant.torch.HookState(dist.group.WORLD, **options)
    model.register_comm_hook(state, scant.torch.ddp_hook)
    return model, state


def case_the_hook_says_so_too() -> None:
    for plan in ("plain", "q4"):
        model, state = hooked(plan=plan)
        train(model, 3)
        with raises(scant.InvalidArgument, "is not finite on rank 0 (step 2)"):
            (loss_of(model, 3) * nan_on(0)).backward()
        state.close()
        model, state = hooked(plan=plan, nonfinite="pass")
        train(model, 3)
        (loss_of(model, 3) * nan_on(0)).backward()
        assert all(bool(one.isnan().any()) for one in gradients(model))
        state.close()


def case_the_hook_leaves_overflows_to_a_scaler() -> None:
    model, state = hooked(plan="q4")
    train(model, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=OVERFLOWS, backoff_factor=FITS / OVERFLOWS)
    before = flat(model)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(half_loss(model, step)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(flat(model), before) == (step == 0)
    all_equal(model)
    state.close()


run_cases(globals(), lambda: dist.barrier(group=GLOO))
dist.destroy_process_group()
