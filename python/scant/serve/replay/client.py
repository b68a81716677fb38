"""Sends requests at their times and reads the answers. All of it is the event loop's thread.

The loop wakes by a timer of the kernel, a little early, and looks at the clock until the time has
come; asyncio's own timers round up to milliseconds. Whatever else the loop does, what is due goes
first. Connections are opened up to a second ahead, and prompts are made ahead, so that at a
request's time only one write is left. Each request has a connection of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import ssl
import struct
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from scant.errors import Error, InvalidArgument, Io
from scant.serve.replay.figures import Outcome
from scant.serve.replay.schedule import Send
from scant.serve.replay.stream import Answer, BadAnswer

__all__ = ["Server", "raise_file_limit", "replay"]

_AHEAD_S = 1.0  # for which connections are opened before they are needed
_AHEAD_MAX = 256  # requests that are ready; bounds their memory
_EARLY_S = 1.5e-4  # the timer rings so long before a send: what waking may take
_QUIET_S = 3e-3  # nothing is prepared when a send is nearer than this
_FEW = 32  # ready requests; with fewer the next one is prepared whatever is near
_SPARE_FILES = 64  # descriptors for all but connections
_GC = (50_000, 20, 100)  # rarely: a collection of all objects takes milliseconds
_CLOCK_MONOTONIC, _ABSOLUTE, _NONBLOCK = 1, 1, os.O_NONBLOCK


@dataclass(frozen=True)
class Server:
    """Where requests go."""

    host: str
    port: int
    path: str  # of the base, without /v1
    tls: ssl.SSLContext | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def at(
        url: str,
        key: str | None = None,
        authorities: os.PathLike[str] | None = None,
        insecure: bool = False,
    ) -> Server:
        """From ``http://host:port``, with or without ``/v1``.

        ``authorities``: a file of certificates that are trusted beside the system's; ``insecure``:
        any certificate will do.
        """
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or not port:
            raise InvalidArgument(f"{url!r} is no server such as http://127.0.0.1:8000")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        path = parts.path.rstrip("/").removesuffix("/v1")
        tls = _tls(authorities, insecure) if parts.scheme == "https" else None
        return Server(parts.hostname, port, path, tls, headers)

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """All bytes of a request."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.path}{path} HTTP/1.1", f"Host: {host}:{self.port}"]
        lines += ["Connection: close", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _tls(authorities: os.PathLike[str] | None, insecure: bool) -> ssl.SSLContext:
    """One for all connections: reading the system's certificates takes milliseconds."""
    context = ssl.create_default_context()
    if authorities is not None:
        name = os.fspath(authorities)
        try:
            context.load_verify_locations(name)
        except ssl.SSLError as error:
            raise InvalidArgument(f"--ca {name}: no certificates can be read from it") from error
        except OSError as error:
            raise InvalidArgument(f"--ca {name}: {error.strerror}") from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def raise_file_limit() -> int:
    """Takes all descriptors that this process may have; how many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= most:
        return int(most) - _SPARE_FILES
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return int(soft) - _SPARE_FILES


class _Timer:
    """A timerfd of the monotonic clock, which is also the loop's."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK)
        if self._file < 0:
            number = ctypes.get_errno()
            raise Io(f"no timer: {os.strerror(number)}", errno=number)
        self._call = call
        asyncio.get_running_loop().add_reader(self._file, self._rings)

    def set(self, at_s: float) -> None:
        """Rings once at this time, at once if it is over."""
        whole, part = divmod(max(round(at_s * 1e9), 1), 10**9)
        value = struct.pack("@4l", 0, 0, whole, part)
        self._libc.timerfd_settime(self._file, _ABSOLUTE, value, None)

    def _rings(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._file, 8)
        self._call()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._file)
        os.close(self._file)


class _Request(asyncio.Protocol):
    """One send, from its preparation to its outcome."""

    def __init__(self, run: _Run, send: Send, data: bytes) -> None:
        self.run = run
        self.send = send
        self.data = data
        self.due = False
        self.outcome = Outcome(send)
        self.answer = Answer()
        self.transport: asyncio.Transport | None = None
        self.over = False
        self.limit: asyncio.TimerHandle | None = None
        self.opening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        server = self.run.server
        try:
            await self.run.loop.create_connection(
                lambda: self, server.host, server.port, ssl=server.tls
            )
        except OSError as error:
            self.end("connect", str(error))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.run.send_due()
        self.transport = transport
        if self.over:
            transport.abort()
        elif self.due:
            self._write()

    def go(self) -> None:
        """Its time has come."""
        self.due = True
        self.limit = self.run.loop.call_later(self.run.timeout_s, self.end, "timeout", "")
        if self.transport is not None and not self.over:
            self._write()

    def _write(self) -> None:
        assert self.transport is not None
        self.outcome.sent_s = self.run.now()
        self.transport.write(self.data)
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.run.send_due()
        if self.over:
            return
        now = self.run.now()
        try:
            pieces = self.answer.feed(data)
        except BadAnswer as error:
            self.end("bad answer", str(error))
            return
        if pieces:
            if self.outcome.first_s is None:
                self.outcome.first_s = now
            self.outcome.last_s = now
        if self.answer.ended:
            self._whole()

    def connection_lost(self, error: Exception | None) -> None:
        if self.over:
            return
        if self.answer.eof():
            self._whole()
        else:
            self.end("disconnect", "" if error is None else str(error))

    def _whole(self) -> None:
        answer = self.answer
        if answer.status != 200:
            self.outcome.retry_after = "retry-after" in answer.headers
            self.end(f"http {answer.status}", answer.error or "")
        elif answer.error is not None:
            self.end("error in the stream", answer.error)
        elif not answer.pieces:
            self.end("no text", f"finished by {answer.finish}")
        else:
            self.end(None, "")

    def end(self, error: str | None, said: str) -> None:
        """Once; tells the run."""
        if self.over:
            return
        self.over = True
        self.outcome.error, self.outcome.said = error, said
        self.outcome.end_s = self.run.now()
        answer = self.answer
        self.outcome.tokens = answer.pieces if answer.tokens is None else answer.tokens
        self.outcome.prompt_tokens = answer.prompt_tokens
        if self.limit is not None:
            self.limit.cancel()
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None and error != "connect":
            self.opening.cancel()
        self.data = b""
        self.run.over(self)


