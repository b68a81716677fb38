"""The bytes of a request become an object: whole in time, not too many, UTF-8, JSON, not deep."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from scant.serve.server.limits import Limits
from scant.serve.server.refusals import Left, Refusal, overloaded

__all__ = ["Bodies", "parse", "read"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_SHAPE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}]', re.DOTALL)


class Bodies:
    """How many bytes of bodies are in memory; of the event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.bytes = 0

    def take(self, count: int) -> None:
        """Raises where it would be too much."""
        if self.bytes + count > self._limits.bodies_bytes:
            raise overloaded("too many bytes of requests are being read: try again later")
        self.bytes += count

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[int], None]]:
        """Gives `take`, and gives back what was taken at its end."""
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            self.take(count)
            mine += count

        try:
            yield take
        finally:
            self.bytes -= mine


async def read(
    headers: dict[bytes, bytes], receive: Receive, limits: Limits, take: Callable[[int], None]
) -> bytes:
    """The whole body; raises a refusal, or Left."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise Refusal(415, "the header Content-Type must be application/json")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise Refusal(415, "a body with a Content-Encoding is not supported: send plain JSON")
    told = headers.get(b"content-length", b"0")
    if not told.isdigit() or int(told) > limits.body_bytes:
        raise _too_long(limits)
    try:
        return await asyncio.wait_for(_all(receive, limits, take), limits.body_s)
    except asyncio.TimeoutError:
        text = f"the body did not come within {limits.body_s:g} s"
        raise Refusal(408, text, code="slow_body") from None


def _too_long(limits: Limits) -> Refusal:
    text = f"the body is longer than {limits.body_bytes:,} bytes"
    return Refusal(413, text, code="body_too_long")


async def _all(receive: Receive, limits: Limits, take: Callable[[int], None]) -> bytes:
    parts = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Left("client")
        part = message.get("body", b"")
        if len(parts) + len(part) > limits.body_bytes:
            raise _too_long(limits)
        take(len(part))
        parts += part
        more = message.get("more_body", False)
    return bytes(parts)


def parse(body: bytes, limits: Limits) -> dict[str, Any]:
    """The object; a refusal says what is wrong with it. Any thread."""
    _check_depth(body, limits.json_depth)
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is no UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        text = f"the body is no JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        raise Refusal(400, text) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits
        raise Refusal(400, "the body is no JSON that can be read") from error
    if not isinstance(value, dict):
        raise Refusal(400, "the body must be a JSON object")
    return value


def _check_depth(body: bytes, most: int) -> None:
    depth = 0
    for match in _SHAPE.finditer(body):
        sign = match[0][:1]
        if sign in b"[{":
            depth += 1
            if depth > most:
                raise Refusal(400, f"the body is nested deeper than {most} levels")
        elif sign in b"]}":
            depth -= 1


def _no_number(word: str) -> None:
    raise Refusal(400, f"the body is no JSON: {word} is no number")
