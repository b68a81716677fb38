"""Reads a run log, whole or while it grows. Nothing in the file is trusted; memory stays bounded
by the longest line that is allowed plus what the lines hold.
"""

from __future__ import annotations

import io
import os
import stat
from typing import NoReturn

from scant.closing import Closing
from scant.errors import Error
from scant.runlog.lines import Line, NewerVersionError, Run, parse

__all__ = ["BadLogError", "Follower", "read"]

LINE_BYTES_MAX = 1 << 20
_CHUNK_BYTES = 1 << 20
_EXPECTED = "expected a run log (docs/run_log.md)"


class BadLogError(Error, ValueError):
    """A file is no run log, or none that this version reads; the text names file and line."""

    code = "corrupt"


class Follower(Closing):
    """Gives the lines of a file as they come: ``poll`` whenever you like, from one thread.

    A last line without its end waits for the rest. A file that is not there yet has no lines; one
    that was replaced or cut is read from its beginning, which a ``Run`` line tells.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file: io.FileIO | None = None
        self._rest = b""
        self._number = 0
        self._offset = 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def unfinished(self) -> bool:
        """The last line has no end yet."""
        return bool(self._rest)

    def poll(self) -> list[Line]:
        """The lines that came since the last call; OSError if the file cannot be read."""
        lines = self._more() if self._file is not None else []
        if self._is_another():
            self._open()
            lines += self._more()
        return lines

    def _is_another(self) -> bool:
        """The path leads to a file that was not read so far, or to one that was cut."""
        try:
            now = os.stat(self.path)  # noqa: PTH116 - beside fstat
        except FileNotFoundError:
            return False  # a replacement under way, or not there yet
        if self._file is None:
            return True
        was = os.fstat(self._file.fileno())
        if (was.st_dev, was.st_ino) != (now.st_dev, now.st_ino):
            return True
        return stat.S_ISREG(was.st_mode) and was.st_size < self._offset

    def _open(self) -> None:
        self.close()
        self._file = io.FileIO(self.path)
        self._offset = 0
        self._rest = b""
        self._number = 0

    def _more(self) -> list[Line]:
        assert self._file is not None
        lines = []
        while chunk := self._file.read(_CHUNK_BYTES):
            self._offset += len(chunk)
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            lines += [self._line(text) for text in whole]
            if len(self._rest) > LINE_BYTES_MAX:
                self._number += 1
                self._refuse(f"longer than {LINE_BYTES_MAX} bytes")
        return lines

    def _line(self, text: bytes) -> Line:
        self._number += 1
        try:
            line = parse(text)
        except NewerVersionError as error:
            self._refuse(str(error), "")
        except ValueError as error:
            self._refuse(str(error))
        if isinstance(line, Run) != (self._number == 1):
            self._refuse("a second run begins" if self._number > 1 else "no run begins here")
        return line

    def _refuse(self, what: str, expected: str = f"; {_EXPECTED}") -> NoReturn:
        said = expected if self._number == 1 else ""
        raise BadLogError(f"{self.path}: line {self._number}: {what}{said}")


def read(path: str | os.PathLike[str]) -> list[Line]:
    """All whole lines of a log, the first being its ``Run``; a last line without end is left out.

    Raises :class:`BadLogError` for what is no run log, OSError for what cannot be read.
    """
    with Follower(path) as follower:
        follower._open()
        lines = follower.poll()
        if lines:
            return lines
        what = "line 1: has no end" if follower.unfinished else "empty"
        raise BadLogError(f"{follower.path}: {what}; {_EXPECTED}")
