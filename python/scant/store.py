"""Rendezvous stores: where the ranks of a job leave their addresses while they start.

A store has ``set(key, value)``, ``set_if_absent(key, value) -> bool`` and
``get(key, timeout_s) -> bytes``. :class:`TorchStore` adapts the stores of ``torch.distributed``,
:class:`DirectoryStore` uses a directory that every rank sees.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, Protocol

from scant._scant import DirectoryStore
from scant.errors import Timeout

__all__ = ["DirectoryStore", "PrefixStore", "Store", "TorchStore", "adapt"]

# How long a wait may keep Ctrl-C from being noticed, in seconds.
_SLICE_S = 0.5


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
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            try:
                self._store.wait([key], timedelta(seconds=min(max(left, 0.001), _SLICE_S)))
                break
            except RuntimeError as error:
                # DistStoreError for a timeout; a broken connection is a DistNetworkError.
                if "etworkError" in type(error).__name__:
                    raise
                if left <= _SLICE_S:
                    raise Timeout(f"store: key {key!r} was not set in {timeout_s:g} s") from error
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
