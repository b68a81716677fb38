"""The lab's two errors: what the user typed is wrong, or the machine cannot do it."""

from __future__ import annotations


class LabError(RuntimeError):
    """The lab could not be built or operated; the message says what is missing."""


class UsageError(ValueError):
    """An argument is wrong; the message names it. The command line exits with 2."""
