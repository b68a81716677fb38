"""Leaves cleanly: what is still open when the interpreter exits is closed in the right order.

Communicators first (their operations end, goodbyes are sent), then the threads that run callbacks.
A program that ends by an exception that nobody caught says so in place of a goodbye.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import weakref

from scant import _scant
from scant.errors import Error

__all__ = ["FLUSH_S", "completion", "is_own", "one_line", "staging", "track"]

# A flush of what peers still need; then the process leaves whatever they do.
FLUSH_S = 5.0
_REASON_CHARACTERS_MAX = 300

_communicators: weakref.WeakSet[_Closable] = weakref.WeakSet()
_executors: dict[str, _scant.Executor] = {}
_registered = False


class _Closable:
    """Something with a shutdown at exit."""

    def shutdown(self, timeout: float = FLUSH_S) -> None:
        """Close; idempotent."""
        raise NotImplementedError

    def fail(self, reason: str, timeout: float = FLUSH_S) -> None:
        """Close, and tell the others that this program failed; idempotent."""
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


def one_line(error: BaseException) -> str:
    """``ValueError: the first line of its text``."""
    name, text = type(error).__name__, str(error).strip()
    line = f"{name}: {text.splitlines()[0]}" if text else name
    return line[:_REASON_CHARACTERS_MAX]


def is_own(error: BaseException | None) -> bool:
    """Whether there is an error, and this rank is where it comes from."""
    return error is not None and not (isinstance(error, Error) and error.peer is not None)


def _uncaught() -> BaseException | None:
    """The exception that ends this program, if others should hear of it.

    At a prompt exceptions are only printed. One that tells of another rank is no news to the rest.
    """
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return None
    last = getattr(sys, "last_value", None)
    return last if is_own(last) else None


def _leave() -> None:
    error = _uncaught()
    for communicator in list(_communicators):
        with contextlib.suppress(Exception):
            if error is None:
                communicator.shutdown(FLUSH_S)
            else:
                communicator.fail(one_line(error), FLUSH_S)
    for executor in _executors.values():
        executor.stop()