class _Run:
    """Sends what is due, prepares what is next."""

    def __init__(
        self,
        server: Server,
        path: str,
        sends: Iterator[tuple[Send, Callable[[], bytes]]],
        tell: Callable[[Outcome], None],
        timeout_s: float,
        open_max: int,
    ) -> None:
        self.server = server
        self.failure: Exception | None = None  # of the trace, while it was read
        self.timeout_s = timeout_s
        self._path = path
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Event = asyncio.Event()
        self._sends = sends
        self._next = next(sends, None)
        self._tell = tell
        self._open_max = open_max
        self._ready: deque[_Request] = deque()
        self._open: set[_Request] = set()
        self._timer = _Timer(self._turn)
        self._stopped = False
        self._start_s = self.loop.time() + 0.1  # for the first preparations

    def now(self) -> float:
        """Seconds after the run's start."""
        return self.loop.time() - self._start_s

    async def run(self) -> None:
        self._turn()
        try:
            await self.done.wait()
        finally:
            self._timer.close()

    def stop(self) -> None:
        """Nothing more is sent; what is on its way ends as `cut short`."""
        self._stopped = True
        self._next = None
        for request in self._ready:  # never sent: no outcome of theirs is told
            request.over = True
            if request.transport is not None:
                request.transport.abort()
        self._open.difference_update(self._ready)
        self._ready.clear()
        for request in list(self._open):
            request.end("cut short", "")
        self._check()

    def over(self, request: _Request) -> None:
        """A request has its outcome."""
        if request.due:
            self._forget(request)
        # Else it failed while it was opened: it is told when its time has come.

    def _forget(self, request: _Request) -> None:
        self._open.discard(request)
        self._tell(request.outcome)
        self._check()

    def _check(self) -> None:
        if self._next is None and not self._ready and not self._open:
            self.done.set()

    def send_due(self) -> None:
        """Sends all whose time has come."""
        while self._ready and self._ready[0].send.at_s <= self.now():
            request = self._ready.popleft()
            if request.over:
                request.outcome.end_s = max(request.outcome.end_s, self.now())
                self._forget(request)
            else:
                request.go()

    def _turn(self) -> None:
        """Sends all that is due or nearly so, then prepares one, then sets the timer."""
        self.send_due()
        while self._ready and self._ready[0].send.at_s <= self.now() + _EARLY_S:
            self.send_due()
        if self._stopped:
            return
        near = self._ready[0].send.at_s - self.now() if self._ready else 1.0
        at_s = self._ready[0].send.at_s - _EARLY_S if self._ready else None
        if self._next is not None and len(self._ready) < _AHEAD_MAX:
            prepare_s = self._next[0].at_s - _AHEAD_S
            if prepare_s <= self.now() and (near > _QUIET_S or len(self._ready) < _FEW):
                self._prepare()
                at_s = self.now()  # again at once, after what the loop has to do
            elif prepare_s > self.now():
                at_s = prepare_s if at_s is None else min(at_s, prepare_s)
        if at_s is not None:
            self._timer.set(self._start_s + at_s)
        self._check()

    def _prepare(self) -> None:
        assert self._next is not None
        send, data = self._next
        try:
            self._next = next(self._sends, None)
        except (Error, OSError) as error:
            self.failure = error
            self.stop()
            return
        request = _Request(self, send, b"")
        self._ready.append(request)
        self._open.add(request)
        if len(self._open) > self._open_max:
            request.end("too many open", f"{self._open_max} connections are open")
            return
        request.data = self.server.request("POST", self._path, data())
        request.opening = self.loop.create_task(request.open())


async def replay(
    server: Server,
    path: str,
    sends: Iterable[tuple[Send, Callable[[], bytes]]],
    tell: Callable[[Outcome], None],
    *,
    timeout_s: float,
    open_max: int,
    on_start: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> None:
    """Until the last answer; `on_start` is given what ends the run early."""
    run = _Run(server, path, iter(sends), tell, timeout_s, open_max)
    on_start(run.stop)
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC)
    try:
        await run.run()
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
    if run.failure is not None:
        raise run.failure
