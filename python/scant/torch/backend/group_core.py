"""What every call of the process group rests on: its identity, its life, and running a call.

The methods of ``torch.distributed`` are in reductions.py and process_group.py.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Backend as _Backend

from scant import _scant, checks
from scant.errors import Closed, InvalidArgument
from scant.torch.backend import staging
from scant.torch.backend.membership import Base
from scant.torch.backend.tensors import common_device, dense, is_plain
from scant.torch.backend.work import GroupedWork, ScantWork, StagedWork

__all__ = ["GroupCore", "Launch", "Tensor", "Tensors"]

Tensor = torch.Tensor
Tensors = Sequence[Tensor]
# Gets contiguous CPU tensors: those read and written, those read, those written.
Launch = Callable[[Tensors, Tensors, Tensors], "Sequence[_scant.Work]"]

_TorchOptions: Any = _Backend.Options
_ZERO = timedelta()
_chains = itertools.count(1)

if TYPE_CHECKING:
    # torch's own signatures differ from version to version.
    class _TorchGroup:
        def __init__(self, rank: int, size: int) -> None: ...
else:
    _TorchGroup = dist.ProcessGroup


class GroupCore(_TorchGroup):
    """A group without operations."""

    supports_splitting = False
    supports_coalescing = False
    supports_time_estimate = False

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        timeout: timedelta,
        base: Base,
        group_id: int,
        members: list[int],
    ) -> None:
        super().__init__(rank, size)
        self._store = store
        self._rank = rank
        self._size = size
        self._base: Base | None = base
        self._raw: _scant.Communicator | None = base.communicator._native()
        self.group_id = group_id
        self.members = members  # their ranks in the communicator
        self._timeout_s = timeout.total_seconds()
        self._name = ""
        self._desc = "undefined"
        self._staged = 0  # calls in the staging thread; later calls must queue behind them
        self._staged_lock = threading.Lock()
        self._coalescing: list[ScantWork] | None = None
        self._chain = next(_chains)  # the order of this group's callbacks

    # -- what torch asks of a group -------------------------------------------------------------

    def getRank(self) -> int:  # noqa: N802 - torch's name
        return self._rank

    def getSize(self) -> int:  # noqa: N802
        return self._size

    def rank(self) -> int:
        """This process's rank in the group."""
        return self._rank

    def size(self) -> int:
        """How many ranks the group has."""
        return self._size

    def name(self) -> str:
        """The backend's name."""
        return "scant"

    def getBackendName(self) -> str:  # noqa: N802
        return "scant"

    def setGroupName(self, name: str) -> None:  # noqa: N802
        self._name = name

    def getGroupName(self) -> str:  # noqa: N802
        return self._name

    def setGroupDesc(self, desc: str) -> None:  # noqa: N802
        self._desc = desc

    def getGroupDesc(self) -> str:  # noqa: N802
        return self._desc

    def get_group_store(self) -> Any:
        """The store that torch gave this group."""
        return self._store

    def _get_backend(self, device: torch.device) -> GroupCore:
        return self

    @property
    def _device_types(self) -> list[torch.device]:
        """What torch asks before it uses a group for tensors of a device (async_save does)."""
        # While torch still makes the group, it has none: torch 2.15 would attach a recorder of its
        # own to it, which needs a backend in C++ and fails without one.
        known: Mapping[Any, Any] = dist.distributed_c10d._world.pg_map
        if self not in known:
            return []
        kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        return [torch.device(kind) for kind in kinds]

    @property
    def options(self) -> Any:
        """torch's own options: the timeout."""
        return _TorchOptions("scant", timedelta(seconds=self._timeout_s))

    def set_timeout(self, timeout: timedelta) -> None:
        """The deadline of calls that name none."""
        if timeout <= _ZERO:
            raise InvalidArgument(f"timeout must be positive, got {timeout}", rank=self._rank)
        self._timeout_s = timeout.total_seconds()

    def _set_default_timeout(self, timeout: timedelta) -> None:
        self.set_timeout(timeout)

    def _set_sequence_number_for_group(self) -> None:
        """Scant numbers its operations by itself."""

    def shutdown(self) -> None:
        """Leave the group; the last group of a communicator closes it. Idempotent."""
        base, raw, self._base, self._raw = self._base, self._raw, None, None
        if base is not None:
            if raw is not None:
                raw.release_group(self.group_id)
            base.release()

    def abort(self) -> None:
        """End the communicator at once, with all groups that share it."""
        base, self._base, self._raw = self._base, None, None
        if base is not None:
            base.abort(f"process group {self._name or 'default'} aborted on rank {self._rank}")

    # -- for the parts of this package ----------------------------------------------------------

    def native(self) -> _scant.Communicator:
        """The communicator; raises when the group was shut down."""
        if self._raw is None:
            raise Closed(f"process group {self._name!r} was shut down", rank=self._rank)
        return self._raw

    def work(
        self,
        works: Sequence[_scant.Work],
        result: list[Any],
        finish: Callable[[], None] | None = None,
    ) -> ScantWork:
        """The Work of a call on CPU tensors."""
        return self._noted(ScantWork(works, result, finish, self._chain))

    def _noted(self, work: ScantWork) -> ScantWork:
        if self._coalescing is not None:
            self._coalescing.append(work)
        return work

    def timeout_of(self, opts: Any) -> float:
        """The deadline that a call's options ask for, in seconds."""
        timeout = opts if isinstance(opts, timedelta) else getattr(opts, "timeout", None)
        if timeout is None or timeout <= _ZERO:
            return self._timeout_s
        return float(timeout.total_seconds())

    def _run(
        self,
        launch: Launch,
        result: list[Any],
        *,
        both: Tensors = (),
        reads: Tensors = (),
        writes: Tensors = (),
        chain: int | None = None,
    ) -> ScantWork:
        chain = self._chain if chain is None else chain
        device = common_device((*both, *reads, *writes))
        both = [dense(tensor) for tensor in both]
        reads = [dense(tensor) for tensor in reads]
        writes = [dense(tensor) for tensor in writes]
        if device.type == "cpu":
            return self._run_cpu(launch, result, both, reads, writes, chain)
        side = staging.side_stream(device)
        hosts, copied = staging.copy_from_device((*both, *reads), device, side)
        host_both, host_reads = hosts[: len(both)], hosts[len(both) :]
        host_writes = [staging.pinned_like(tensor) for tensor in writes]

        def copy_back() -> None:
            for tensor, host in zip((*both, *writes), (*host_both, *host_writes), strict=True):
                tensor.copy_(host, non_blocking=True)
                tensor.record_stream(side)

        return self._noted(
            StagedWork(
                device,
                side,
                copied,
                lambda: launch(host_both, host_reads, host_writes),
                result,
                copy_back,
                self._one_staged(),
                chain,
            )
        )

    def _run_cpu(
        self,
        launch: Launch,
        result: list[Any],
        both: Tensors,
        reads: Tensors,
        writes: Tensors,
        chain: int,
    ) -> ScantWork:
        own_both = [
            t if is_plain(t) else t.clone(memory_format=torch.contiguous_format) for t in both
        ]
        own_reads = [
            t if is_plain(t) else t.resolve_conj().resolve_neg().contiguous() for t in reads
        ]
        own_writes = [
            t if is_plain(t) else torch.empty_like(t, memory_format=torch.contiguous_format)
            for t in writes
        ]
        copies = [
            (tensor, own)
            for tensor, own in zip((*both, *writes), (*own_both, *own_writes), strict=True)
            if tensor is not own
        ]

        def copy_back() -> None:
            for tensor, own in copies:
                tensor.copy_(own)

        if self._staged:
            return self._noted(
                StagedWork(
                    torch.device("cpu"),
                    None,
                    None,
                    lambda: launch(own_both, own_reads, own_writes),
                    result,
                    copy_back,
                    self._one_staged(),
                    chain,
                )
            )
        works = launch(own_both, own_reads, own_writes)
        return self._noted(ScantWork(works, result, copy_back if copies else None, chain))

    def _one_staged(self) -> Callable[[], None]:
        """Counts one more call in the staging thread, until what it returns is called."""
        with self._staged_lock:
            self._staged += 1

        def submitted() -> None:
            with self._staged_lock:
                self._staged -= 1

        return submitted

    def _only(self, tensors: Any, name: str) -> Tensor:
        if isinstance(tensors, Tensor):
            return tensors
        if len(tensors) != 1:
            raise InvalidArgument(f"{name} must be one tensor, got {len(tensors)}", rank=self._rank)
        tensor = tensors[0]
        if not isinstance(tensor, Tensor):
            raise InvalidArgument(f"{name} must be a tensor, got {type(tensor).__name__}")
        return tensor

    def _list(self, tensors: Any, name: str) -> list[Tensor]:
        inner = tensors[0] if len(tensors) == 1 and not isinstance(tensors[0], Tensor) else tensors
        if len(inner) != self._size:
            raise InvalidArgument(
                f"{name} has {len(inner)} tensors for {self._size} ranks", rank=self._rank
            )
        return list(inner)

    def _root(self, root: int) -> int:
        return checks.rank_of_group(root, "root", self._size, self._rank)

    def _together(self, works: list[ScantWork], result: list[Any]) -> ScantWork:
        return self._noted(GroupedWork(works, result, None, self._chain))
