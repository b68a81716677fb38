"""Every call of torch.distributed on the backend, against gloo on the same tensors."""

from __future__ import annotations

import functools
import itertools
import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from ranks import RANK, SIZE, raises, run_cases

import scant
import scant.torch

dist.init_process_group("scant", timeout=timedelta(seconds=30))
GLOO: Any = dist.new_group(backend="gloo")  # torch 2.14 may also return a number
OPS = dist.ReduceOp
SIZES = (0, 1, 7, 64, 1009, 70_001)
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
)


def make(count: int, dtype: torch.dtype, rank: int = RANK) -> torch.Tensor:
    """Different on every rank, exact in every dtype."""
    values = (torch.arange(count) * 7 + rank * 3) % 5 + 1
    return values.to(dtype)


def everyone(count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """What make() gives on each rank."""
    return [make(count, dtype, rank) for rank in range(SIZE)]


def same(actual: torch.Tensor, expected: torch.Tensor, what: object = "") -> None:
    """Equal in dtype, shape and every bit."""
    assert actual.dtype == expected.dtype, what
    assert torch.equal(actual, expected), f"{what}: {actual} is not {expected}"


def case_is_the_backend() -> None:
    assert dist.get_backend() == "scant"
    assert (dist.get_rank(), dist.get_world_size()) == (RANK, SIZE)
    group: Any = dist.group.WORLD
    assert isinstance(group, scant.torch.ProcessGroup)
    assert (group.rank(), group.size(), group.name()) == (RANK, SIZE, "scant")
    assert group.group_name
    assert group.group_desc == "default_pg"


def case_all_reduce_against_gloo() -> None:
    ops = (OPS.SUM, OPS.PRODUCT, OPS.MIN, OPS.MAX)
    for dtype, count, op in itertools.product(DTYPES, SIZES, ops):
        ours, theirs = make(count, dtype), make(count, dtype)
        dist.all_reduce(ours, op)
        if count:
            dist.all_reduce(theirs, op, group=GLOO)
        same(ours, theirs, (dtype, count, op))
    for dtype, op in itertools.product((torch.int32, torch.uint8), (OPS.BAND, OPS.BOR, OPS.BXOR)):
        ours, theirs = make(100, dtype), make(100, dtype)
        dist.all_reduce(ours, op)
        dist.all_reduce(theirs, op, group=GLOO)
        same(ours, theirs, (dtype, op))


def case_all_reduce_random_floats_are_identical_everywhere() -> None:
    generator = torch.Generator().manual_seed(RANK)
    for count in (1, 1000, 300_000):
        tensor = torch.randn(count, generator=generator)
        reference = tensor.clone()
        dist.all_reduce(tensor)
        dist.all_reduce(reference, group=GLOO)
        torch.testing.assert_close(tensor, reference, rtol=1e-5, atol=1e-5)
        copies = [torch.empty(count) for _ in range(SIZE)]
        dist.all_gather(copies, tensor)
        for copy in copies:
            same(copy, tensor)


def case_average_and_premultiplied_sum() -> None:
    from torch._C._distributed_c10d import _make_nccl_premul_sum

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        tensor = torch.full((10,), float(RANK), dtype=dtype)
        dist.all_reduce(tensor, OPS.AVG)
        same(tensor, torch.full((10,), (SIZE - 1) / 2, dtype=dtype))
        tensor = torch.full((10,), 4.0, dtype=dtype)
        dist.all_reduce(tensor, _make_nccl_premul_sum(0.5))
        same(tensor, torch.full((10,), 2.0 * SIZE, dtype=dtype))
    source, out = torch.full((2 * SIZE,), 4.0), torch.zeros(2)
    dist.reduce_scatter_tensor(out, source, _make_nccl_premul_sum(0.25))
    same(out, torch.full((2,), float(SIZE)))
    same(source, torch.full((2 * SIZE,), 4.0), "the input keeps its values")
    dist.reduce_scatter_tensor(out, source, OPS.AVG)
    same(out, torch.full((2,), 4.0))


def case_bool_and_complex() -> None:
    flags = torch.tensor([RANK == 0, False, True])
    dist.all_reduce(flags, OPS.MAX)
    same(flags, torch.tensor([True, False, True]))
    for dtype in (torch.complex64, torch.complex128):
        tensor = torch.full((3,), complex(1, RANK), dtype=dtype)
        dist.all_reduce(tensor)
        same(tensor, torch.full((3,), complex(SIZE, SIZE * (SIZE - 1) // 2), dtype=dtype))
        out = [torch.zeros(2, dtype=dtype) for _ in range(SIZE)]
        dist.all_gather(out, torch.full((2,), complex(RANK, 1), dtype=dtype))
        same(out[-1], torch.full((2,), complex(SIZE - 1, 1), dtype=dtype))
    with raises(Exception, "complex"):
        dist.all_reduce(torch.ones(1, dtype=torch.complex64), OPS.MAX)


def case_dtypes_that_are_only_moved() -> None:
    for dtype in (torch.int16, torch.float8_e4m3fn, torch.bool):
        tensor = torch.full((5,), RANK == 0, dtype=torch.float32).to(dtype)
        dist.broadcast(tensor, 0)
        same(tensor.float(), torch.ones(5))
    with raises(scant.InvalidArgument, "torch.int16"):
        dist.all_reduce(torch.ones(3, dtype=torch.int16))


def case_broadcast_and_reduce_from_every_root() -> None:
    for root, dtype, count in itertools.product(range(SIZE), DTYPES, (0, 1, 1009)):
        tensor = make(count, dtype)
        dist.broadcast(tensor, root)
        same(tensor, make(count, dtype, root))
        for op in (OPS.SUM, OPS.MAX, OPS.PRODUCT):
            ours, theirs = make(count, dtype), make(count, dtype)
            dist.reduce(ours, root, op)
            if count:
                dist.all_reduce(theirs, op, group=GLOO)
            if root == RANK:
                same(ours, theirs, (dtype, op))


def case_all_gather_forms() -> None:
    for dtype, count in itertools.product(DTYPES, SIZES):
        expected = everyone(count, dtype)
        outputs = [torch.zeros(count, dtype=dtype) for _ in range(SIZE)]
        dist.all_gather(outputs, make(count, dtype))
        for output, other in zip(outputs, expected, strict=True):
            same(output, other)
        flat = torch.zeros(SIZE * count, dtype=dtype)
        dist.all_gather_into_tensor(flat, make(count, dtype))
        same(flat, torch.cat(expected))
    stacked = torch.zeros(SIZE, 2, 3)
    dist.all_gather_into_tensor(stacked, torch.full((2, 3), float(RANK)))
    assert all((stacked[rank] == rank).all() for rank in range(SIZE))
    in_place = torch.zeros(SIZE * 10)
    mine = in_place[RANK * 10 : RANK * 10 + 10]
    mine.fill_(RANK + 1)
    dist.all_gather_into_tensor(in_place, mine)
    same(in_place, torch.arange(1, SIZE + 1).float().repeat_interleave(10))


def case_reduce_scatter_forms() -> None:
    for dtype, count in itertools.product(DTYPES, SIZES):
        inputs = [make(count, dtype) + part for part in range(SIZE)]
        expected = torch.zeros(count, dtype=dtype)
        for rank in range(SIZE):
            expected += make(count, dtype, rank) + RANK
        output = torch.zeros(count, dtype=dtype)
        dist.reduce_scatter(output, inputs)
        same(output, expected, (dtype, count))
        output = torch.zeros(count, dtype=dtype)
        dist.reduce_scatter_tensor(output, torch.cat(inputs))
        same(output, expected, (dtype, count))
    whole = torch.ones(SIZE * 5)
    mine = whole[RANK * 5 : RANK * 5 + 5]
    dist.reduce_scatter_tensor(mine, whole)
    same(mine, torch.full((5,), float(SIZE)), "output is a part of the input")


def case_gather_and_scatter() -> None:
    for root, dtype in itertools.product(range(SIZE), DTYPES):
        outputs = [torch.zeros(5, dtype=dtype) for _ in range(SIZE)] if root == RANK else None
        dist.gather(make(5, dtype), outputs, dst=root)
        if outputs is not None:
            for output, other in zip(outputs, everyone(5, dtype), strict=True):
                same(output, other)
        inputs = everyone(5, dtype) if root == RANK else None
        output = torch.zeros(5, dtype=dtype)
        dist.scatter(output, inputs, src=root)
        same(output, make(5, dtype))


def case_all_to_all_forms() -> None:
    for dtype in DTYPES:
        inputs = [torch.full((RANK + peer,), peer, dtype=dtype) for peer in range(SIZE)]
        outputs = [torch.zeros(RANK + peer, dtype=dtype) for peer in range(SIZE)]
        dist.all_to_all(outputs, inputs)
        for peer, output in enumerate(outputs):
            same(output, torch.full((RANK + peer,), RANK, dtype=dtype))
    equal = torch.arange(SIZE * 2) + 100 * RANK
    out = torch.zeros(SIZE * 2, dtype=torch.int64)
    dist.all_to_all_single(out, equal)
    reference = torch.zeros_like(out)
    dist.all_to_all_single(reference, equal, group=GLOO)
    same(out, reference)
    splits_in = [RANK + peer for peer in range(SIZE)]
    splits_out = [peer + RANK for peer in range(SIZE)]
    uneven = torch.rand(sum(splits_in), 3)
    out, reference = torch.zeros(sum(splits_out), 3), torch.zeros(sum(splits_out), 3)
    dist.all_to_all_single(out, uneven, splits_out, splits_in)
    dist.all_to_all_single(reference, uneven, splits_out, splits_in, group=GLOO)
    same(out, reference)


def case_point_to_point() -> None:
    if SIZE == 1:
        return
    right, left = (RANK + 1) % SIZE, (RANK - 1) % SIZE
    for count, tag in ((0, 0), (1, 1), (100_000, 2)):
        incoming = torch.zeros(count)
        receive = dist.irecv(incoming, left, tag=tag)
        send = dist.isend(make(count, torch.float32), right, tag=tag)
        send.wait()
        receive.wait()
        same(incoming, make(count, torch.float32, left))
    incoming = torch.zeros(4)
    ops = [
        dist.P2POp(dist.isend, make(4, torch.float32), right),
        dist.P2POp(dist.irecv, incoming, left),
    ]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    same(incoming, make(4, torch.float32, left))


def case_receive_from_any_source() -> None:
    if RANK == 0:
        seen = set()
        for _ in range(SIZE - 1):
            tensor = torch.zeros(2)
            source = dist.recv(tensor)
            assert (tensor == source).all()
            seen.add(source)
        assert seen == set(range(1, SIZE))
    else:
        dist.send(torch.full((2,), float(RANK)), 0)


def case_non_contiguous_tensors() -> None:
    wide = torch.full((4, 6), float(RANK + 1))
    columns = wide[:, ::2]
    dist.all_reduce(columns)
    total = SIZE * (SIZE + 1) // 2
    assert (wide[:, ::2] == total).all()
    assert (wide[:, 1::2] == RANK + 1).all()
    transposed = (torch.arange(6.0).reshape(2, 3) * (RANK + 1)).t()
    outputs = [torch.zeros(2, 3).t() for _ in range(SIZE)]
    dist.all_gather(outputs, transposed)
    for rank, output in enumerate(outputs):
        same(output, (torch.arange(6.0).reshape(2, 3) * (rank + 1)).t())
    images = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    dist.broadcast(images, 0)
    copies = torch.zeros(SIZE, 2, 3, 4, 4)
    dist.all_gather_into_tensor(copies, images.contiguous())
    for copy in copies:
        same(copy, images.contiguous())


def case_coalesced_calls() -> None:
    for counts in ((3, 5, 0), (3, 200_000)):
        tensors = [torch.full((count,), float(RANK + i)) for i, count in enumerate(counts)]
        group: Any = dist.group.WORLD
        group.allreduce_coalesced(tensors, dist.AllreduceCoalescedOptions()).wait()
        for i, tensor in enumerate(tensors):
            assert (tensor == SIZE * (SIZE - 1) // 2 + SIZE * i).all()
    with dist._coalescing_manager(async_ops=True) as manager:
        tensors = [torch.full((4,), float(RANK + i)) for i in range(3)]
        for tensor in tensors:
            dist.all_reduce(tensor)
    manager.wait()
    for i, tensor in enumerate(tensors):
        assert (tensor == SIZE * (SIZE - 1) // 2 + SIZE * i).all()
    with dist._coalescing_manager(device=torch.device("cpu"), async_ops=True) as manager:
        outputs = [torch.zeros(SIZE * 2) for _ in range(2)]
        for i, output in enumerate(outputs):
            dist.all_gather_into_tensor(output, torch.full((2,), float(RANK + i)))
    manager.wait()
    for i, output in enumerate(outputs):
        same(output, torch.arange(SIZE).float().repeat_interleave(2) + i)


def case_sparse_all_reduce() -> None:
    indices = torch.tensor([[RANK, 3, RANK], [0, 1, 0]])  # not coalesced
    values = torch.tensor([1.0, 2.0, 3.0])
    tensor = torch.sparse_coo_tensor(indices, values, (SIZE + 4, 2))
    expected = sum(
        torch.sparse_coo_tensor(
            torch.tensor([[rank, 3, rank], [0, 1, 0]]), values, (SIZE + 4, 2)
        ).to_dense()
        for rank in range(SIZE)
    )
    ours = tensor.clone()
    dist.all_reduce(ours)
    torch.testing.assert_close(ours.to_dense(), expected)
    hybrid = torch.sparse_coo_tensor(torch.tensor([[RANK]]), torch.ones(1, 3), (SIZE, 3))
    dist.all_reduce(hybrid, OPS.AVG)
    torch.testing.assert_close(hybrid.to_dense(), torch.full((SIZE, 3), 1 / SIZE))
    empty = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0), (5,))
    dist.all_reduce(empty)
    assert empty._nnz() == 0
    if SIZE > 1:
        with raises(scant.Mismatch, "another shape"):
            dist.all_reduce(torch.sparse_coo_tensor(size=(5 + RANK,)))


def case_work_and_future() -> None:
    tensor = torch.ones(1000)
    work = dist.all_reduce(tensor, async_op=True)
    future = work.get_future()
    assert future is work.get_future()
    (value,) = future.wait()
    assert value is tensor or value.data_ptr() == tensor.data_ptr()
    assert (tensor == SIZE).all()
    assert work.wait()
    assert work.wait(timedelta(seconds=5))
    assert work.is_completed()
    assert work.is_success()
    assert work.exception() is None
    assert work.result()[0] is tensor
    futures = []
    for index in range(50):
        late = torch.full((10,), float(index))
        futures.append((index, dist.all_reduce(late, async_op=True).get_future()))
    doubled = [(index, future.then(lambda f: f.value()[0] * 2)) for index, future in futures]
    for index, future in reversed(doubled):
        same(future.wait(), torch.full((10,), 2.0 * SIZE * index))


def case_future_of_a_failed_operation() -> None:
    if SIZE == 1:
        return
    if RANK == 0:
        group: Any = dist.group.WORLD
        opts = dist.AllreduceOptions()
        opts.timeout = timedelta(milliseconds=200)
        pair = dist.new_group([0, 1])
        work = pair.allreduce([torch.ones(1)], opts)  # rank 1 comes late on purpose
        with raises(RuntimeError, "timeout"):
            work.get_future().wait()
        assert isinstance(work.exception(), scant.Timeout)
        assert not work.is_success()
        assert group is not None
    else:
        dist.new_group([0, 1])


def case_calls_queue_behind_the_staging_thread() -> None:
    # What follows a call on a CUDA tensor waits its turn in the staging thread, also on the CPU.
    from scant import lifetime
    from scant.torch.backend.work import StagedWork

    group: Any = dist.group.WORLD
    free = threading.Event()
    group._staged += 1
    lifetime.staging().post(free.wait)
    tensors = [torch.full((100,), float(RANK + index)) for index in range(10)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    assert all(isinstance(work, StagedWork) for work in works)
    assert not any(work.is_completed() for work in works)
    future = works[3].get_future().then(lambda f: f.value()[0] + 1)
    with raises(TimeoutError, "device"):
        works[0].wait(timedelta(milliseconds=50))
    with raises(scant.InvalidArgument, "one tensor"):
        group.broadcast([torch.ones(1), torch.ones(1)], dist.BroadcastOptions())
    pieces = [torch.zeros(2) for _ in range(SIZE)]
    gathered = dist.all_gather(pieces, torch.full((2,), float(RANK)), async_op=True)
    free.set()
    group._staged -= 1
    for index, work in enumerate(works):
        work.wait()
        assert work.is_success()
        assert (tensors[index] == SIZE * (SIZE - 1) // 2 + SIZE * index).all()
    assert (future.wait() == SIZE * (SIZE - 1) // 2 + SIZE * 3 + 1).all()
    gathered.wait()
    assert all((piece == rank).all() for rank, piece in enumerate(pieces))


def case_callbacks_may_submit_and_wait() -> None:
    # As the PowerSGD hook does, while the program goes on submitting.
    def more(future: Any) -> torch.Tensor:
        tensor = future.value()[0]
        dist.all_reduce(tensor)
        inner = dist.all_reduce(tensor, async_op=True).get_future()
        return inner.wait()[0]

    futures = []
    for index in range(10):
        first = dist.all_reduce(torch.full((10,), 1.0 + index), async_op=True).get_future()
        futures.append(first.then(more))
        dist.all_reduce(torch.ones(1000))
    for index, future in enumerate(futures):
        assert (future.wait() == (1.0 + index) * SIZE**3).all()


def case_objects_and_barriers() -> None:
    objects: list[Any] = [None] * SIZE
    dist.all_gather_object(objects, {"rank": RANK, "text": "x" * RANK})
    assert [entry["rank"] for entry in objects] == list(range(SIZE))
    box = [("from", RANK)]
    dist.broadcast_object_list(box, src=SIZE - 1)
    assert box == [("from", SIZE - 1)]
    gathered: list[Any] | None = [None] * SIZE if RANK == 0 else None
    dist.gather_object(RANK, gathered, dst=0)
    if gathered is not None:
        assert gathered == list(range(SIZE))
    mine: list[Any] = [None]
    dist.scatter_object_list(mine, [f"for {rank}" for rank in range(SIZE)], src=0)
    assert mine == [f"for {RANK}"]
    dist.barrier()
    dist.barrier(async_op=True).wait()
    group: Any = dist.group.WORLD
    group.monitored_barrier(timedelta(seconds=10))


def case_subgroups() -> None:
    from scant.torch.backend.membership import Base

    halves = [[rank for rank in range(SIZE) if rank % 2 == parity] for parity in (0, 1)]
    groups = [dist.new_group(half) for half in halves]
    assert len(Base.open) == 1, "subgroups of one communicator share it"
    members = [rank for rank in range(SIZE) if rank % 2 == RANK % 2]
    group = groups[RANK % 2]
    tensor = torch.full((5,), float(RANK))
    dist.all_reduce(tensor, group=group)
    assert (tensor == sum(members)).all()
    tensor = torch.full((5,), float(RANK))
    dist.broadcast(tensor, src=members[-1], group=group)
    assert (tensor == members[-1]).all()
    backwards = dist.new_group(list(range(SIZE))[::-1])
    out = torch.zeros(SIZE)
    dist.all_gather_into_tensor(out, torch.full((1,), float(RANK)), group=backwards)
    alone = dist.new_group([RANK], use_local_synchronization=True)
    single = torch.ones(3)
    dist.all_reduce(single, group=alone)
    same(single, torch.ones(3))
    for index in range(3):
        again = dist.new_group()
        tensor = torch.ones(1)
        dist.all_reduce(tensor, group=again)
        assert tensor.item() == SIZE
        if index:
            dist.destroy_process_group(again)
            with raises(scant.Closed, "shut down"):
                again.allreduce([torch.ones(1)], dist.AllreduceOptions())


def case_bad_arguments() -> None:
    with raises(scant.InvalidArgument, "elements"):
        dist.all_gather_into_tensor(torch.zeros(SIZE * 3 + 1), torch.zeros(3))
    with raises(scant.InvalidArgument, "elements"):
        dist.reduce_scatter_tensor(torch.zeros(3), torch.zeros(SIZE * 3 + 1))
    group: Any = dist.group.WORLD
    opts = dist.BroadcastOptions()
    opts.rootRank = SIZE
    with raises(scant.InvalidArgument, "out of range"):
        group.broadcast([torch.ones(1)], opts)
    with raises(scant.InvalidArgument, "one tensor"):
        group.broadcast([torch.ones(1), torch.ones(1)], opts)
    with raises(scant.InvalidArgument, "split sizes"):
        dist.all_to_all_single(torch.ones(4), torch.ones(4), [9] * SIZE, [9] * SIZE)
    with raises(scant.InvalidArgument, "dense"):
        dist.broadcast(torch.sparse_coo_tensor(size=(3,)), 0)
    with raises(scant.InvalidArgument, "timeout must be positive"):
        group.set_timeout(timedelta(0))
    with raises(scant.InvalidArgument, "cannot be reduced with MAX"):
        dist.all_reduce(torch.sparse_coo_tensor(size=(3,)), OPS.MAX)


def case_ranks_that_disagree_get_an_error() -> None:
    if SIZE == 1:
        return
    for mine in ((torch.ones(3), torch.ones(4)), (torch.ones(4), torch.ones(4).int())):
        group = dist.new_group()
        with raises(scant.Mismatch):
            dist.all_reduce(mine[RANK % 2], group=group)
    for moved in ((torch.int16, torch.uint16), (torch.float8_e4m3fn, torch.float8_e5m2)):
        group = dist.new_group()
        with raises(scant.Mismatch, *(str(dtype).removeprefix("torch.") for dtype in moved)):
            dist.broadcast(torch.ones(4).to(moved[RANK % 2]), 0, group=group)
            dist.barrier(group)
    call = functools.partial(dist.broadcast, src=0) if RANK else dist.all_reduce
    with raises(scant.Mismatch):
        call(torch.ones(4), group=dist.new_group())


run_cases(globals(), dist.barrier)
