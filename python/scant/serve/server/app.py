"""The endpoints: who may ask, what is answered, and that nothing else is disturbed by it.

An ASGI application over Starlette's router. Of the event loop's thread; bodies become prompts in a
small pool of threads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import json
import secrets
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router

from scant import metrics
from scant.serve.engine import Engine
from scant.serve.server import body, figures
from scant.serve.server.answers import Answer, Sinks
from scant.serve.server.connection import Connection
from scant.serve.server.fields import Asked
from scant.serve.server.figures import Figures
from scant.serve.server.forms import ChatForm, CompletionForm, Form, VectorForm
from scant.serve.server.keys import Keys
from scant.serve.server.limits import Limits
from scant.serve.server.prompts import Preparer, Prompt
from scant.serve.server.refusals import Left, Refusal, draining, refusal_of

__all__ = ["App", "Settings"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON = b"application/json"
_PREPARING_THREADS = 2
_DISCARD_BYTES = 64 << 20  # of a body that nobody wants, read so that its sender hears why
_DISCARD_S = 2.0


@dataclass(frozen=True)
class Settings:
    """What the operator chooses."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Keys = field(default_factory=lambda: Keys([]))
    timeout_s: float | None = 600.0  # of a request that names none; also the longest
    drain_timeout_s: float = 30.0
    access_log: bool = False
    log: str | None = None
    period_s: float = 10.0  # of the run log's lines
    limits: Limits = field(default_factory=Limits)

    @property
    def loopback(self) -> bool:
        """Only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class _Endpoint:
    """An ASGI application for a route: Starlette takes functions for another kind of thing."""

    def __init__(self, answer: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)


class App:
    """Answers requests with what the engine generates."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.figures = Figures()
        self.sinks: Sinks = {}
        self.answers: set[Answer] = set()
        self.draining = False
        self.failure: BaseException | None = None  # of the engine: nothing works any more
        self.idle = asyncio.Event()  # no answer is on its way
        self.connections: set[Any] = set()  # uvicorn's
        self._bodies = body.Bodies(settings.limits)
        self._preparer = Preparer(engine.model, settings.limits)
        self._preparing = 0
        self._pool = concurrent.futures.ThreadPoolExecutor(
            _PREPARING_THREADS, thread_name_prefix="scant-prepare"
        )
        self._created = int(time.time())
        self._cpu_began_s = time.thread_time()  # this thread has opened the model before
        self._router = Router(
            [
                Route("/health", _Endpoint(self._health), methods=["GET"]),
                Route("/metrics", _Endpoint(self._metrics), methods=["GET"]),
                Route("/v1/models", _Endpoint(self._models), methods=["GET"]),
                Route("/v1/models/{name:path}", _Endpoint(self._model), methods=["GET"]),
                Route("/v1/completions", _Endpoint(self._completions), methods=["POST"]),
                Route("/v1/chat/completions", _Endpoint(self._chat), methods=["POST"]),
                Route("/v1/embeddings", _Endpoint(self._vectors), methods=["POST"]),
            ],
            redirect_slashes=False,
        )

    def close(self) -> None:
        """Ends the threads of the pool."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request; whatever happens in it ends in an answer or a closed connection."""
        begun_at = time.monotonic()
        scope["begun_at"] = begun_at
        status = 0

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message["status"]
            await send(message)

        scope["start"] = counted
        try:
            self._admit(scope)
            scope["app"] = self  # has the router raise for what it does not find
            await self._router(scope, receive, send)
        except Left as left:
            self.figures.cancel(str(left))
            scope["state"]["connection"].left(scope)
        except Exception as error:
            if status:
                raise  # too late for an answer: the connection is closed
            await _refuse(scope, receive, send, _told(error, scope))
        finally:
            if status:
                self._account(scope, status, time.monotonic() - begun_at)

    # Before an endpoint.

    def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        scope["headers_by_name"] = headers
        if self.settings.loopback and not self.settings.keys:
            _check_host(headers.get(b"host", b""))
        if scope["path"] == "/health" or not self.settings.keys:
            return
        if not self.settings.keys.admits(headers.get(b"authorization", b"")):
            text = "no valid API key: send the header 'Authorization: Bearer KEY'"
            raise Refusal(
                401, text, code="invalid_api_key", headers=((b"www-authenticate", b"Bearer"),)
            )

    def _account(self, scope: Scope, status: int, seconds: float) -> None:
        endpoint = _ENDPOINTS.get(scope["path"], "other")  # so that strangers make no labels
        self.figures.answered(endpoint, status, seconds)
        if self.settings.access_log:
            client = scope.get("client") or ("–",)
            line = f"{client[0]} {scope['method']} {scope['path']!r} {status} {seconds:.3f} s"
            answer = scope.get("answer")
            if answer is not None:
                table = answer.usage().table
                line += f" {table['prompt_tokens']} + {table['completion_tokens']} tokens"
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            print(stamp, line, file=sys.stderr, flush=True)

    # Endpoints.

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.failure is not None:
            raise _engine_failed()
        if self.draining:
            raise draining()
        await _json(scope, send, {"status": "ok"})

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        gauges = {
            "connections": (len(self.connections), "Open connections."),
            "answers": (len(self.answers), "Requests that are being answered."),
            "preparing": (self._preparing, "Requests that are being made into tokens."),
            "body_bytes": (self._bodies.bytes, "Bytes of requests in memory."),
            "draining": (int(self.draining), "1 while the server waits for its last answers."),
        }
        stats = {**self.engine.stats(), "front_cpu_s": time.thread_time() - self._cpu_began_s}
        own = figures.prometheus(self.figures, stats, gauges)
        text = metrics.counters_prometheus()
        await _whole(scope, send, metrics.CONTENT_TYPE.encode(), (text + own).encode())

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _json(scope, send, {"object": "list", "data": [self._described()]})

    async def _model(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["name"]
        if name != self.engine.model.name:
            text = f"the model {name[:100]!r} is not here; there is {self.engine.model.name!r}"
            raise Refusal(404, text, param="model", code="model_not_found")
        await _json(scope, send, self._described())

    def _described(self) -> dict[str, Any]:
        model = self.engine.model
        return {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "scant",
            "context": model.context,
        }

    async def _completions(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._generate(scope, receive, send, CompletionForm, self._preparer.completion)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._generate(scope, receive, send, ChatForm, self._preparer.chat)

    async def _vectors(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._generate(scope, receive, send, VectorForm, self._preparer.vectors)

    async def _generate(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        form: type[Form],
        prepare: Callable[[bytes], tuple[Asked, list[Prompt]]],
    ) -> None:
        self._check_open()
        asked, prompts = await self._prepared(scope, receive, prepare)
        self._check_open()
        connection: Connection = scope["state"]["connection"]
        made = form(
            secrets.token_hex(12), int(time.time()), self.engine.model.name, asked.include_usage
        )
        answer = Answer(self.engine, self.sinks, made, asked, prompts, scope["begun_at"])
        scope["answer"] = answer
        connection.on_lost = lambda: answer.leave("client")
        connection.listen()
        if connection.transport.is_closing():
            raise Left("client")

        def slow() -> None:
            answer.leave("slow reader")
            connection.abort()

        answer.on_slow = slow if asked.stream else None
        answer.submit(self._timeout(asked.timeout_s))
        self.answers.add(answer)
        self.idle.clear()
        try:
            if asked.stream:
                await self._stream(scope, send, answer)
            else:
                await self._wait(scope, send, answer)
        finally:
            answer.abandon()
            self.answers.discard(answer)
            if not self.answers:
                self.idle.set()

    def _check_open(self) -> None:
        if self.failure is not None:
            raise _engine_failed()
        if self.draining:
            raise draining()

    def _timeout(self, asked_s: float | None) -> float | None:
        longest_s = self.settings.timeout_s
        if asked_s is None or longest_s is None:
            return asked_s or longest_s
        return min(asked_s, longest_s)

    async def _prepared(
        self,
        scope: Scope,
        receive: Receive,
        prepare: Callable[[bytes], tuple[Asked, list[Prompt]]],
    ) -> tuple[Asked, list[Prompt]]:
        limits = self.settings.limits
        with self._bodies.held() as take:
            data = await body.read(scope["headers_by_name"], receive, limits, take)
            self._preparing += 1
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._pool, prepare, data)
            finally:
                self._preparing -= 1

    async def _wait(self, scope: Scope, send: Send, answer: Answer) -> None:
        while not answer.ended and not answer.failed and not answer.left:
            await answer.changed()
        self._check_answer(answer)
        await _whole(scope, send, _JSON, answer.whole())

    async def _stream(self, scope: Scope, send: Send, answer: Answer) -> None:
        await answer.changed()
        self._check_answer(answer)
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        connection: Connection = scope["state"]["connection"]
        plain = scope["http_version"] == "1.0"  # which knows no chunks: its end is the connection's
        if plain:
            connection.cycle.chunked_encoding = False
        await scope["start"]({"type": "http.response.start", "status": 200, "headers": headers})

        def tell(answer: Answer) -> None:
            if connection.takes and (text := answer.chunk()):
                connection.write_piece(text.encode())

        answer.tell = tell
        connection.on_writable = answer.advance
        answer.advance()
        while not answer.ended and not answer.failed and not answer.left:
            await answer.changed()
        if answer.left:
            raise Left(answer.left)
        data = answer.last()
        if plain and not connection.transport.is_closing():
            connection.write_piece(data)
        end = {"type": "http.response.body", "body": b"" if plain else data, "more_body": False}
        await send(end)

    def _check_answer(self, answer: Answer) -> None:
        if answer.left:
            raise Left(answer.left)
        if answer.failure is not None:
            raise answer.failure

    def end_all(self) -> None:
        """Ends every answer; its client is told why."""
        for answer in list(self.answers):
            self.figures.cancel("shutdown")
            answer.fail(draining() if self.failure is None else _engine_failed())


def _engine_failed() -> Refusal:
    return Refusal(503, "the engine failed", code="engine_failed")


_ENDPOINTS = {
    "/health": "health",
    "/metrics": "metrics",
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/models": "models",
}


def _told(error: Exception, scope: Scope) -> Refusal:
    """What the client hears; what it may not hear goes to the log."""
    if isinstance(error, HTTPException):
        if error.status_code == 405:
            text = f"{scope['path'][:100]} does not take {scope['method']}"
        else:
            text = f"there is no {scope['path'][:100]!r} here; see /v1/models"
        return Refusal(error.status_code, text)
    refusal = refusal_of(error)
    if refusal.status == 500 and refusal is not error:
        traceback.print_exception(error)
    return refusal


def _check_host(host: bytes) -> None:
    """A page in a browser could give this address a name of its own and read answers by it."""
    name = host.decode("latin-1").lower()
    name = name.partition("]")[0][1:] if name.startswith("[") else name.partition(":")[0]
    if name in ("", "localhost") or name.endswith(".localhost"):
        return
    try:
        ipaddress.ip_address(name)
    except ValueError:
        text = f"the host {name[:100]!r} is not this server's: use localhost or an address"
        raise Refusal(403, text, code="unknown_host") from None


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: Refusal) -> None:
    """Tells why. A body that is still on its way is read on for a while: a connection closed upon
    unread bytes would take the answer with it."""
    data = refusal.body()
    headers = [*_headers(_JSON, len(data)), *refusal.headers()]
    cycle = scope["state"]["connection"].cycle
    unread = cycle.scope is scope and cycle.more_body
    if unread:
        headers.append((b"connection", b"close"))
    start = {"type": "http.response.start", "status": refusal.status, "headers": headers}
    await scope["start"](start)
    await send({"type": "http.response.body", "body": data, "more_body": unread})
    if unread:
        if refusal.status != 408:
            await _discard(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    async def read() -> None:
        count = 0
        more = True
        while more and count < _DISCARD_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            count += len(message.get("body", b""))
            more = message.get("more_body", False)

    try:
        await asyncio.wait_for(read(), _DISCARD_S)
    except asyncio.TimeoutError:
        return


def _headers(kind: bytes, length: int) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", kind), (b"content-length", b"%d" % length)]


async def _json(scope: Scope, send: Send, value: Any) -> None:
    await _whole(scope, send, _JSON, json.dumps(value).encode())


async def _whole(scope: Scope, send: Send, kind: bytes, data: bytes) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": _headers(kind, len(data))}
    await scope["start"](start)
    await send({"type": "http.response.body", "body": data, "more_body": False})
