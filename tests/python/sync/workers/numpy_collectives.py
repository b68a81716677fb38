"""scant.Communicator on NumPy arrays, in a process that cannot import torch."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from typing import Any

import numpy as np
from ranks import RANK, SIZE, raises, run_cases

import scant

BLOCKED: dict[str, Any] = sys.modules
BLOCKED["torch"] = None

comm = scant.Communicator.from_env(operation_timeout=30.0)


def rank_array(rank: int, count: int, dtype: str) -> np.ndarray:
    """Different on every rank, small enough to be exact in every dtype."""
    return ((np.arange(count) * 7 + rank * 3) % 5 + 1).astype(dtype)


def case_torch_is_not_there() -> None:
    assert BLOCKED["torch"] is None
    assert not any(name.startswith("torch.") for name in sys.modules)


def case_all_reduce_every_dtype_and_op() -> None:
    reductions: dict[str, np.ufunc] = {
        "sum": np.add,
        "product": np.multiply,
        "min": np.minimum,
        "max": np.maximum,
        "bit_and": np.bitwise_and,
        "bit_or": np.bitwise_or,
        "bit_xor": np.bitwise_xor,
    }
    for dtype in ("float32", "float64", "float16", "int8", "int32", "int64", "uint8"):
        for count in (0, 1, 7, 1009):
            arrays = [rank_array(rank, count, dtype) for rank in range(SIZE)]
            for op, function in reductions.items():
                if op.startswith("bit_") and dtype.startswith("float"):
                    continue
                expected = arrays[0]
                for other in arrays[1:]:
                    expected = function(expected, other).astype(dtype)
                mine = arrays[RANK].copy()
                assert comm.all_reduce(mine, op) is mine
                np.testing.assert_array_equal(mine, expected, f"{dtype} {op} {count}")


def case_all_reduce_average() -> None:
    mine = np.full(5, float(RANK))
    comm.all_reduce(mine, "mean")
    assert all(abs(value - (SIZE - 1) / 2) < 1e-12 for value in mine.tolist()), mine


def case_all_reduce_into_out_keeps_input() -> None:
    mine, out = np.full(3, RANK + 1, np.int64), np.zeros(3, np.int64)
    assert comm.all_reduce(mine, out=out) is out
    assert (mine == RANK + 1).all()
    assert (out == SIZE * (SIZE + 1) // 2).all()


def case_bool_sum_is_or() -> None:
    mine = np.array([RANK == 0, False, True])
    comm.all_reduce(mine)
    assert mine.tolist() == [True, False, True]


def case_broadcast_reduce_barrier() -> None:
    for root in range(SIZE):
        data = np.full(4, RANK, np.int32)
        comm.broadcast(data, root)
        assert (data == root).all()
        mine = np.full(4, RANK + 1, np.int32)
        comm.reduce(mine, root)
        assert (mine == (SIZE * (SIZE + 1) // 2 if root == RANK else RANK + 1)).all()
        comm.barrier()


def case_gathers_and_scatters() -> None:
    stacked = comm.all_gather(np.full((2, 3), RANK, np.int16))  # moved, not reduced: any dtype
    assert stacked.shape == (SIZE, 2, 3)
    assert all((stacked[rank] == rank).all() for rank in range(SIZE))
    root = SIZE - 1
    gathered = comm.gather(np.full(2, RANK), root)
    if root == RANK:
        assert gathered.tolist() == [[rank, rank] for rank in range(SIZE)]
    out = np.zeros(2)
    parts = np.repeat(np.arange(SIZE, dtype=np.float64), 2) if RANK == 0 else None
    comm.scatter(parts, 0, out)
    assert (out == RANK).all()
    out = np.zeros(2, np.float32)
    comm.reduce_scatter(np.repeat(np.arange(SIZE, dtype=np.float32), 2), out)
    assert (out == RANK * SIZE).all()


def case_uneven_all_gather_and_all_to_all() -> None:
    out = [np.zeros(rank, np.int32) for rank in range(SIZE)]
    comm.all_gather(np.full(RANK, RANK, np.int32), out)
    assert all((out[rank] == rank).all() for rank in range(SIZE))
    sources = [np.full(RANK + peer, RANK * 10 + peer, np.int32) for peer in range(SIZE)]
    targets = [np.zeros(RANK + peer, np.int32) for peer in range(SIZE)]
    comm.all_to_all(sources, targets)
    assert all((targets[peer] == peer * 10 + RANK).all() for peer in range(SIZE))


def case_exchange_of_parts_whose_sizes_only_the_sender_knows() -> None:
    def part(source: int, target: int) -> bytes:
        return bytes([source * 16 + target]) * ((source * 700_001 + target * 5) % 1_000_000)

    parts = [part(RANK, peer) for peer in range(SIZE)]
    came = comm.exchange(parts, 1_000_000)
    assert [array.tobytes() for array in came] == [part(peer, RANK) for peer in range(SIZE)]
    nothing = comm.exchange([b""] * SIZE, 0)
    assert [array.size for array in nothing] == [0] * SIZE

    # The own part where it shall lie, others of any dtype, in the memory that is given.
    out = np.full((SIZE, 6), 99, np.int32)
    own = out[RANK, :2]
    own[:] = RANK
    arrays = [own if peer == RANK else np.full(RANK + 1, peer, np.int32) for peer in range(SIZE)]
    work = comm.exchange(arrays, 24, out=out, priority=3, async_op=True)
    for peer, array in enumerate(work.wait()):
        count, value = (2, RANK) if peer == RANK else (peer + 1, RANK)
        assert array.view(np.int32).tolist() == [value] * count
        assert out[peer].tolist() == [value] * count + [99] * (6 - count)


def case_exchange_refuses() -> None:
    with raises(scant.InvalidArgument, "list of"):
        comm.exchange(np.zeros(SIZE), 8)  # type: ignore[arg-type]
    with raises(scant.InvalidArgument, "capacity"):
        comm.exchange([b""] * SIZE, -1)
    with raises(scant.InvalidArgument, "the capacity is 8"):
        comm.exchange([b""] * SIZE, 8, out=np.zeros((SIZE, 9), np.uint8))
    with raises(scant.InvalidArgument, "has 9 bytes, the capacity is 8"):
        comm.exchange([b"x" * 9] * SIZE, 8)


def case_send_recv() -> None:
    if SIZE == 1:
        return
    right, left = (RANK + 1) % SIZE, (RANK - 1) % SIZE
    incoming = np.zeros(3)
    work = comm.recv(incoming, left, tag=5, async_op=True)
    comm.send(np.full(3, float(RANK)), right, tag=5)
    assert work.wait() is incoming
    assert (incoming == left).all()
    work = comm.recv(incoming, None, tag=6, async_op=True)
    comm.send(np.full(3, RANK + 100.0), right, tag=6)
    work.wait()
    assert work.source == left
    assert (incoming == left + 100).all()


def case_async_operations_overlap() -> None:
    arrays = [np.full(1000, RANK + index, np.int64) for index in range(20)]
    works = [comm.all_reduce(array, async_op=True) for array in arrays]
    for index, work in reversed(list(enumerate(works))):
        assert (work.wait() == SIZE * (SIZE - 1) // 2 + SIZE * index).all()
        assert work.done()
        assert work.exception() is None


def case_dropped_work_keeps_its_buffer() -> None:
    """A receive that nobody keeps or waits for: what it writes to is there until it has."""
    if SIZE == 1:
        return
    right, left = (RANK + 1) % SIZE, (RANK - 1) % SIZE
    incoming = np.zeros(10_000)
    there = weakref.ref(incoming)
    comm.recv(incoming, left, tag=9, async_op=True)
    del incoming
    gc.collect()
    comm.barrier()
    array = there()  # nobody sends before the next barrier, so it cannot be done
    assert array is not None, "freed while the operation may still write to it"
    comm.barrier()
    comm.send(np.full(10_000, RANK + 1.0), right, tag=9)
    comm.send(np.ones(1), right, tag=9)
    comm.recv(np.zeros(1), left, tag=9)  # of one sender and tag messages come in order
    assert (array == left + 1).all()


def case_threads_share_the_communicator() -> None:
    groups = [comm.group(range(SIZE), f"thread {index}") for index in range(3)]
    errors: list[BaseException] = []

    def body(group: scant.Group) -> None:
        try:
            for _ in range(20):
                assert group.all_reduce(np.ones(10))[0] == SIZE
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def case_groups() -> None:
    members = [rank for rank in range(SIZE) if rank % 2 == RANK % 2][::-1]
    group = comm.group(members, f"parity {RANK % 2}")
    assert (group.size, group.rank) == (len(members), members.index(RANK))
    mine = np.full(2, RANK)
    group.broadcast(mine, 0)
    assert (mine == members[0]).all()
    assert group.all_reduce(np.full(1, RANK))[0] == sum(members)
    with raises(scant.InvalidArgument, "is not in the group"):
        comm.group([(RANK + 1) % SIZE] if SIZE > 1 else [], "other")
    group.release()
    group.release()
    with raises(scant.InvalidArgument, "does not exist"):
        group.barrier()


def case_types_that_only_move_must_agree() -> None:
    for name in ("int16", "uint32", "complex64"):
        mine = np.full(3, RANK + 1, name)
        comm.broadcast(mine, 0)
        assert (mine == 1).all()
    if SIZE == 1:
        return
    group = comm.group(list(range(SIZE)), "moved types")
    mine = np.ones(4, np.complex64) if RANK == 0 else np.ones(16, np.int16)
    with raises(scant.Mismatch, "32 bytes complex64", "32 bytes int16"):
        group.broadcast(mine, 0)
        group.barrier()


def case_other_buffers() -> None:
    data = bytearray(b"%d" % RANK * 4)
    comm.broadcast(data, 0)
    assert data == b"0000"
    view = memoryview(bytearray(8)).cast("d")
    view[0] = 1.5
    comm.all_reduce(view)
    assert view[0] == 1.5 * SIZE


def case_multidimensional_and_fortran_order() -> None:
    cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    expected = cube * SIZE
    comm.all_reduce(cube)
    np.testing.assert_array_equal(cube, expected)
    with raises(scant.InvalidArgument, "not contiguous"):
        comm.all_reduce(np.asfortranarray(cube))
    with raises(scant.InvalidArgument, "not contiguous"):
        comm.all_reduce(cube[:, :, ::2])


def case_bad_arguments_are_refused_at_once() -> None:
    with raises(scant.InvalidArgument, "int16", "cannot be reduced"):
        comm.all_reduce(np.ones(3, np.int16))
    with raises(scant.InvalidArgument, "read-only"):
        frozen = np.ones(3)
        frozen.flags.writeable = False
        comm.all_reduce(frozen)
    with raises(scant.InvalidArgument, "list"):
        comm.all_reduce([1.0, 2.0])
    with raises(scant.InvalidArgument, "root 99"):
        comm.broadcast(np.ones(1), 99)
    with raises(scant.InvalidArgument, "root -1"):
        comm.broadcast(np.ones(1), -1)
    with raises(scant.InvalidArgument, "peer"):
        comm.send(np.ones(1), SIZE)
    with raises(scant.InvalidArgument, "none of"):
        comm.all_reduce(np.ones(1), "median")
    with raises(scant.InvalidArgument, "differ"):
        comm.all_reduce(np.ones(3), out=np.ones(4))
    with raises(scant.InvalidArgument, "differ"):
        comm.all_reduce(np.ones(2, np.float32), out=np.ones(1, np.float64))
    with raises(scant.InvalidArgument, "arrays for"):
        comm.all_gather(np.ones(3), [np.ones(3)] * (SIZE + 1))
    if SIZE > 1:
        with raises(scant.InvalidArgument, "equal parts"):
            comm.reduce_scatter(np.ones(SIZE * 2 + 1), np.ones(2))
    with raises(ValueError, "timeout must be positive"):
        comm.barrier(async_op=True).wait(-1)


def case_nan_travels() -> None:
    mine = np.array([np.nan if RANK == 0 else 1.0, 2.0], np.float32)
    comm.all_reduce(mine)
    assert np.isnan(mine[0])
    assert mine[1] == 2 * SIZE


def case_counters() -> None:
    rows = scant.counters()
    assert rows
    assert all(isinstance(value, int) for value in rows.values())
    name = next(iter(rows)).split("{")[0]
    assert name in scant.counters_prometheus()


def case_peers() -> None:
    peers = comm.peers()
    assert [peer["rank"] for peer in peers] in (
        list(range(SIZE)),
        [rank for rank in range(SIZE) if rank != RANK],
    )
    assert all(peer["alive"] for peer in peers)


def case_timeout_of_wait_leaves_the_operation_alone() -> None:
    if SIZE == 1:
        return
    data = np.zeros(1)
    if RANK == 0:
        work = comm.recv(data, 1, tag=9, async_op=True)
        with raises(TimeoutError, "still running"):
            work.wait(0.05)
        comm.barrier()
        work.wait()
        assert data[0] == 7
    else:
        comm.barrier()
        if RANK == 1:
            comm.send(np.full(1, 7.0), 0, tag=9)


def case_deadline_of_an_operation() -> None:
    if SIZE == 1:
        return
    if RANK == 0:
        with raises(scant.Timeout):
            comm.recv(np.zeros(1), 1, tag=10, timeout=0.2)


def case_forked_child_cannot_use_it() -> None:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            for use in (comm.barrier, comm.shutdown):
                with raises(scant.Closed):
                    use()
        except AssertionError:
            os._exit(1)
        sys.exit(0)  # runs the exit handlers and the destructors
    assert os.waitpid(child, 0)[1] == 0
    assert comm.all_reduce(np.ones(1))[0] == SIZE


def case_closed_after_shutdown() -> None:
    other = comm.group(range(SIZE), "last")
    comm.barrier()
    comm.shutdown()
    comm.shutdown()
    for user in (comm, other):
        with raises(scant.Closed, "shut down"):
            user.barrier()


def between() -> None:
    if comm._raw is not None:
        comm.barrier()


run_cases(globals(), between)
