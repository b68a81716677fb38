"""A server in a thread of the test, at a port of its own, over a scripted engine."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

from scripted_engine import ScriptedEngine

from scant.serve.server.app import Settings
from scant.serve.server.front import Front

DEADLINE_S = 30.0


@contextlib.contextmanager
def served(engine: ScriptedEngine, **settings: Any) -> Iterator[Front]:
    """Runs it for a `with` block; its end is a drain."""
    said: list[str] = []
    chosen = dataclasses.replace(Settings(port=0, drain_timeout_s=0.0), **settings)
    front = Front(engine, chosen, said.append)
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(front.run()))
    thread.start()
    try:
        assert front.ready.wait(DEADLINE_S), said
        yield front
    finally:
        if thread.is_alive():
            front.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert status == [0] or engine.failing is not None


def ask(
    front: Front,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], Any]:
    """One request of its own connection: status, headers, the JSON or the text."""
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=DEADLINE_S)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} if data is not None else {}
    try:
        connection.request(method, path, data, {**given, **(headers or {})})
        answer = connection.getresponse()
        text = answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
        if found.get("content-type") == "application/json":
            return answer.status, found, json.loads(text)
        return answer.status, found, text.decode()
    finally:
        connection.close()


def raw(front: Front, data: bytes) -> socket.socket:
    """A connection on which these bytes were sent."""
    peer = socket.create_connection(("127.0.0.1", front.port), DEADLINE_S)
    peer.sendall(data)
    return peer


def read_all(peer: socket.socket) -> bytes:
    """Until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := peer.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def post(body: bytes, length: int | None = None, path: str = "/v1/completions") -> bytes:
    """A request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return (
        f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body
    )


def refused(front: Front, body: Any, path: str = "/v1/completions") -> tuple[int, dict[str, Any]]:
    """A POST that is refused: its status and OpenAI's object of an error."""
    status, _, found = ask(front, "POST", path, body)
    assert set(found["error"]) == {"message", "type", "param", "code"}
    return status, found["error"]
