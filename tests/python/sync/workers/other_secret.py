"""Two ranks, of which rank 1 reads another secret at the rendezvous."""

from __future__ import annotations

import json
import os

import scant

rank = int(os.environ["RANK"])


class Exchanged:
    """The directory store, with another secret for rank 1."""

    def __init__(self) -> None:
        self._store = scant.DirectoryStore(os.environ["SCANT_STORE"])

    def set(self, key: str, value: bytes) -> None:
        self._store.set(key, value)

    def set_if_absent(self, key: str, value: bytes) -> bool:
        return self._store.set_if_absent(key, value)

    def get(self, key: str, timeout_s: float) -> bytes:
        value = self._store.get(key, timeout_s)
        return b"s" * 32 if key.endswith("/secret") and rank == 1 else value


try:
    scant.Communicator(Exchanged(), rank, 2, connect_timeout=300.0)
except scant.Error as error:
    print("@error", json.dumps([error.code, error.peer, str(error)]), flush=True)
