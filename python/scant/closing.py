"""What is closed when a ``with`` block is left, however it is left."""

from __future__ import annotations

from types import TracebackType
from typing import TypeVar

__all__ = ["Closing"]

_Own = TypeVar("_Own", bound="Closing")


class Closing:
    """Gives a class with ``close()`` its ``with``."""

    def close(self) -> None:
        """Gives back what this object holds; again and again if you like."""
        raise NotImplementedError

    def _left(self, error: BaseException | None) -> None:
        """The block is over: by this error, if there is one."""
        self.close()

    def __enter__(self: _Own) -> _Own:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left(error)
