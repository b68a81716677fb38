"""Collectives, DDP and the hook on CUDA tensors, staged through pinned host memory.

All ranks share the devices there are, so one GPU is enough.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from ranks import RANK, SIZE, raises, run_cases
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

import scant
import scant.torch

DEVICE = torch.device("cuda", RANK % torch.cuda.device_count())
torch.cuda.set_device(DEVICE)
dist.init_process_group("scant", timeout=timedelta(seconds=60))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8)


def case_all_reduce() -> None:
    for dtype in DTYPES:
        for count in (0, 1, 1009, 1_000_000):
            tensor = torch.full((count,), RANK + 1, dtype=dtype, device=DEVICE)
            dist.all_reduce(tensor)
            expected = torch.full((count,), SIZE * (SIZE + 1) // 2, dtype=dtype, device=DEVICE)
            assert torch.equal(tensor, expected), (dtype, count)


def case_other_collectives() -> None:
    tensor = torch.full((5,), float(RANK), device=DEVICE)
    dist.broadcast(tensor, 1)
    assert (tensor == 1).all()
    out = torch.zeros(SIZE * 3, device=DEVICE)
    dist.all_gather_into_tensor(out, torch.full((3,), float(RANK), device=DEVICE))
    assert torch.equal(out.cpu(), torch.arange(SIZE).float().repeat_interleave(3))
    mine = torch.zeros(3, device=DEVICE)
    dist.reduce_scatter_tensor(mine, torch.ones(SIZE * 3, device=DEVICE), dist.ReduceOp.AVG)
    assert (mine == 1).all()
    swapped = torch.zeros(SIZE, device=DEVICE)
    dist.all_to_all_single(swapped, torch.full((SIZE,), float(RANK), device=DEVICE))
    assert torch.equal(swapped.cpu(), torch.arange(SIZE).float())
    if RANK == 0:
        dist.send(torch.full((4,), 7.0, device=DEVICE), 1)
    elif RANK == 1:
        received = torch.zeros(4, device=DEVICE)
        dist.recv(received, 0)
        assert (received == 7).all()


def case_order_with_the_current_stream() -> None:
    """The operation sees what was enqueued before it; what is enqueued after wait sees its end."""
    for _ in range(20):
        tensor = torch.zeros(500_000, device=DEVICE)
        for _ in range(50):
            tensor += 1  # still running when all_reduce is called
        work = dist.all_reduce(tensor, async_op=True)
        work.wait()
        doubled = tensor * 2
        assert (doubled == 100 * SIZE).all()


def case_other_streams() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensor = torch.ones(100_000, device=DEVICE)
        dist.all_reduce(tensor)
        doubled = tensor * 2
    stream.synchronize()
    assert (doubled == 2 * SIZE).all()


def case_memory_is_not_reused_too_early() -> None:
    works = []
    for index in range(30):
        tensor = torch.full((100_000,), float(index), device=DEVICE)
        works.append((index, dist.all_reduce(tensor, async_op=True)))
        del tensor
        torch.full((100_000,), -1.0, device=DEVICE)
    for index, work in works:
        work.wait()
        assert (work.result()[0] == index * SIZE).all()


def case_futures() -> None:
    tensor = torch.ones(1000, device=DEVICE)
    future = dist.all_reduce(tensor, async_op=True).get_future()
    doubled = future.then(lambda f: f.value()[0] * 2)
    assert (doubled.wait() == 2 * SIZE).all()


def case_cpu_and_cuda_calls_keep_their_order() -> None:
    for _ in range(20):
        on_gpu = torch.ones(300_000, device=DEVICE)
        on_cpu = torch.ones(10)
        first = dist.all_reduce(on_gpu, async_op=True)
        second = dist.all_reduce(on_cpu, async_op=True)
        second.wait()
        first.wait()
        assert (on_cpu == SIZE).all()
        assert (on_gpu == SIZE).all()


def case_non_contiguous_and_mixed_devices() -> None:
    wide = torch.ones(10, 10, device=DEVICE)
    dist.all_reduce(wide[:, ::2])
    assert (wide[:, ::2] == SIZE).all()
    assert (wide[:, 1::2] == 1).all()
    with raises(scant.InvalidArgument, "both"):
        dist.all_gather([torch.ones(1)] * SIZE, torch.ones(1, device=DEVICE))


def case_sparse() -> None:
    tensor = torch.sparse_coo_tensor(torch.tensor([[RANK]]), torch.ones(1), (SIZE,)).to(DEVICE)
    dist.all_reduce(tensor)
    assert (tensor.to_dense() == 1).all()


def case_ddp_and_hook() -> None:
    def train(hook: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = DDP(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).to(DEVICE))
        if hook:
            model.register_comm_hook(dist.group.WORLD, scant.torch.ddp_hook)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(5):
            torch.manual_seed(step * 10 + RANK)
            optimizer.zero_grad()
            model(torch.randn(8, 64, device=DEVICE)).square().sum().backward()
            optimizer.step()
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    plain, hooked = train(False), train(True)
    torch.testing.assert_close(plain, hooked, rtol=1e-4, atol=1e-5)
    copies = torch.zeros(SIZE, plain.numel(), device=DEVICE)
    dist.all_gather_into_tensor(copies, plain)
    assert all(torch.equal(copy, plain) for copy in copies)


run_cases(globals(), dist.barrier)
