"""Scant: collectives and training where the network is scarce.

``scant.Communicator`` works on NumPy arrays; ``import scant.torch`` registers the backend of
``torch.distributed``; ``scant.codec`` turns gradients into few bytes. Importing this package alone
loads neither NumPy, torch nor the extension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scant.errors import (
    Closed,
    Corrupt,
    Error,
    Failed,
    InvalidArgument,
    Io,
    Mismatch,
    PeerLost,
    Refused,
    Resource,
    Timeout,
    Unsupported,
)

if TYPE_CHECKING:
    from scant import codec
    from scant.codes import DType, ReduceOp
    from scant.communicator import Communicator, Group, Work
    from scant.metrics import counters, counters_prometheus
    from scant.store import DirectoryStore

__version__ = "0.1.0"

__all__ = [
    "Closed",
    "Communicator",
    "Corrupt",
    "DType",
    "DirectoryStore",
    "Error",
    "Failed",
    "Group",
    "InvalidArgument",
    "Io",
    "Journal",
    "Mismatch",
    "PeerLost",
    "ReduceOp",
    "Refused",
    "Resource",
    "Timeout",
    "Unsupported",
    "Work",
    "__version__",
    "codec",
    "counters",
    "counters_prometheus",
]

_LAZY = {
    "Communicator": "scant.communicator",
    "DType": "scant.codes",
    "DirectoryStore": "scant.store",
    "Group": "scant.communicator",
    "Journal": "scant.torch.checkpoint.training_journal",
    "ReduceOp": "scant.codes",
    "Work": "scant.communicator",
    "counters": "scant.metrics",
    "counters_prometheus": "scant.metrics",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "codec":
        return import_module("scant.codec")
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'scant' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value
