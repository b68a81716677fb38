"""What people build on torch.distributed: DDP with its options, FSDP2, checkpoints, meshes."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from ranks import RANK, SIZE, raises, run_cases
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

import scant
import scant.torch

torch.set_num_threads(1)
dist.init_process_group("scant", timeout=timedelta(seconds=60))
GLOO: Any = dist.new_group(backend="gloo")  # torch 2.14 may also return a number


class Net(nn.Module):
    """Several buckets, buffers, and a branch that not every rank uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 64)
        self.norm = nn.BatchNorm1d(64)
        self.second = nn.Linear(64, 64)
        self.branch = nn.Linear(64, 64)
        self.last = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor, branch: bool = False) -> torch.Tensor:
        hidden = self.norm(F.relu(self.first(x)))
        hidden = F.relu(self.second(hidden))
        if branch:
            hidden = hidden + self.branch(hidden)
        out: torch.Tensor = self.last(hidden)
        return out


def network() -> Net:
    torch.manual_seed(1)
    return Net()


def batch(step: int, rank: int = RANK) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(8, 16, generator=generator)
    return x, torch.randint(0, 4, (8,), generator=generator)


def train(model: nn.Module, steps: int = 4, branch: bool | None = None, start: int = 0) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for step in range(start, start + steps):
        x, y = batch(step)
        use = (step + RANK) % 2 == 0 if branch is None else branch
        optimizer.zero_grad()
        F.cross_entropy(model(x, use), y).backward()
        optimizer.step()


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def all_equal(module: nn.Module) -> None:
    """All ranks hold the same bits."""
    mine = flat(module)
    copies = [torch.empty_like(mine) for _ in range(SIZE)]
    dist.all_gather(copies, mine, group=GLOO)
    for rank, other in enumerate(copies):
        assert torch.equal(other, mine), f"rank {rank} differs from rank {RANK}"


def against_gloo(branch: bool | None, steps: int = 4, **options: Any) -> None:
    """Training on Scant and on gloo gives the same model."""
    ours = DDP(network(), **options)
    theirs = DDP(network(), process_group=GLOO, **options)
    train(ours, steps, branch)
    train(theirs, steps, branch)
    all_equal(ours)
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-4, atol=1e-5)


def case_ddp() -> None:
    against_gloo(True)


def case_ddp_many_buckets() -> None:
    against_gloo(True, steps=6, bucket_cap_mb=0.01)


def case_ddp_find_unused_parameters() -> None:
    against_gloo(None, find_unused_parameters=True)


def case_ddp_static_graph() -> None:
    against_gloo(True, static_graph=True)


def case_ddp_gradient_as_bucket_view() -> None:
    against_gloo(True, gradient_as_bucket_view=True)


def case_ddp_without_buffers() -> None:
    against_gloo(True, broadcast_buffers=False)


def case_ddp_no_sync() -> None:
    models = [DDP(network()), DDP(network(), process_group=GLOO)]
    for model in models:
        with model.no_sync():
            F.cross_entropy(model(batch(0)[0], True), batch(0)[1]).backward()
        F.cross_entropy(model(batch(1)[0], True), batch(1)[1]).backward()
    for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def case_ddp_join_with_uneven_inputs() -> None:
    model = DDP(nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    steps = 0
    with model.join():
        for _ in range(3 + RANK):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            steps += 1
    assert steps == 3 + RANK
    all_equal(model)


def case_ddp_comm_hooks() -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    model = DDP(network())
    model.register_comm_hook(None, default_hooks.allreduce_hook)
    reference = DDP(network(), process_group=GLOO)
    train(model, 3, True)
    train(reference, 3, True)
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-4, atol=1e-5)
    model = DDP(network())
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    train(model, 3, True)
    all_equal(model)
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-2, atol=1e-2)
    model = DDP(network())
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    train(model, 5, True)
    all_equal(model)


