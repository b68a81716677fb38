"""Gradients with NaN or infinities: an error on all ranks, unless a loss scaler waits for them.

``docs/gradients.md``, "What is not finite".
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from scant import _scant
from scant.codes import DType, ReduceOp
from scant.errors import Closed, Error, InvalidArgument
from scant.torch.backend.process_group import ProcessGroup

__all__ = ["NotFinite"]


class NotFinite:
    """Judges the reports of one averager's steps, alike on all ranks.

    Args:
        mode: ``error``, ``pass`` or ``auto``, as in :class:`scant.torch.WrapOptions`.
        names: of the averager's tensors.
        key: of the group for the question whether all ranks have a scaler.
    """

    def __init__(
        self, mode: str, names: Sequence[str], process_group: ProcessGroup, key: str
    ) -> None:
        self._mode = mode
        self._names = names
        self._process_group = process_group
        native = process_group.native()
        self._group = native.make_group(process_group.members, key)  # sends nothing
        self._release = weakref.finalize(self, _release_group, native, self._group)
        self._release.atexit = False

    def check(self, report: dict[str, Any]) -> None:
        """Raises on every rank where the report names a tensor that must be finite."""
        found = report["not_finite"]
        if not found or self._mode == "pass":
            return
        if self._mode == "auto" and self._all_have_a_scaler():
            return
        tensor, ranks = found[0]  # backward reached it first
        more = f", nor are {len(found) - 1} later ones" if len(found) > 1 else ""
        raise InvalidArgument(
            f"the gradient of '{self._names[tensor]}' is not finite on {_ranks(ranks)} (step "
            f"{report['step']}){more}; where that is meant to be: nonfinite='pass'",
            rank=self._process_group.rank(),
            peer=ranks[0],
        )

    def close(self) -> None:
        """Ends what is under way."""
        self._release()

    def _all_have_a_scaler(self) -> bool:
        """One message among all ranks, in a group of its own: they may be elsewhere in others. A
        rank without a scaler knows the outcome, and waits for nobody."""
        here = _a_scaler_lives()
        flag = torch.tensor([here], dtype=torch.uint8)
        at = flag.data_ptr()
        timeout_s = self._process_group.timeout_of(None)
        work = self._process_group.native().all_reduce(
            at, at, 1, int(DType.U8), int(ReduceOp.MIN), self._group, timeout_s, flag
        )
        if not here:
            return False
        try:
            work.wait()
        except Closed:  # by a rank without, which is gone on
            return False
        return bool(flag.item())


def _release_group(native: _scant.Communicator, group: int) -> None:
    with contextlib.suppress(Error):  # it may be shut down by now
        native.release_group(group)


_last_seen: weakref.ref[Any] | None = None  # the scaler that was found before


def _a_scaler_lives() -> bool:
    """An enabled ``torch.amp.GradScaler``: it wants to see what is not finite, and skips the step.
    It tells nobody of itself, so all objects are looked at, in steps that are not finite alone."""
    global _last_seen
    known = _last_seen() if _last_seen is not None else None
    if known is not None and known.is_enabled():
        return True
    for one in gc.get_objects():
        if issubclass(type(one), torch.amp.GradScaler) and one.is_enabled():
            _last_seen = weakref.ref(one)
            return True
    return False


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    named = [str(rank) for rank in ranks[:8]]
    if len(ranks) > len(named):
        return f"ranks {', '.join(named)}, ... ({len(ranks)} in all)"
    return f"ranks {', '.join(named[:-1])} and {named[-1]}"
