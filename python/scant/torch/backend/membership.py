"""Opens the communicator of a process group, or a group of one that its members already share.

The members meet in the store that torch gives each group. Every member but rank 0 publishes which
communicators it has; rank 0 picks one that all share and publishes the decision.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from typing import Any

from scant import environment, rendezvous
from scant.communicator import Communicator
from scant.errors import Timeout
from scant.store import Store

__all__ = ["Base", "open_group"]

WORLD_GROUP = 0


class Base:
    """A communicator and how many process groups of this process use it."""

    open: dict[str, Base] = {}  # noqa: RUF012 - the registry of this process, by uid

    def __init__(self, communicator: Communicator, uid: str) -> None:
        self.communicator = communicator
        self.uid = uid
        self._users = 1
        Base.open[uid] = self

    def acquire(self) -> Base:
        """One more process group uses it."""
        self._users += 1
        return self

    def release(self) -> None:
        """One process group less; the last one shuts the communicator down."""
        self._users -= 1
        if self._users == 0:
            Base.open.pop(self.uid, None)
            self.communicator.shutdown()

    def abort(self, reason: str) -> None:
        """End everything on it at once, for all its process groups."""
        Base.open.pop(self.uid, None)
        self.communicator.abort(reason)


def open_group(
    store: Any, rank: int, size: int, timeout_s: float, is_default: bool, options: dict[str, Any]
) -> tuple[Base, int, list[int]]:
    """(communicator, group id, the members' ranks in it) for a group of this rank and size."""
    fresh = rendezvous.fresh(store, size)
    if not is_default:
        decision = _agree(fresh, rank, size, timeout_s)
        base = Base.open.get(decision["uid"])
        if base is not None:
            native = base.communicator._native()
            members: list[int] = decision["members"]
            return base.acquire(), native.make_group(members, decision["key"]), members
    fresh.set(f"here/{rank}", b"")
    if rank == 0:
        uid = uuid.uuid4().hex
        fresh.set("uid", uid.encode())
    else:
        uid = _from_rank(0, fresh, "uid", rank, size, timeout_s).decode()
    communicator = Communicator(
        fresh,
        rank,
        size,
        connect_timeout=timeout_s,
        operation_timeout=timeout_s,
        **{**environment.options(), **options},
    )
    return Base(communicator, uid), WORLD_GROUP, list(range(size))


def _from_rank(
    member: int, store: Store, key: str, rank: int, size: int, timeout_s: float
) -> bytes:
    """What another rank publishes when it comes; names who has not come when it does not."""
    patient = rendezvous.Patient(store, rank, size)
    try:
        return patient.get(key, timeout_s)
    except TimeoutError as error:
        missing, more = [member], False
        with contextlib.suppress(Exception):  # the store may be gone by now
            missing, more = patient.absent(key)
        missing = missing or [member]
        names = patient.names((missing, more))
        text = f"{names} of {size} did not start within {timeout_s:g} s"
        only = missing[0] if len(missing) == 1 and not more else None
        raise Timeout(text, rank=rank, peer=only) from error


def _agree(store: Store, rank: int, size: int, timeout_s: float) -> dict[str, Any]:
    mine = {uid: base.communicator.rank for uid, base in Base.open.items()}
    if rank != 0:
        store.set(f"member/{rank}", json.dumps(mine).encode())
        decision: dict[str, Any] = json.loads(
            _from_rank(0, store, "decision", rank, size, timeout_s)
        )
        return decision
    all_ranks = [mine]
    for member in range(1, size):
        published = _from_rank(member, store, f"member/{member}", rank, size, timeout_s)
        all_ranks.append(json.loads(published))
    shared = next((uid for uid in mine if all(uid in have for have in all_ranks)), None)
    decision = {
        "uid": shared,
        "key": uuid.uuid4().hex,
        "members": [have[shared] for have in all_ranks] if shared is not None else [],
    }
    store.set("decision", json.dumps(decision).encode())
    return decision
