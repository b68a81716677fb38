"""Bytes of an HTTP/1.1 answer to events, without socket or clock; whoever feeds it knows the time.

Understands what servers of OpenAI's protocol send: a status, chunks or a length or neither, and in
the body server-sent events, or one JSON object. Lines and heads have a most.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Answer", "BadAnswer"]

_HEAD_MAX = 64 << 10
_LINE_MAX = 4 << 20
_REFUSAL_MAX = 64 << 10


class BadAnswer(Exception):  # noqa: N818 - as what it is, in a sentence
    """What came is no answer of OpenAI's protocol."""


@dataclass
class Answer:
    """One answer as far as it came."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    tokens: int | None = None  # of the answer, as the server counted them
    prompt_tokens: int | None = None
    pieces: int = 0  # events with text
    ended: bool = False  # whole: the last event, or the last byte of a refusal
    done: bool = False  # the event [DONE] came
    finish: str | None = None
    error: str | None = None  # the server's words in an event or a refusal
    _raw: bytearray = field(default_factory=bytearray)
    _body: bytearray = field(default_factory=bytearray)
    _left: int | None = None  # of a chunk or of the body; None: a size must come, or until the end
    _chunked: bool = False
    _gap: bool = False  # the line end behind a chunk must come

    def feed(self, data: bytes) -> int:
        """Takes bytes; how many events with text they completed."""
        before = self.pieces
        self._raw += data
        if not self.status and not self._head():
            return 0
        self._pass_on()
        self._events()
        return self.pieces - before

    def eof(self) -> bool:
        """The server closed; whether the answer is whole."""
        if self.status and not self._chunked and self._left is None:
            self._finish()
        return self.ended or self.done

    def _head(self) -> bool:
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            if len(self._raw) > _HEAD_MAX:
                raise BadAnswer("a head without end")
            return False
        lines = bytes(self._raw[:end]).decode("latin-1").split("\r\n")
        del self._raw[: end + 4]
        parts = lines[0].split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise BadAnswer(f"no HTTP: {lines[0][:40]!r}")
        if parts[1].startswith("1"):  # 100 Continue and the like: another head follows
            return self._head()
        self.status = int(parts[1])
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length")
        if not self._chunked and length is not None:
            if not (length.isascii() and length.isdigit()) or len(length) > 12:
                raise BadAnswer(f"a length of {length[:40]!r}")
            self._left = int(length)
        return True

    def _pass_on(self) -> None:
        """Moves what belongs to the body out of the raw bytes."""
        if not self._chunked:
            taken = len(self._raw) if self._left is None else min(self._left, len(self._raw))
            self._body += self._raw[:taken]
            del self._raw[:taken]
            if self._left is not None:
                self._left -= taken
                if self._left == 0:
                    self._finish()
            return
        while self._raw and not self.ended:
            if self._gap:
                if len(self._raw) < 2:
                    return
                del self._raw[:2]
                self._gap = False
            elif self._left is None:
                if not self._size():
                    return
            else:
                taken = min(self._left, len(self._raw))
                self._body += self._raw[:taken]
                del self._raw[:taken]
                self._left -= taken
                if self._left == 0:
                    self._left, self._gap = None, True

    def _size(self) -> bool:
        end = self._raw.find(b"\r\n")
        if end < 0:
            if len(self._raw) > 1024:
                raise BadAnswer("a chunk without size")
            return False
        text = bytes(self._raw[:end]).partition(b";")[0].strip()
        del self._raw[: end + 2]
        try:
            if len(text) > 8 or not text.isalnum():
                raise ValueError
            self._left = int(text, 16)
        except ValueError:
            raise BadAnswer(f"a chunk of {text[:40]!r} bytes") from None
        if self._left == 0:
            self._finish()
        return True

    def _finish(self) -> None:
        self._events()
        if self.status != 200:
            self.error = _message(bytes(self._body))
        self.ended = True

    def _events(self) -> None:
        if self.status != 200:
            del self._body[_REFUSAL_MAX:]
            return
        start = 0
        while (end := self._body.find(b"\n", start)) >= 0:
            line = bytes(self._body[start:end]).strip()
            start = end + 1
            if line.startswith(b"data:"):
                self._event(line[5:].strip())
        del self._body[:start]
        if len(self._body) > _LINE_MAX:
            raise BadAnswer("an event without end")

    def _event(self, text: bytes) -> None:
        if text == b"[DONE]":
            self.done = True
            return
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            raise BadAnswer(f"an event that is no JSON: {text[:40]!r}") from None
        if not isinstance(event, dict):
            raise BadAnswer("an event that is no object")
        if event.get("error"):
            self.error = _message(text)
        usage = event.get("usage")
        if isinstance(usage, dict):
            self.tokens = _whole(usage.get("completion_tokens"), self.tokens)
            self.prompt_tokens = _whole(usage.get("prompt_tokens"), self.prompt_tokens)
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._choice(choice)

    def _choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        says = delta if isinstance(delta, dict) else {}
        if choice.get("text") or any(
            says.get(name) for name in ("content", "reasoning_content", "reasoning")
        ):
            self.pieces += 1
        if isinstance(choice.get("finish_reason"), str):
            self.finish = choice["finish_reason"]


def _whole(value: Any, other: int | None) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 40 else other


def _message(text: bytes) -> str:
    try:
        said = json.loads(text)
        said = said.get("error", said)
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, AttributeError, RecursionError):
        said = text.decode("utf-8", "replace")
    return " ".join(str(said).split())[:300]
