"""Gives each creation of a communicator keys of its own, and says for whom a start waits.

Every rank counts itself in; the count divided by the world size is the generation. A rank can only
come a second time after the first creation has ended, for which all ranks had to arrive, so the
ranks of one creation always see one generation.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import Any

from scant.store import PrefixStore, Store, adapt

__all__ = ["Patient", "fresh"]

# A wait is mentioned after this time; the next mention comes when it has doubled.
_FIRST_NOTICE_S = 10.0
# At most so many missing ranks are named, and so many keys looked at for that: a thousand ranks
# that wait are no load on the store.
_NAMED_MAX = 8
_LOOKS_MAX = 64
_OF_ONE_RANK = re.compile(r"(?P<family>.*(?:rank|member)/)(?P<rank>\d+)")


def fresh(store: Any, size: int) -> Store:
    """The store behind a prefix that no earlier creation on the same store has used.

    A store without ``add`` (a directory, for example) is used as it is: one directory, one job.
    """
    if not hasattr(store, "add"):
        return adapt(store)
    arrival = store.add("scant/arrivals", 1)
    return PrefixStore(f"scant/{(arrival - 1) // size}/", adapt(store))


class Patient:
    """The same store; a long wait for a rank's key says on stderr which ranks are missing."""

    def __init__(
        self, store: Store, rank: int, size: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self._clock = clock
        self._begin = clock()
        self._next_s = _FIRST_NOTICE_S  # after the beginning

    def set(self, key: str, value: bytes) -> None:
        """Write the value; overwrites."""
        self._store.set(key, value)

    def set_if_absent(self, key: str, value: bytes) -> bool:
        """Write the value when the key is absent; False when some value was there already."""
        return self._store.set_if_absent(key, value)

    def get(self, key: str, timeout_s: float) -> bytes:
        """Wait until the key exists; raises TimeoutError when it does not in time."""
        if timeout_s <= 0:
            return self._store.get(key, timeout_s)
        deadline = self._clock() + timeout_s
        while True:
            now = self._clock()
            notice = max(self._begin + self._next_s, now)  # never before one look at the key
            if notice >= deadline:
                return self._store.get(key, max(deadline - now, 0.0))
            try:
                return self._store.get(key, notice - now)
            except TimeoutError:
                self._say(key, deadline - self._begin)

    def _say(self, key: str, until_s: float) -> None:
        waited_s = self._clock() - self._begin
        self._next_s *= 2
        while self._next_s <= waited_s:
            self._next_s *= 2
        names = self.names(self.absent(key))
        if names:
            print(
                f"scant: rank {self._rank} waits for {names} of {self._size} "
                f"({waited_s:.0f} s, until {until_s:.0f} s)",
                file=sys.stderr,
                flush=True,
            )

    def absent(self, key: str) -> tuple[list[int], bool]:
        """Who has not left what the wait is for, and whether there may be more.

        Nobody when that has just changed.
        """
        match = _OF_ONE_RANK.fullmatch(key)
        absent, cut = [0], False  # what bears no rank's number is published by rank 0
        if match is not None:
            absent, cut = self._absent(match["family"], int(match["rank"]))
        elif key == "decision":  # rank 0 makes it of what the others leave
            others, cut = self._absent("member/", 1)
            absent = others or absent
        elif key == "uid":  # of rank 0, which may itself be kept waiting before it came here
            absent, cut = self._absent("here/", 0)
        return absent, cut

    @staticmethod
    def names(found: tuple[list[int], bool]) -> str:
        """ "rank 1", "ranks 1, 2 and perhaps more"; empty for nobody."""
        absent, cut = found
        ranks = ", ".join(str(rank) for rank in absent)
        more = " and perhaps more" if cut else ""
        return f"rank{'s' if cut or len(absent) > 1 else ''} {ranks}{more}" if absent else ""

    def _absent(self, family: str, first: int) -> tuple[list[int], bool]:
        found: list[int] = []
        last = min(self._size, first + _LOOKS_MAX)
        for rank in range(first, last):
            if len(found) == _NAMED_MAX:
                return found, True
            try:
                self._store.get(f"{family}{rank}", 0.0)
            except TimeoutError:
                found.append(rank)
        return found, last < self._size
