"""Rendezvous stores: where the ranks of a job leave their addresses while they start.

A store has ``set(key, value)``, ``set_if_absent(key, value) -> bool`` and
``get(key, timeout_s) -> bytes``. :class:`TorchStore` adapts the stores of ``torch.distributed``,
:class:`DirectoryStore` uses a directory that every rank sees.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from scant import _scant, planes
from scant.errors import Timeout

if TYPE_CHECKING:
    from scant._scant import DirectoryStore

__all__ = ["DirectoryStore", "PrefixStore", "Store", "TorchStore", "adapt"]

# Between two looks at a key: short at first, because ranks mostly start together, and in the end
# long enough for a thousand waiting ranks to be no load on the store.
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.1


def __getattr__(name: str) -> Any:
    if name != "DirectoryStore":
        raise AttributeError(f"module 'scant.store' has no attribute {name!r}")
    planes.need("sync")
    return _scant.DirectoryStore


class Store(Protocol):
    """What Scant needs of a rendezvous store. Values are bytes, at most 64 KiB."""

    def set(self, key: str, value: bytes) -> None:
        """Write the value; overwrites."""

    def set_if_absent(self, key: str, value: bytes) -> bool:
        """Write the value when the key is absent; False when some value was there already."""
        ...

    def get(self, key: str, timeout_s: float) -> bytes:
        """Wait until the key exists; raise TimeoutError when it does not in time."""
        ...


class TorchStore:
    """A ``torch.distributed.Store`` (TCPStore, FileStore, PrefixStore, ...) for Scant.

    Values travel as hexadecimal text, because ``compare_set`` takes text and an empty value means
    "absent" there.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def set(self, key: str, value: bytes) -> None:
        """Write the value; overwrites."""
        self._store.set(key, "=" + value.hex())

    def set_if_absent(self, key: str, value: bytes) -> bool:
        """Write the value when the key is absent; True when the store now holds this value."""
        text = "=" + value.hex()
        return bytes(self._store.compare_set(key, "", text)) == text.encode()

    def get(self, key: str, timeout_s: float) -> bytes:
        """Wait until the key exists; raises :class:`scant.Timeout` when it does not in time."""
        # wait() of a TCPStore cannot be interrupted by Ctrl-C, and prints a warning when it ends
        # without the key; so the key is asked for, less often the longer it takes.
        deadline = time.monotonic() + timeout_s
        pause = _FIRST_PAUSE_S
        while not self._store.check([key]):
            left = deadline - time.monotonic()
            if left <= 0:
                raise Timeout(f"store: key {key!r} was not set in {timeout_s:g} s")
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)
        return bytes.fromhex(bytes(self._store.get(key)).decode()[1:])


class PrefixStore:
    """The same store, every key behind a prefix."""

    def __init__(self, prefix: str, store: Store) -> None:
        self._prefix = prefix
        self._store = store

    def set(self, key: str, value: bytes) -> None:
        """Write the value; overwrites."""
        self._store.set(self._prefix + key, value)

    def set_if_absent(self, key: str, value: bytes) -> bool:
        """Write the value when the key is absent; False when some value was there already."""
        return self._store.set_if_absent(self._prefix + key, value)

    def get(self, key: str, timeout_s: float) -> bytes:
        """Wait until the key exists."""
        return self._store.get(self._prefix + key, timeout_s)


def adapt(store: Any) -> Store:
    """The store as Scant wants it: torch's stores are wrapped, others are taken as they are."""
    if hasattr(store, "compare_set") and not hasattr(store, "set_if_absent"):
        return TorchStore(store)
    for method in ("set", "set_if_absent", "get"):
        if not callable(getattr(store, method, None)):
            raise TypeError(f"store: {type(store).__name__} has no {method}() method")
    return store  # type: ignore[no-any-return]
