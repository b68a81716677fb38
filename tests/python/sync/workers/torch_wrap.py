"""What people do with a model that scant.torch.wrap() has: paths, habits and mistakes."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from ranks import RANK, SIZE, raises, run_cases
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817
from torch.utils.checkpoint import checkpoint
from wrapping import GLOO, Net, all_equal, batch, flat, loss_of, network, train, wrap

import scant
import scant.torch
from scant.torch.gradient.wrap_options import PLANS as PLAN_NAMES

PLANS = [
    "plain", "bf16", "fp16", "q4", "q2", "5% q4", "5% bf16, gather", "ssfusion 5%", "adtopk 5% q4",
    "rank 4 q1", "rank 8 of q4", "rank 2 of q8, 5% q4, gather",
]  # fmt: skip


def against_ddp(wrapped: nn.Module, plain: nn.Module, **options: Any) -> None:
    """The same training, and the same model at the end."""
    train(wrapped, **options)
    train(plain, **options)
    all_equal(wrapped)
    torch.testing.assert_close(flat(wrapped), flat(plain), rtol=1e-4, atol=1e-5)


def case_plain_is_what_ddp_does() -> None:
    against_ddp(wrap(network()), DDP(network(), process_group=GLOO))


def case_small_buffers() -> None:
    against_ddp(
        wrap(network(), buffer_bytes=2000, first_buffer_bytes=100),
        DDP(network(), process_group=GLOO),
    )


def case_every_plan_trains_and_keeps_ranks_alike() -> None:
    for plan in PLANS:
        model = wrap(network(), plan=plan, buffer_bytes=20_000, check_every=1)
        optimizer = torch.optim.AdamW(model.parameters(), 0.005)
        losses = []
        for _ in range(30):  # one batch, so that the loss must fall
            optimizer.zero_grad()
            loss = loss_of(model, 0)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        all_equal(model)
        assert losses[-1] < 0.8 * losses[0], (plan, losses[0], losses[-1])
        assert model.last_step is not None
        assert model.last_step["step"] == 30


def case_ranks_start_from_the_values_of_rank_0() -> None:
    torch.manual_seed(RANK)
    model = wrap(Net())
    all_equal(model)
    train(model, 2)
    all_equal(model)


def case_no_sync_adds_up() -> None:
    ours, theirs = wrap(network()), DDP(network(), process_group=GLOO)
    for model in (ours, theirs):
        with model.no_sync():
            loss_of(model, 0).backward()
            loss_of(model, 1).backward()
        loss_of(model, 2).backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def case_gradients_that_are_kept_add_up() -> None:
    """Without zero_grad between, as DistributedDataParallel has it."""
    ours, theirs = wrap(network()), DDP(network(), process_group=GLOO)
    for model in (ours, theirs):
        loss_of(model, 0).backward()
        loss_of(model, 1).backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def case_zero_grad_in_place() -> None:
    model = wrap(network())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        optimizer.zero_grad(set_to_none=False)
        loss_of(model, step).backward()
        optimizer.step()
    all_equal(model)


def case_a_parameter_that_nobody_uses() -> None:
    for plan in PLANS:
        model = wrap(network(), plan=plan)
        train(model, 3, branch=False)
        assert all(parameter.grad is None for parameter in model.module.branch.parameters())
        train(model, 3, branch=True)
        assert all(parameter.grad is not None for parameter in model.module.branch.parameters())
        all_equal(model)


def case_a_parameter_that_only_some_use() -> None:
    for plan in ("plain", "q4"):
        model = wrap(network(), plan=plan)
        words = ("branch.", "got no gradient on rank 1")
        with raises(scant.Mismatch, *words):
            loss_of(model, 0, branch=RANK != 1).backward()
        model = wrap(network(), plan=plan, unused="zeros")
        train(model, 3, branch=RANK != 1)
        all_equal(model)


def case_shared_parameters() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50, 8)
            self.out = nn.Linear(8, 50, bias=False)
            self.out.weight = self.embedding.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.out(self.embedding(x))
            return out

    torch.manual_seed(1)
    first = Tied()
    ours, theirs = wrap(copy.deepcopy(first)), DDP(first, process_group=GLOO)
    for model in (ours, theirs):
        tokens = torch.arange(RANK, RANK + 20)
        F.cross_entropy(model(tokens), tokens + 1).backward()
    assert ours.module.out.weight is ours.module.embedding.weight
    torch.testing.assert_close(
        ours.module.embedding.weight.grad, theirs.module.embedding.weight.grad
    )


def case_frozen_layers_and_parameter_groups() -> None:
    model = network()
    model.first.requires_grad_(False)
    before = model.first.weight.clone()
    wrapped = wrap(model, plan="q4")
    optimizer = torch.optim.SGD(
        [
            {"params": wrapped.module.second.parameters(), "lr": 0.1},
            {"params": wrapped.module.last.parameters(), "lr": 0.01, "momentum": 0.9},
        ]
    )
    for step in range(3):
        optimizer.zero_grad()
        loss_of(wrapped, step).backward()
        optimizer.step()
    assert torch.equal(model.first.weight, before)
    all_equal(wrapped)


def case_low_precision_parameters() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        torch.manual_seed(1)
        model = wrap(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype))
        for step in range(2):
            x, y = batch(step)
            for parameter in model.parameters():
                parameter.grad = None
            F.cross_entropy(model(x.to(dtype)).float(), y).backward()
            for parameter in model.parameters():
                assert parameter.grad is not None
                assert parameter.grad.dtype == dtype
        grads = torch.cat([p.grad.reshape(-1).double() for p in model.parameters()])
        copies = [torch.empty_like(grads) for _ in range(SIZE)]
        dist.all_gather(copies, grads, group=GLOO)
        assert all(torch.equal(other, grads) for other in copies)


def case_autocast_and_grad_scaler() -> None:
    model = wrap(network(), plan="q4")
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, step)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert math.isfinite(float(norm))
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        model.scale_residuals(scaler.get_scale() / before)
    all_equal(model)


def case_clipping_sees_what_is_applied() -> None:
    model = wrap(network(), plan="5% q4")
    loss_of(model, 0).backward()
    applied = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    torch.testing.assert_close(norm, applied.norm())


def case_checkpointing() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
            self.last = nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = checkpoint(lambda h, inner=layer: F.relu(inner(h)), x, use_reentrant=False)
            out: torch.Tensor = self.last(x)
            return out

    torch.manual_seed(1)
    first = Deep()
    against_ddp(wrap(copy.deepcopy(first)), DDP(first, process_group=GLOO))


def case_compiled() -> None:
    torch.manual_seed(1)
    first = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    plain = DDP(copy.deepcopy(first), process_group=GLOO)
    against_ddp(wrap(torch.compile(first, backend="aot_eager")), plain)


def case_compiled_once_wrapped() -> None:
    model = wrap(network())  # has buffers, whose broadcast breaks the graph
    compiled: Any = torch.compile(model, backend="aot_eager")
    against_ddp(compiled, DDP(network(), process_group=GLOO))
    assert model.last_step is not None
    assert model.last_step["step"] == 5


def case_sparse_embeddings_are_refused() -> None:
    with raises(scant.Unsupported, "'0' has sparse gradients"):
        wrap(nn.Sequential(nn.Embedding(10, 4, sparse=True)))
    model = wrap(nn.Linear(4, 10))
    with raises(scant.Unsupported, "'weight' has a sparse gradient"):
        rows = F.embedding(torch.arange(5), model.module.weight, sparse=True)
        rows.sum().backward()
    model.close()


def case_embedding_rows_that_nobody_used_send_nothing() -> None:
    torch.manual_seed(1)
    model = wrap(nn.Embedding(4000, 32), plan="5% bf16")
    used = torch.arange(10) + 20 * RANK
    model(used).sum().backward()
    gradient = model.module.weight.grad
    assert gradient is not None
    rows = gradient.abs().sum(1).nonzero().reshape(-1).tolist()
    expected = {row for rank in range(SIZE) for row in range(20 * rank, 20 * rank + 10)}
    assert set(rows) == expected
    assert model.last_step is not None
    assert model.last_step["sent_bytes"] < 4000 * 32


def case_all_ranks_know_what_each_keeps_back() -> None:
    for plan, some in (("q4", True), ("plain", False)):
        model = wrap(network(), plan=plan)
        train(model, 2)
        assert model.last_step is not None
        told = model.last_step["residual_energy"]
        assert len(told) == SIZE
        assert all((energy > 0) == some for energy in told), told
        heard: list[Any] = [None] * SIZE
        dist.all_gather_object(heard, told, group=GLOO)
        assert heard == [told] * SIZE
        model.close()


def case_models_that_differ() -> None:
    with raises(scant.Mismatch, "option 'plan' is 'q4' on rank 0 and 'q2' on rank 1"):
        wrap(network(), plan="q2" if RANK == 1 else "q4")
    with raises(scant.Mismatch, "'first.weight' is (96, 16) float32 on rank 0"):
        wrap(network(width=96 + RANK))
    with raises(scant.Mismatch, "'1.weight'", "missing", "rank 1"):
        layers: list[nn.Module] = [nn.Linear(4, 4)]
        wrap(nn.Sequential(*layers, *([nn.Linear(4, 4)] if RANK != 1 else [])))
    with raises(scant.Mismatch, "frozen on rank 1"):
        wrap(nn.Linear(4, 4).requires_grad_(True) if RANK != 1 else _half_frozen())
    with raises(scant.Mismatch, "'one.weight' is here on rank 0", "'two.weight' in its", "rank 1"):
        wrap(_in_order("two", "one") if RANK == 1 else _in_order("one", "two"))
    with raises(scant.Mismatch, "'two.weight' is (4, 4) float32 on rank 0", "bfloat16 on rank 1"):
        model = _in_order("one", "two")
        if RANK == 1:
            model.two.bfloat16()
        wrap(model)


def _in_order(*names: str) -> Any:
    return nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in names})


def _half_frozen() -> nn.Linear:
    model = nn.Linear(4, 4)
    model.weight.requires_grad_(False)
    return model


def case_mistakes_are_named() -> None:
    model = wrap(network())
    with raises(scant.InvalidArgument, "wrapped already"):
        wrap(model)
    with raises(scant.InvalidArgument, "wrapped already"):
        wrap(model.module)
    with raises(scant.InvalidArgument, "DistributedDataParallel"):
        wrap(DDP(network(), process_group=GLOO))
    with raises(scant.InvalidArgument, "no parameter of the model requires a gradient"):
        wrap(nn.Linear(2, 2).requires_grad_(False))
    for plan in (
        "fast", "0% q4", "101% q4", "1.2.3% q4", "q5", "1% q4, scatter", "ssfusion", "ssfusion q4",
        "ssfusion 0%", "adtopk 101%", "adtopk 1% q5", "adtopk 1% q4, gather", "plain 1%", "1%",
        "rank 0 q1", "rank 8 of q5",
    ):  # fmt: skip
        with raises(scant.InvalidArgument, f"'{plan}'", PLAN_NAMES):
            wrap(network(), plan=plan)
    for name, value in (
        ("workers", 0), ("residual", "f8"), ("unused", "maybe"), ("check_every", -1),
        ("nonfinite", "ignore"),
        ("residual_decay", 2.0), ("buffer_bytes", 0), ("seed", 1.5),
    ):  # fmt: skip
        with raises(scant.InvalidArgument, name):
            wrap(network(), **{name: value})
    with raises(scant.InvalidArgument, "backend 'scant'"):
        wrap(network(), group=GLOO)
    model.close()
    wrap(model.module)


def case_state_dict_goes_on_exactly() -> None:
    def continued(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        for step in range(4, 8):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
        return flat(model)

    model = wrap(network(), plan="5% q4")
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    wanted = continued(model, optimizer)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = wrap(network(), plan="5% q4")
    optimizer = torch.optim.AdamW(again.parameters(), 0.01)
    again.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert again.residual_norm > 0
    assert torch.equal(continued(again, optimizer), wanted)


def case_plans_may_change_between_steps() -> None:
    model = wrap(network(), plan="5% q4", buffer_bytes=20_000, check_every=1)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    kept = 0.0
    for step, plan in enumerate([*PLANS, "plain"]):
        model.set_plan(plan)
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        kept = max(kept, model.residual_norm)
    assert kept > 0
    assert model.residual_norm == 0
    all_equal(model)


def case_parameters_that_drift_apart_are_noticed() -> None:
    model = wrap(network(), check_every=2)
    train(model, 2)
    with torch.no_grad():
        model.module.last.bias[0] += 1e-3 * (RANK == SIZE - 1)
    loss_of(model, 2).backward()
    with raises(scant.Mismatch, "the parameters of rank"):
        loss_of(model, 3).backward()


def case_a_subgroup_trains_alone() -> None:
    group = dist.new_group(list(range(SIZE - 1)), backend="scant")
    if RANK < SIZE - 1:
        model = wrap(network(), group=group, plan="q4")
        train(model, 3)
        mine = flat(model)
        copies = [torch.empty_like(mine) for _ in range(SIZE - 1)]
        dist.all_gather(copies, mine, group=group)
        assert all(torch.equal(other, mine) for other in copies)
    model = wrap(network())  # then all together, though one rank has wrapped fewer models
    train(model, 1)
    all_equal(model)


def case_evaluation_sends_nothing() -> None:
    model = wrap(network())
    model.eval()
    if RANK == 0:
        with torch.no_grad():
            model(batch(0)[0])


run_cases(globals(), lambda: dist.barrier(group=GLOO))
dist.destroy_process_group()
