"""The exceptions of Scant: one class for each error code, all of them :class:`scant.Error`.

Every exception carries the code, the rank that reports it, the rank to blame when one is known, and
the operating system's errno when that is the cause. ``docs/errors.md`` explains each code.
"""

# ruff: noqa: N818 - the names are the error codes of docs/errors.md.
from __future__ import annotations

__all__ = [
    "Closed",
    "Corrupt",
    "Error",
    "Failed",
    "InvalidArgument",
    "Io",
    "Mismatch",
    "PeerLost",
    "Refused",
    "Resource",
    "Timeout",
    "Unsupported",
    "make_error",
    "reason",
]


class Error(RuntimeError):
    """Base of all errors that Scant raises.

    Attributes:
        code: the name of the error code, such as ``"peer_lost"``.
        rank: the rank that reports the error; ``None`` when it has no rank yet.
        peer: the rank to blame; ``None`` when no single rank is.
        errno: the operating system's error number; 0 when it is not the cause.
    """

    code: str = "io"
    rank: int | None = None
    peer: int | None = None
    errno: int | None = 0

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        rank: int | None = None,
        peer: int | None = None,
        errno: int = 0,
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.rank = rank
        self.peer = peer
        self.errno = errno

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), self.code, self.rank, self.peer, self.errno)


class InvalidArgument(Error, ValueError):
    """This rank's call is wrong: a size, a dtype, a root, an option."""

    code = "invalid_argument"


class Mismatch(Error):
    """The ranks disagree on the operation, its size, its dtype or the world size."""

    code = "mismatch"


class PeerLost(Error):
    """A peer died, stopped or became unreachable; ``peer`` names it."""

    code = "peer_lost"


class Timeout(Error, TimeoutError):
    """A deadline passed while every needed peer was alive."""

    code = "timeout"


class Refused(Error):
    """The job's secret, or another check of who may enter, failed."""

    code = "refused"


class Corrupt(Error):
    """Bytes failed a checksum, a length or a version check."""

    code = "corrupt"


class Resource(Error):
    """Memory, descriptors, disk or a bounded queue ran out."""

    code = "resource"


class Io(Error, OSError):
    """The operating system refused; ``errno`` says why."""

    code = "io"

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class Closed(Error):
    """The communicator was shut down or aborted."""

    code = "closed"


class Unsupported(Error):
    """A valid request that this build or backend cannot serve."""

    code = "unsupported"


class Failed(Error):
    """A peer's program ended by an error; the message repeats it, ``peer`` names the rank."""

    code = "failed"


_CLASSES: dict[str, type[Error]] = {
    cls.code: cls
    for cls in (
        InvalidArgument,
        Mismatch,
        PeerLost,
        Timeout,
        Refused,
        Corrupt,
        Resource,
        Io,
        Closed,
        Unsupported,
        Failed,
    )
}


def make_error(code: str, message: str, rank: int, peer: int, errno: int) -> Error:
    """The exception for an error code; negative ranks mean none. Called by the extension."""
    return _CLASSES.get(code, Error)(
        message,
        code=code,
        rank=None if rank < 0 else rank,
        peer=None if peer < 0 else peer,
        errno=errno,
    )


def _rebuild(
    cls: type[Error], message: str, code: str, rank: int | None, peer: int | None, errno: int
) -> Error:
    return cls(message, code=code, rank=rank, peer=peer, errno=errno)


def reason(error: BaseException) -> str:
    """Why it failed; of an OSError without its number and path, which the caller names."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
