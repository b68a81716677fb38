"""A server's life: sockets, the event loop, signals, the run log, the end.

`Front.run` takes the calling thread; `stop` may be called from any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import platform
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import uvicorn

import scant
from scant import _scant
from scant.errors import InvalidArgument, reason
from scant.runlog.writer import RunLog
from scant.serve.engine import Engine
from scant.serve.server.app import App, Settings
from scant.serve.server.connection import connection_class
from scant.serve.server.delivery import Delivery

__all__ = ["Front"]

_BACKLOG = 2048
_FILES_BESIDE = 64  # that a process has open beside its connections
_CLOSE_S = 2  # for the last bytes of the last answers
_FREE_BYTES_MAX = 8 << 20  # of the heap, before they go back to the system
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, and probes
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Server(uvicorn.Server):
    """Uvicorn's, without its signals: the front has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Front:
    """Serves one engine at one address until it is told to stop."""

    def __init__(
        self, engine: Engine, settings: Settings, say: Callable[[str], None] | None = None
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.port = 0
        self.ready = threading.Event()
        self.app: App | None = None
        self._say = say or (lambda line: print(line, flush=True))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._log = RunLog(settings.log) if settings.log is not None else None

    def run(self) -> int:
        """Listens, serves, drains; returns the exit status. The engine is the caller's to close."""
        listener = self._listen()
        try:
            return asyncio.run(self._serve(listener))
        finally:
            listener.close()
            if self._log is not None:
                self._log.close()

    def stop(self) -> None:
        """Begins to drain, as SIGTERM does."""
        assert self._loop is not None and self._stopping is not None
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._stopping.set)

    def _listen(self) -> socket.socket:
        host, port = self.settings.host, self.settings.port
        raise_file_limit(self.settings.limits.connections + _FILES_BESIDE, self._say)
        try:
            family, kind, number, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, number)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _watch_peers(listener)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            text = f"cannot listen on {host} port {port}: {reason(error)}"
            raise InvalidArgument(text) from error
        self.port = int(listener.getsockname()[1])
        return listener

    async def _serve(self, listener: socket.socket) -> int:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._stopping = asyncio.Event()
        app = App(self.engine, self.settings)
        self.app = app
        server = self._uvicorn(app)
        app.connections = server.server_state.connections

        def failed(error: BaseException) -> None:
            print(f"scant serve: the engine failed: {error}", file=sys.stderr, flush=True)
            app.failure = error
            assert self._stopping is not None
            self._stopping.set()

        delivery = Delivery(self.engine, app.sinks, app.figures, self.settings.limits, failed)
        self._take_signals(loop)
        serving = loop.create_task(server.serve(sockets=[listener]))
        delivery.start(loop)
        tasks = [loop.create_task(self._sweep(app))]
        if self._log is not None:
            self._write_run(app)
            tasks.append(loop.create_task(self._write_periods(app)))
        try:
            self._greet()
            await self._until_stopped(app, serving)
        finally:
            for task in tasks:
                task.cancel()
            server.should_exit = True
            await serving
            delivery.stop()
            app.close()
        if self._log is not None:
            self._write_period(app, self.settings.period_s)
        return 1 if app.failure is not None else 0

    def _uvicorn(self, app: App) -> _Server:
        limits = self.settings.limits
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # not what strangers get wrong
        return _Server(
            uvicorn.Config(
                app,
                http=connection_class(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=int(limits.idle_s),
                timeout_graceful_shutdown=_CLOSE_S,
            )
        )

    def _greet(self) -> None:
        settings, model = self.settings, self.engine.model
        at = f"http://{_shown_host(settings.host)}:{self.port}"
        self._say(
            f"{model.name} (context {model.context:,}, vocabulary {model.vocabulary:,}) at {at}/v1"
        )
        if settings.keys:
            key = " -H 'Authorization: Bearer KEY'"
        else:
            key = ""
            if not settings.loopback:
                self._say(
                    "warning: whoever reaches this address can use the model; "
                    "--api-key-file asks for a key"
                )
        chat = model.chat_template is not None
        path = "chat/completions" if chat else "completions"
        asks = '"messages": [{"role": "user", "content": "Hello"}]' if chat else '"prompt": "Hello"'
        self._say(
            f"try: curl {at}/v1/{path}{key} -H 'Content-Type: application/json' -d '{{{asks}}}'"
        )
        self.ready.set()

    # The end.

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, loop)

    def _on_signal(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in _SIGNALS:  # the next one ends the process, whatever it is at
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        assert self._stopping is not None
        self._stopping.set()

    async def _until_stopped(self, app: App, serving: asyncio.Task[None]) -> None:
        assert self._stopping is not None
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        app.draining = True
        left = len(app.answers)
        limit_s = 0.0 if app.failure is not None else self.settings.drain_timeout_s
        if left:
            self._say(f"waiting up to {limit_s:g} s for the answers on their way: {left}")
        if await self._idle(app, limit_s):
            return
        app.end_all()
        await self._idle(app, _CLOSE_S)

    @staticmethod
    async def _idle(app: App, limit_s: float) -> bool:
        if not app.answers:
            return True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(app.idle.wait(), limit_s)
        return not app.answers

    # Now and then.

    async def _sweep(self, app: App) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.settings.limits.sweep_s)
            for connection in list(app.connections):
                connection.sweep(loop.time())
            # What large requests left behind lies between what lives on: the heap never shrinks by
            # itself. Not in the loop's thread, since it takes milliseconds.
            await loop.run_in_executor(None, _scant.give_memory_back, _FREE_BYTES_MAX)

    def _write_run(self, app: App) -> None:
        assert self._log is not None
        settings, model = self.settings, self.engine.model
        self._begun_s = asyncio.get_running_loop().time()
        self._last = self.engine.stats()
        self._written_s = self._begun_s
        self._log.write(
            {
                "kind": "run",
                "step": 0,
                "at_s": 0.0,
                "version": 1,
                "scant": scant.__version__,
                "started": datetime.datetime.now(datetime.timezone.utc).isoformat(
                    timespec="seconds"
                ),
                "host": platform.node(),
                "pid": os.getpid(),
                "serves": model.name,
                "options": {
                    "address": f"{_shown_host(settings.host)}:{self.port}",
                    "context": model.context,
                    "timeout": settings.timeout_s,
                },
            }
        )

    async def _write_periods(self, app: App) -> None:
        while True:
            await asyncio.sleep(self.settings.period_s)
            self._write_period(app, self.settings.period_s)

    def _write_period(self, app: App, period_s: float) -> None:
        assert self._log is not None
        stats = self.engine.stats()
        now = asyncio.get_running_loop().time()
        line = {
            "kind": "served",
            "step": int(stats.get("steps", 0)),
            "at_s": now - self._begun_s,
            "period_s": now - self._written_s,
            "connections": len(app.connections),
            **app.figures.line(stats, self._last),
        }
        self._last, self._written_s = stats, now
        self._log.write(line)


def _watch_peers(listener: socket.socket) -> None:
    """A machine that is gone says nothing: its connections end within a minute. The listener's
    options are those of its connections."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def raise_file_limit(wanted: int, say: Callable[[str], None]) -> int:
    """Lets the process open so many files, or as many as it may; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
        except (OSError, ValueError):
            most = soft
    if soft != resource.RLIM_INFINITY and soft < wanted:
        say(
            f"warning: this process may open {soft:,} files, so fewer than "
            f"{wanted - _FILES_BESIDE:,} connections; raise the limit with: ulimit -n {wanted}"
        )
    return wanted if soft == resource.RLIM_INFINITY else soft