def case_callbacks_submit_in_one_order_whenever_they_are_given() -> None:
    # Some ranks give the callback to a future that is complete, so torch runs it in this thread;
    # the others in time, so it runs on the completion thread.
    values = []

    def sum_of_sums(future: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        total = future.value()[0].clone()
        inner = dist.all_reduce(total, async_op=True).get_future()
        return inner.then(lambda f: f.value()[0]).value()

    for step in range(40):
        work = dist.all_reduce(torch.full((300,), float(step)), async_op=True)
        future = work.get_future()
        if (step + RANK) % 2 == 0:
            future.wait()
        values.append(future.then(sum_of_sums))
        other = torch.full((7,), 1.0)
        dist.all_reduce(other)
        assert other[0] == SIZE
    for step, value in enumerate(values):
        assert torch.equal(value.wait(), torch.full((300,), float(step * SIZE * SIZE))), step


def case_ddp_builtin_hooks_work_or_fail_cleanly() -> None:
    # The one that compresses wants a Future that Python cannot make; the same hook in Python works.
    model = DDP(network())
    model._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
    train(model, 2, True)
    all_equal(model)
    model = DDP(network())
    model._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)
    with raises(RuntimeError, "TensorList"):
        train(model, 1, True)


def case_ddp_hook_of_scant_on_gloo() -> None:
    model = DDP(network(), process_group=GLOO)
    model.register_comm_hook(dist.group.WORLD, scant.torch.ddp_hook)
    reference = DDP(network(), process_group=GLOO)
    train(model, 4, True)
    train(reference, 4, True)
    all_equal(model)
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-4, atol=1e-5)
    wrong = DDP(nn.Linear(2, 2), process_group=GLOO)
    wrong.register_comm_hook(GLOO, scant.torch.ddp_hook)
    with raises(RuntimeError, "state must be a process group of the backend 'scant'"):
        wrong(torch.ones(1, 2)).sum().backward()


def case_ddp_sparse_embedding() -> None:
    def build(group: Any) -> DDP:
        torch.manual_seed(1)
        inner = nn.Sequential(nn.EmbeddingBag(50, 8, sparse=True), nn.Linear(8, 2))
        return DDP(inner, process_group=group)

    models = [build(None), build(GLOO)]
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(3):
            generator = torch.Generator().manual_seed(step * 10 + RANK)
            tokens = torch.randint(0, 50, (4, 6), generator=generator)
            optimizer.zero_grad()
            model(tokens).sum().backward()
            optimizer.step()
    all_equal(models[0])
    torch.testing.assert_close(flat(models[0]), flat(models[1]))


def case_ddp_on_a_subgroup() -> None:
    group = dist.new_group([0, SIZE - 1])
    if RANK in (0, SIZE - 1):
        model = DDP(network(), process_group=group)
        before = flat(model)
        train(model, 2, True)
        after = flat(model)
        assert not torch.equal(before, after)
        copies = [torch.empty_like(after) for _ in range(dist.get_world_size(group))]
        dist.all_gather(copies, after, group=group)
        assert all(torch.equal(one, after) for one in copies)


def case_sampler_loop() -> None:
    from torch.utils.data import DataLoader, TensorDataset
    from torch.utils.data.distributed import DistributedSampler

    data = TensorDataset(torch.arange(64).float().reshape(64, 1))
    sampler: DistributedSampler[Any] = DistributedSampler(data, shuffle=True, seed=3)
    total = torch.zeros(1)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for (x,) in DataLoader(data, batch_size=4, sampler=sampler):
            total += x.sum()
    dist.all_reduce(total)
    assert total.item() == 2 * sum(range(64))


def case_zero_redundancy_optimizer() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = DDP(network())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.01)
    for step in range(3):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x, True), y).backward()
        optimizer.step()
    all_equal(model)


