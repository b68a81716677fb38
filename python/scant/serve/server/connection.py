"""One HTTP connection: uvicorn's protocol, held to limits that uvicorn does not have.

A head must come whole in time and size, an answer must find a reader, and what closes must get
closed. `sweep` is called for each connection now and then with the time; nothing here waits. Of the
event loop's thread. The application finds the connection in `scope["state"]["connection"]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from scant.serve.server.limits import Limits
from scant.serve.server.refusals import Refusal

__all__ = ["Connection", "connection_class"]

_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large",
            503: "Service Unavailable"}  # fmt: skip


class Connection(HttpToolsProtocol):
    """See the head of the file; made by `connection_class`, which sets the limits."""

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.on_lost: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self._head_bytes = 0
        self._in_head = False
        self._told_head = False  # the parser sees a head again
        self._frame_bytes = 0  # of a body, since its last content: sizes of chunks, trailers
        self._idle_since: float | None = self.loop.time()  # before the first byte
        self._head_since: float | None = None
        self._paused_since: float | None = None
        self._closing_since: float | None = None
        if len(self.connections) > self.limits.connections:
            self._refuse(Refusal(503, "too many connections", code="too_many_connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()
        self.on_lost = self.on_writable = None

    # Heads.

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._idle_since = None
        between = self.cycle is None or self.cycle.response_complete
        if self._in_head or between:
            self._head_bytes += len(data)
            if self._head_since is None:
                self._head_since = self.loop.time()
        self._frame_bytes += len(data)
        self._feed(data)
        most = self.limits.head_bytes
        if (self._in_head or between) and self._head_bytes > most:
            self._refuse(Refusal(431, f"the head is longer than {most:,} bytes"))
        elif self._frame_bytes > most and self.cycle is not None and self.cycle.more_body:
            self._refuse(Refusal(400, "a body of no content"))

    def _feed(self, data: bytes) -> None:
        """As uvicorn does it, but that an offer of another protocol, such as Java's of h2c, costs
        nobody the body: the parser ends at such a head, so the next one goes on behind it."""
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return
            if self.transport.is_closing():
                return
            self._go_on_behind_head()

    def _go_on_behind_head(self) -> None:
        lines = [
            b"%b: %b\r\n" % (name, value)
            for name, value in self.headers
            if name in (b"content-length", b"transfer-encoding")
        ]
        self.parser = httptools.HttpRequestParser(self)
        self.cycle.more_body = True
        self._told_head = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(lines))
        self._told_head = False

    def on_url(self, url: bytes) -> None:
        if not self._told_head:
            super().on_url(url)

    def on_message_begin(self) -> None:
        if self._told_head:
            return
        super().on_message_begin()
        self._in_head = True
        self.scope["state"]["connection"] = self

    def on_header(self, name: bytes, value: bytes) -> None:
        """Also called for trailers, which nobody reads: they are not kept."""
        if self._in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._frame_bytes = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        if self._told_head:
            return
        self._in_head = False
        self._head_bytes = self._frame_bytes = 0
        self._head_since = None
        if len(self.pipeline) >= self.limits.pipelined:
            self._refuse(Refusal(400, "too many requests on their way at once"))
            return
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.on_lost = self.on_writable = None

    def send_400_response(self, msg: str) -> None:
        """What uvicorn answers to bytes that are no HTTP."""
        self._refuse(Refusal(400, msg))

    def _refuse(self, refusal: Refusal) -> None:
        """Answers outside of any request, and closes."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = refusal.body()
            head = (
                f"HTTP/1.1 {refusal.status} {_PHRASES[refusal.status]}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    # Readers.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._paused_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._paused_since = None
        if self.on_writable is not None:
            self.on_writable()

    @property
    def takes(self) -> bool:
        """Bytes that are written now find room."""
        return self._paused_since is None and not self.transport.is_closing()

    def write_piece(self, data: bytes) -> None:
        """A part of a streamed answer whose head was sent. Uvicorn's own way costs a task's turn
        for each."""
        if self.cycle.chunked_encoding:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self.transport.write(data)

    def listen(self) -> None:
        """After a body has been read: a client that leaves is heard only while bytes are read."""
        self.flow.resume_reading()

    def left(self, scope: Any) -> None:
        """Nobody waits for this request's answer: uvicorn would complain that there is none."""
        if self.cycle is not None and self.cycle.scope is scope:
            self.cycle.disconnected = True
        self.transport.close()

    def abort(self) -> None:
        """Ends it at once; what was not sent is lost."""
        self.transport.abort()

    # Time.

    def sweep(self, now: float) -> None:
        """Looks what took too long."""
        limits = self.limits
        if self.transport.is_closing():
            if self._closing_since is None:
                self._closing_since = now
            elif now - self._closing_since > limits.stall_s:
                self.abort()
        elif self._paused_since is not None and now - self._paused_since > limits.stall_s:
            self.abort()
        elif self._idle_since is not None and now - self._idle_since > limits.idle_s:
            self.transport.close()
        elif self._head_since is not None and now - self._head_since > limits.head_s:
            text = f"no whole head came within {limits.head_s:g} s"
            self._refuse(Refusal(408, text))


def connection_class(limits: Limits) -> type[Any]:
    """The class with these limits, for uvicorn to make objects of."""
    return type("_ConnectionOfServer", (Connection,), {"limits": limits})
