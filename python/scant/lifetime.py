"""Leaves cleanly: what is still open when the interpreter exits is closed in the right order.

Communicators first (their operations end, goodbyes are sent), then the threads that run callbacks.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref

from scant import _scant

__all__ = ["completion", "staging", "track"]

# A flush of what peers still need; then the process leaves whatever they do.
_EXIT_FLUSH_S = 5.0

_communicators: weakref.WeakSet[_Closable] = weakref.WeakSet()
_executors: dict[str, _scant.Executor] = {}
_registered = False


class _Closable:
    """Something with a shutdown at exit."""

    def shutdown(self, timeout: float = _EXIT_FLUSH_S) -> None:
        """Close; idempotent."""
        raise NotImplementedError


def track(communicator: _Closable) -> None:
    """Shut this communicator down at exit if the program has not."""
    _register()
    _communicators.add(communicator)


def completion() -> _scant.Executor:
    """The thread that completes futures."""
    return _executor("scant-done")


def staging() -> _scant.Executor:
    """The thread that submits operations on device tensors once their copies are there."""
    return _executor("scant-stage")


def _executor(name: str) -> _scant.Executor:
    executor = _executors.get(name)
    if executor is None:
        _register()
        executor = _executors[name] = _scant.Executor.named(name)
    return executor


def _register() -> None:
    global _registered
    if not _registered:
        _registered = True
        atexit.register(_leave)
        os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    """In a forked child: what was open belongs to the parent."""
    _communicators.clear()
    _executors.clear()


def _leave() -> None:
    for communicator in list(_communicators):
        with contextlib.suppress(Exception):
            communicator.shutdown(_EXIT_FLUSH_S)
    for executor in _executors.values():
        executor.stop()