def case_fsdp2() -> None:
    from torch.distributed.fsdp import fully_shard

    def build() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

    reference = DDP(build(), process_group=GLOO)
    model = build()
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    optimizers = [torch.optim.Adam(m.parameters(), 0.01) for m in (model, reference)]
    for step in range(4):
        x, y = batch(step)
        for m, optimizer in zip((model, reference), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(m(x), y).backward()
            if m is model:
                nn.utils.clip_grad_norm_(m.parameters(), 1e9)
            optimizer.step()
    full = torch.cat([p.full_tensor().detach().reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(full, flat(reference), rtol=1e-4, atol=1e-5)


def case_fsdp2_divide_factor_and_hsdp() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = nn.Linear(8, 8)
    fully_shard(model)
    model.set_gradient_divide_factor(2.0)
    model(torch.ones(1, 8)).sum().backward()
    grads = [p.grad.full_tensor() for p in model.parameters()]
    for grad in grads:
        torch.testing.assert_close(grad, torch.full_like(grad, SIZE / 2.0))
    if SIZE % 2 == 0:
        mesh = init_device_mesh("cpu", (2, SIZE // 2), mesh_dim_names=("replicate", "shard"))
        model = nn.Linear(8, 8)
        fully_shard(model, mesh=mesh)
        model(torch.ones(1, 8)).sum().backward()
        for parameter in model.parameters():
            torch.testing.assert_close(
                parameter.grad.full_tensor(), torch.ones_like(parameter.grad.full_tensor())
            )


def case_device_mesh_dtensor_and_functional_collectives() -> None:
    import torch.distributed._functional_collectives as funcol
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (SIZE,))
    whole = torch.arange(SIZE * 6.0).reshape(SIZE * 2, 3)
    sharded = distribute_tensor(whole, mesh, [Shard(0)])
    assert torch.equal(sharded.full_tensor(), whole)
    assert torch.equal(sharded.redistribute(mesh, [Replicate()]).to_local(), whole)
    assert torch.equal(sharded.redistribute(mesh, [Shard(1)]).full_tensor(), whole)
    assert torch.equal((sharded @ sharded.t()).full_tensor(), whole @ whole.t())
    assert sharded.sum().full_tensor() == whole.sum()
    group = mesh.get_group()
    reduced = funcol.all_reduce(torch.ones(3), "sum", group)
    assert torch.equal(funcol.wait_tensor(reduced), torch.full((3,), float(SIZE)))
    averaged = funcol.all_reduce(torch.full((3,), float(RANK)), "avg", group)
    assert torch.equal(funcol.wait_tensor(averaged), torch.full((3,), (SIZE - 1) / 2))
    gathered = funcol.all_gather_tensor(torch.full((2,), float(RANK)), 0, group)
    assert torch.equal(
        funcol.wait_tensor(gathered), torch.arange(SIZE).float().repeat_interleave(2)
    )
    scattered = funcol.reduce_scatter_tensor(torch.ones(SIZE * 2), "sum", 0, group)
    assert torch.equal(funcol.wait_tensor(scattered), torch.full((2,), float(SIZE)))
    swapped = funcol.all_to_all_single(torch.arange(SIZE).float(), None, None, group)
    assert torch.equal(funcol.wait_tensor(swapped), torch.full((SIZE,), float(RANK)))


def case_distributed_checkpoint() -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard

    box = [tempfile.mkdtemp(prefix="scant-dcp-") if RANK == 0 else None]
    dist.broadcast_object_list(box, src=0)
    directory = str(box[0])

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(RANK)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        fully_shard(model)
        return model, torch.optim.Adam(model.parameters(), 0.1)

    model, optimizer = build()
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    saved = {"model": model_state, "optimizer": optimizer_state}
    dcp.save(saved, checkpoint_id=directory)
    expected = [p.full_tensor().detach().clone() for p in model.parameters()]
    other, other_optimizer = build()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    model_state, optimizer_state = get_state_dict(other, other_optimizer)
    loaded = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(loaded, checkpoint_id=directory)
    set_state_dict(
        other,
        other_optimizer,
        model_state_dict=loaded["model"],
        optim_state_dict=loaded["optimizer"],
    )
    for parameter, value in zip(other.parameters(), expected, strict=True):
        assert torch.equal(parameter.full_tensor(), value)
    dist.barrier()
    if RANK == 0:
        for path in sorted(Path(directory).rglob("*"), reverse=True):
            path.unlink()
        Path(directory).rmdir()


def case_asynchronous_checkpoint() -> None:
    import torch.distributed.checkpoint as dcp

    box = [tempfile.mkdtemp(prefix="scant-dcp-") if RANK == 0 else None]
    dist.broadcast_object_list(box, src=0)
    directory = str(box[0])
    saved = {"shared": torch.arange(5.0), f"of rank {RANK}": torch.full((3,), float(RANK))}
    dcp.async_save(saved, checkpoint_id=directory).result()
    loaded = {name: torch.zeros_like(value) for name, value in saved.items()}
    dcp.load(loaded, checkpoint_id=directory)
    for name, value in saved.items():
        assert torch.equal(loaded[name], value), name
    dist.barrier()
    if RANK == 0:
        shutil.rmtree(directory)


def case_premultiplied_sums_of_integers() -> None:
    from torch._C._distributed_c10d import _make_nccl_premul_sum

    tensor = torch.full((3,), 2, dtype=torch.int32)
    dist.all_reduce(tensor, _make_nccl_premul_sum(3.0))
    assert tensor.tolist() == [6 * SIZE] * 3
    source, out = torch.full((SIZE,), 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    dist.reduce_scatter_tensor(out, source, _make_nccl_premul_sum(3.0))
    assert out.item() == 6 * SIZE
    half = _make_nccl_premul_sum(0.5)
    for call in (
        lambda: dist.all_reduce(tensor, half),
        lambda: dist.reduce(tensor, 0, half),
        lambda: dist.reduce_scatter_tensor(out, source, half),
    ):
        with raises(scant.InvalidArgument, "PREMUL_SUM", "torch.int", "0.5"):
            call()
    assert tensor.tolist() == [6 * SIZE] * 3


def case_groups_name_their_devices() -> None:
    devices = {"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"}
    whole, lone = dist.new_group(list(range(SIZE))), dist.new_group([0])
    for group in (dist.group.WORLD, whole, lone if RANK == 0 else whole):
        assert {device.type for device in group._device_types} == devices


def case_compiled_ddp() -> None:
    model = DDP(network())
    compiled = torch.compile(model, backend="aot_eager")
    reference = DDP(network(), process_group=GLOO)
    train(compiled, 3, True)
    train(reference, 3, True)
    all_equal(model)
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-4, atol=1e-5)


def case_compiled_function_with_all_reduce() -> None:
    @torch.compile(backend="aot_eager")
    def step(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        dist.all_reduce(y)
        return y + 1

    assert torch.equal(step(torch.ones(4)), torch.full((4,), 2.0 * SIZE + 1))


def case_model_averaging_and_state_dict() -> None:
    model = DDP(network())
    train(model, 2, True)
    state = copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    from torch.distributed.algorithms.model_averaging.utils import average_parameters

    lone = network()
    with torch.no_grad():
        for parameter in lone.parameters():
            parameter.fill_(RANK)
    average_parameters(iter(lone.parameters()), dist.group.WORLD)
    assert torch.allclose(flat(lone), torch.full_like(flat(lone), (SIZE - 1) / 2))


def case_init_again_on_the_same_store() -> None:
    dist.barrier()
    dist.destroy_process_group()
    assert not dist.is_initialized()
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) - 1)
    store = dist.TCPStore(
        "127.0.0.1", int(os.environ["MASTER_PORT"]), SIZE, RANK == 0, timedelta(seconds=30)
    )
    for attempt in range(3):
        dist.init_process_group("scant", store=store, rank=RANK, world_size=SIZE)
        tensor = torch.full((3,), float(attempt))
        dist.all_reduce(tensor)
        assert (tensor == attempt * SIZE).all()
        dist.destroy_process_group()
    # The store's host must outlive the others' last read.
    store.set(f"done {RANK}", "1")
    if RANK == 0:
        store.wait([f"done {rank}" for rank in range(SIZE)])


def between() -> None:
    if dist.is_initialized():
        dist.barrier()


run_cases(globals(), between)
