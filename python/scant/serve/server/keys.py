"""Who may ask: keys from a file or the environment, kept as digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import pathlib
import stat
from collections.abc import MutableMapping

from scant.errors import InvalidArgument, reason

__all__ = ["VARIABLE", "Keys"]

VARIABLE = "SCANT_API_KEY"
_KEYS_MAX = 1000
_SHORTEST = 8  # characters


class Keys:
    """The keys of a server; without any everybody may ask."""

    def __init__(self, keys: list[str]) -> None:
        for key in keys:
            if not _SHORTEST <= len(key) <= 1000 or not key.isascii() or not key.isprintable():
                text = f"an API key must have {_SHORTEST} to 1000 printable ASCII characters"
                raise InvalidArgument(text)
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admits(self, authorization: bytes) -> bool:
        """The value of the header names one of the keys. Takes as long whichever it is."""
        scheme, _, key = authorization.partition(b" ")
        given = _digest(key.strip())
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(digest, given)
        return found and scheme.lower() == b"bearer"

    @staticmethod
    def read(path: pathlib.Path | None, environ: MutableMapping[str, str]) -> Keys:
        """Of a file, one a line, `#` begins a comment; and of the environment, which loses it."""
        keys = []
        if path is not None:
            try:
                keys = _lines(path)
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidArgument(f"--api-key-file {path}: {reason(error)}") from error
            if not keys:
                raise InvalidArgument(f"--api-key-file {path}: there is no key in it")
            if len(keys) > _KEYS_MAX:
                raise InvalidArgument(f"--api-key-file {path}: more than {_KEYS_MAX} keys")
        alone = environ.pop(VARIABLE, "")
        return Keys([*keys, alone] if alone else keys)


def readable_by_others(path: pathlib.Path) -> bool:
    """A file of keys that more than its owner can read."""
    return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)) and os.name == "posix"


def _lines(path: pathlib.Path) -> list[str]:
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
