"""Gives each creation of a communicator keys of its own, also when a store is used again.

Every rank counts itself in; the count divided by the world size is the generation. A rank can only
come a second time after the first creation has ended, for which all ranks had to arrive, so the
ranks of one creation always see one generation.
"""

from __future__ import annotations

from typing import Any

from scant.store import PrefixStore, Store, adapt

__all__ = ["fresh"]


def fresh(store: Any, size: int) -> Store:
    """The store behind a prefix that no earlier creation on the same store has used.

    A store without ``add`` (a directory, for example) is used as it is: one directory, one job.
    """
    if not hasattr(store, "add"):
        return adapt(store)
    arrival = store.add("scant/arrivals", 1)
    return PrefixStore(f"scant/{(arrival - 1) // size}/", adapt(store))
