"""Wrong arguments are refused before anything is sent, and the error names argument and rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import scant


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 99999),
        ("port", 1.5),
        ("connections_per_pair", 2**40),
        ("io_cpu", "first"),
        ("rate_limit_bytes_per_second", -1),
        ("rate_limit_bytes_per_second", 2**64),
        ("connect_timeout", float("inf")),
        ("operation_timeout", float("nan")),
        ("peer_timeout", 1e18),
        ("peer_timeout", "long"),
        ("same_host_sockets", "yes"),
        ("job", b"name"),
        ("job", "\udcff"),
        ("address", "\udcff"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, name: str, value: Any) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(scant.InvalidArgument, match=rf"^{name} ") as caught:
        scant.Communicator(scant.DirectoryStore(str(tmp_path)), 1, 2, **given)
    assert caught.value.rank == 1


@pytest.mark.parametrize(
    ("rank", "size", "text"),
    [
        (0.5, 2, "rank must be"),
        ("0", 2, "rank must be"),
        (2**40, 2**41, "rank "),
        (-1, 2, "rank -1 is out of range"),
        (0, 0, "size 0 lies outside"),
        (0, 70000, "size 70000 lies outside"),
        (0, 2.0, "size must be"),
    ],
)
def test_bad_ranks_and_sizes_are_named(tmp_path: Path, rank: Any, size: Any, text: str) -> None:
    with pytest.raises(scant.InvalidArgument, match=f"^{text}"):
        scant.Communicator(scant.DirectoryStore(str(tmp_path)), rank, size)


def test_bad_arguments_of_calls_are_named_and_carry_the_rank(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    with scant.Communicator(scant.DirectoryStore(str(tmp_path)), 0, 1) as comm:
        good = np.ones(4)
        locked = np.ones(4)
        locked.flags.writeable = False
        calls: list[tuple[str, Callable[[], Any]]] = [
            ("timeout", lambda: comm.all_reduce(good, timeout=-1)),
            ("timeout", lambda: comm.barrier(timeout=0)),
            ("timeout", lambda: comm.barrier(timeout=float("nan"))),
            ("timeout", lambda: comm.barrier(async_op=True).wait(-1)),
            ("timeout", lambda: comm.shrink(float("nan"))),
            ("tag", lambda: comm.recv(good, tag=-1)),
            ("tag", lambda: comm.recv(good, tag=2**32)),
            ("root", lambda: comm.broadcast(good, 0.5)),  # type: ignore[arg-type]
            ("root", lambda: comm.broadcast(good, 2**40)),
            ("peer", lambda: comm.send(good, None)),  # type: ignore[arg-type]
            ("op", lambda: comm.all_reduce(good, 99)),  # type: ignore[arg-type]
            ("op", lambda: comm.all_reduce(good, "half")),
            ("array", lambda: comm.all_reduce(good[::2])),
            ("array", lambda: comm.all_reduce(locked)),
            ("array", lambda: comm.all_reduce(good.astype(np.int16))),
            ("member", lambda: comm.group([0, 7])),
        ]
        for name, call in calls:
            with pytest.raises(scant.InvalidArgument, match=rf"^{name} ") as caught:
                call()
            assert caught.value.rank == 0, name
        assert comm.all_reduce(good, timeout=5) is good
