"""Writes a run log, a whole line at a time. One thread's; never raises once it is open."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import stat
import sys
from collections.abc import Mapping
from typing import Any

from scant.closing import Closing
from scant.errors import InvalidArgument, reason

__all__ = ["RunLog"]

_MODE = 0o666  # less what the umask takes


class RunLog(Closing):
    """The file that ``scant explain`` and ``scant top`` read.

    Opening raises :class:`scant.InvalidArgument` for a path that cannot be written. After that
    training goes on whatever happens: a full disk ends the log with one warning. A file that is
    there already stays as it is until the first line comes, then the new one takes its place, so
    a reader sees one run or the other.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _as_path(path)
        self._partial: pathlib.Path | None = None
        self._end = 0  # of the last whole line
        try:
            self._fd: int | None = self._open()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            text = f"log: {self.path!r} cannot be written: {reason(error)}"
            raise InvalidArgument(text) from error

    def _open(self) -> int:
        target = pathlib.Path(self.path).resolve()  # what a link leads to is replaced
        if target.exists():
            # Not blocking: a pipe that nobody reads would hold up training.
            fd = os.open(target, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return fd  # a device, a pipe: not replaced
            os.close(fd)
        self._target = target
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(partial, flags, _MODE)
        self._partial = partial
        return fd

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line; numbers that are not finite become null. Nothing after ``close``."""
        if self._fd is None:
            return
        try:
            text = json.dumps(_finite(line), allow_nan=False, default=_plain, ensure_ascii=False)
            self._append(text.encode("utf-8", "replace") + b"\n")
        except Exception as error:
            warn(f"the run log {self.path} ends here, training goes on: {reason(error)}")
            self._cut()
            self.close()

    def _append(self, text: bytes) -> None:
        assert self._fd is not None
        rest = memoryview(text)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self._end += len(text)
        if self._partial is not None:
            self._partial.replace(self._target)
            self._partial = None

    def _cut(self) -> None:
        """Takes back what there is of a line that did not fit."""
        if self._fd is not None and stat.S_ISREG(os.fstat(self._fd).st_mode):
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)

    def close(self) -> None:
        """Again and again if you like."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None
        if self._partial is not None:
            with contextlib.suppress(OSError):
                self._partial.unlink()
            self._partial = None


def warn(text: str) -> None:
    """One line for people; whatever became of stderr."""
    with contextlib.suppress(Exception):
        print(f"scant: {text}", file=sys.stderr, flush=True)


def _as_path(path: str | os.PathLike[str]) -> str:
    try:
        text = os.fspath(path)
    except TypeError as error:
        raise InvalidArgument(f"log: a path is expected, got {path!r}") from error
    if not isinstance(text, str) or not text:
        raise InvalidArgument(f"log: a path is expected, got {path!r}")
    return text


def _finite(value: Any) -> Any:
    """JSON has no word for infinity: null stands for what is unknown."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _plain(value: Any) -> Any:
    """Numbers of NumPy and torch as Python's; of the rest, what they call themselves."""
    item = getattr(value, "item", None)
    return _finite(item()) if callable(item) else str(value)
