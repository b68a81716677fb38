"""What strangers send to a server: each gets its status and one line, and disturbs nobody else."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from front_support import DEADLINE_S, ask, post, raw, read_all, refused, served
from scripted_engine import ScriptedEngine, ScriptedModel

import scant
from scant.serve.server.front import Front
from scant.serve.server.keys import Keys
from scant.serve.server.limits import Limits

CHUNKED = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
SMALL = Limits(
    head_bytes=4096, body_bytes=20_000, bodies_bytes=30_000, pipelined=4, unread_tokens=500
)


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    """A server with small limits; each test leaves it as able as it was."""
    with served(ScriptedEngine("hi"), limits=SMALL) as one:
        yield one


@pytest.fixture(autouse=True)
def nobody_else_is_disturbed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "front" in request.fixturenames:
        one = request.getfixturevalue("front")
        body = {"prompt": "x", "max_tokens": 9}
        assert ask(one, "POST", "/v1/completions", body)[2]["choices"][0]["text"] == "hi"
        assert "\nscant_serve_body_bytes 0\n" in ask(one, "GET", "/metrics")[2]


# ---- bodies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "must be a JSON object"),
        (b'"x"', "must be a JSON object"),
        (b'{"prompt": "\xff"}', "no UTF-8 text (byte 12)"),
        (b'{"prompt": "\xed\xa0\x80"}', "no UTF-8 text"),
        (b'{"prompt": NaN}', "NaN is no number"),
        (b'{"temperature": ' + b"9" * 5000 + b"}", "no JSON that can be read"),
        (b"[" * 15_000, "nested deeper than 16 levels"),
        (b'{"a":' * 17 + b"1" + b"}" * 17, "nested deeper than 16 levels"),
        (b'{"prompt": "x", "metadata": "' + b"[" * 100 + b'"}', None),
        (b'{"prompt": "x", "metadata": "\\"[[[[[[[[[[[[[[[[[["}', None),
        (b"\xef\xbb\xbf{}", "no JSON"),
    ],
)
def test_a_body_that_is_wrong(front: Front, body: bytes, words: str | None) -> None:
    if words is None:
        assert ask(front, "POST", "/v1/completions", body)[0] == 200
        return
    status, error = refused(front, body)
    assert status == 400
    assert words in error["message"]


@pytest.mark.parametrize("seed", range(20))
def test_changed_bodies_get_an_answer(front: Front, seed: int) -> None:
    chance = random.Random(seed)
    whole = json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "n": 1,
         "stop": ["a"], "logit_bias": {"3": 1}, "stream": False, "max_tokens": 3}
    ).encode()  # fmt: skip
    data = bytearray(whole)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        data[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
    status, _, _ = ask(front, "POST", "/v1/chat/completions", bytes(data))
    assert status in (200, 400, 404), bytes(data)


def test_a_body_too_long(front: Front) -> None:
    body = {"prompt": "x" * SMALL.body_bytes}
    status, error = refused(front, body)
    assert (status, error["code"]) == (413, "body_too_long")
    # Announced, but never sent: the answer does not wait for it.
    peer = raw(front, post(b"", length=10**12))
    assert peer.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
    peer.close()
    # In chunks, without a length.
    head = post(b"").partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
    peer = raw(front, head + 3 * chunk + b"0\r\n\r\n")
    assert peer.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
    peer.close()


def test_many_bodies_at_a_time_are_too_much(front: Front) -> None:
    # One that is on its way holds its bytes; the next ones would be more than 30,000.
    half = raw(front, post(b"x" * 15_000, length=19_000))
    wait_for_bytes(front, 15_000)
    status, error = refused(front, {"prompt": "x" * 16_000})
    assert (status, error["code"]) == (429, "overloaded")
    half.close()
    wait_for_bytes(front, 0)


def wait_for_bytes(front: Front, count: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while f"\nscant_serve_body_bytes {count}\n" not in ask(front, "GET", "/metrics")[2]:
        assert time.monotonic() < end


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_only_json_is_read(front: Front, kind: str) -> None:
    status, _, found = ask(
        front, "POST", "/v1/completions", b'{"prompt": "x"}', {"Content-Type": kind}
    )
    assert (status, found["error"]["type"]) == (415, "invalid_request_error")
    status, _, _ = ask(
        front, "POST", "/v1/completions", b'{"prompt": "x"}', {"Content-Encoding": "gzip"}
    )
    assert status == 415


def test_a_slow_body() -> None:
    limits = Limits(body_s=0.05)
    with served(ScriptedEngine(), limits=limits) as front:
        peer = raw(front, post(b'{"prompt"', length=100))
        answer = read_all(peer)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"slow_body" in answer
        peer.close()


def test_a_body_in_chunks_that_never_ends() -> None:
    with served(ScriptedEngine(), limits=Limits(body_s=0.05)) as front:
        peer = raw(front, CHUNKED + b"1\r\n{\r\n")
        assert read_all(peer).startswith(b"HTTP/1.1 408 ")
        peer.close()


@pytest.mark.parametrize(
    "data",
    [
        CHUNKED + b"0\r\n" + 6000 * (b"X: " + b"y" * 95 + b"\r\n"),
        CHUNKED + b"0\r\nX: " + b"y" * 600_000,
        CHUNKED + b"2;" + b"y" * 600_000,
        b"\r\n" * 300_000,
    ],
    ids=["trailers", "a long trailer", "a chunk's extension", "blank lines"],
)
def test_bytes_without_content_are_not_kept(front: Front, data: bytes) -> None:
    peer = raw(front, b"")
    answer = b""
    with contextlib.suppress(ConnectionError):  # it is closed before all was sent
        peer.sendall(data)
        answer = read_all(peer)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    peer.close()


def test_a_body_in_chunks_of_a_byte(front: Front) -> None:
    body = b'{"prompt": "x", "metadata": {"a": "' + b"y" * 4000 + b'"}}'
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    peer = raw(front, CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + chunks)
    peer.sendall(b"0\r\nX-Trailer: none\r\n\r\n")
    assert read_all(peer).startswith(b"HTTP/1.1 200 ")
    peer.close()


# ---- heads and connections ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),  # TLS
        (b"GET\r\n\r\n", b"400"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 9000, b"431"),
        (b"GET /" + b"y" * 9000, b"431"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"GET /nothing HTTP/1.0\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET /%00%0a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"404"),
        (b"PUT /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"405"),
        (
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close, Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\n",
            b"200",
        ),
    ],
)
def test_a_head_that_is_wrong(front: Front, data: bytes, status: bytes) -> None:
    peer = raw(front, data)
    answer = read_all(peer)
    assert answer.split(b" ")[1] == status, answer
    if status != b"200":
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    peer.close()


@pytest.mark.parametrize("cut", [0, 40, 190, 199, 230])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_client_that_offers_http_2_keeps_its_body(front: Front, cut: int, framing: str) -> None:
    """Java's own client offers h2c with each first request."""
    body = b'{"prompt": "x", "max_tokens": 9}'
    head = (
        b"POST /v1/completions HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Host: localhost\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nUpgrade: h2c\r\n"
        b"Content-Type: application/json\r\n"
    )
    if framing == "length":
        data = head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    else:
        data = head + b"Transfer-Encoding: chunked\r\n\r\n"
        data += b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    peer = raw(front, data[:cut])
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.sendall(data[cut:])
    peer.sendall(last)
    answer = read_all(peer)
    assert answer.count(b"HTTP/1.1 200 OK") == 2, answer
    assert b'"text": "hi"' in answer and answer.endswith(b'{"status": "ok"}')
    peer.close()


def test_a_stream_of_http_1_0_ends_with_its_connection(front: Front) -> None:
    data = post(b'{"prompt": "x", "max_tokens": 9, "stream": true}').replace(b"1.1", b"1.0", 1)
    peer = raw(front, data)
    head, _, events = read_all(peer).partition(b"\r\n\r\n")
    assert b"chunked" not in head and b"connection: close" in head
    assert events.startswith(b"data: {") and events.endswith(b"data: [DONE]\n\n")
    assert b'"text": "h' in events
    peer.close()


@pytest.mark.parametrize("seed", range(20))
def test_noise_closes_or_is_answered(front: Front, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(post(b'{"prompt": "x", "max_tokens": 1}'))
    for _ in range(chance.randint(1, 5)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    peer = raw(front, bytes(data))
    peer.shutdown(socket.SHUT_WR)
    answer = read_all(peer)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    peer.close()


def test_a_pipeline_is_answered_in_order_and_has_an_end(front: Front) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    peer = raw(front, 3 * one + last)
    assert read_all(peer).count(b"HTTP/1.1 200 OK") == 4
    peer.close()
    peer = raw(front, 100 * one)
    assert read_all(peer).count(b"HTTP/1.1 200 OK") <= 5
    peer.close()


def test_a_slow_head_and_a_silent_connection() -> None:
    limits = Limits(head_s=0.02, idle_s=0.02, sweep_s=0.01)
    with served(ScriptedEngine(), limits=limits) as front:
        peer = raw(front, b"GET /health HTTP/1.1\r\nHo")
        assert read_all(peer).startswith(b"HTTP/1.1 408 ")
        peer.close()
        peer = raw(front, b"")
        assert read_all(peer) == b""
        peer.close()
        peer = raw(front, b"\r\n\r\n")  # what a parser skips is no head
        assert read_all(peer).startswith(b"HTTP/1.1 408 ")
        peer.close()


def test_more_connections_than_allowed() -> None:
    with served(ScriptedEngine(), limits=Limits(connections=2)) as front:
        kept = [raw(front, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") for _ in range(2)]
        for peer in kept:
            assert peer.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        more = raw(front, b"")
        assert read_all(more).startswith(b"HTTP/1.1 503 ")
        more.close()
        kept.pop().close()
        kept.pop().close()


def test_a_slow_reader_is_left() -> None:
    engine = ScriptedEngine("x", model=ScriptedModel(context=10**7), endless=True, step_tokens=100)
    body = b'{"prompt": "x", "stream": true, "max_tokens": 1000000, "logprobs": 20}'
    with served(engine, limits=Limits(unread_tokens=500)) as front:
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(DEADLINE_S)
        peer.connect(("127.0.0.1", front.port))
        peer.sendall(post(body))
        engine.wait(lambda: engine.cancelled == [0], "the stream is cancelled")
        peer.close()
        text = ask(front, "GET", "/metrics")[2]
        assert 'scant_serve_cancelled_total{reason="slow reader"} 1' in text


def test_a_slow_reader_delays_nobody() -> None:
    engine = ScriptedEngine("x", model=ScriptedModel(context=10**7), endless=True, step_tokens=10)
    body = b'{"prompt": "x", "stream": true, "max_tokens": 1000000}'
    with served(engine, limits=Limits(unread_tokens=10**6)) as front:
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(DEADLINE_S)
        peer.connect(("127.0.0.1", front.port))
        peer.sendall(post(body))
        end = time.monotonic() + DEADLINE_S
        assert front.app is not None
        while not any(not one.takes for one in list(front.app.connections)):  # its buffers are full
            assert time.monotonic() < end
        for _ in range(3):
            whole = {"prompt": "x", "max_tokens": 100}
            assert ask(front, "POST", "/v1/completions", whole)[0] == 200
        assert engine.cancelled == []
        # What it did not take comes as one event once it reads: nothing is lost.
        data = b""
        while len(data) < 3_000_000:
            part = peer.recv(1 << 20)
            assert part
            data += part
        peer.close()
        engine.wait(lambda: engine.cancelled == [0], "the stream is cancelled")


def test_a_client_that_closes_its_side_has_left() -> None:
    engine = ScriptedEngine("x", endless=True)
    engine.gate = 1
    with served(engine) as front:
        peer = raw(front, post(b'{"prompt": "x", "stream": true}'))
        assert peer.recv(1 << 16)
        peer.shutdown(socket.SHUT_WR)
        engine.wait(lambda: engine.cancelled == [0], "the stream is cancelled")
        peer.close()


def test_machines_that_are_gone_are_noticed(front: Front) -> None:
    peer = raw(front, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert peer.recv(1 << 16)
    assert front.app is not None
    (connection,) = (
        one for one in list(front.app.connections) if one.client == peer.getsockname()
    )  # fmt: skip
    own = connection.transport.get_extra_info("socket")
    assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
    peer.close()


def test_an_answer_that_nobody_reads_is_dropped() -> None:
    engine = ScriptedEngine("x", model=ScriptedModel(context=10**7), endless=True, step_tokens=9999)
    body = b'{"prompt": "x", "max_tokens": 20000, "logprobs": 20}'  # some 10 MB
    with served(engine, limits=Limits(stall_s=0.05, sweep_s=0.02)) as front:
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(DEADLINE_S)
        peer.connect(("127.0.0.1", front.port))
        peer.sendall(post(body))
        end = time.monotonic() + DEADLINE_S
        while 'endpoint="completions",status="200"' not in ask(front, "GET", "/metrics")[2]:
            assert time.monotonic() < end
        while "\nscant_serve_connections 1\n" not in ask(front, "GET", "/metrics")[2]:
            assert time.monotonic() < end
        peer.close()


# ---- who may ask -------------------------------------------------------------------------------


def test_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# for people\nfirst-key-1\n\n  second-key-2  \n")
    variables = {"SCANT_API_KEY": "third-key-3", "OTHER": "x"}
    keys = Keys.read(file, variables)
    assert variables == {"OTHER": "x"}
    with served(ScriptedEngine("hi"), keys=keys) as front:
        for key in ("first-key-1", "second-key-2", "third-key-3"):
            given = {"Authorization": f"Bearer {key}"}
            assert ask(front, "GET", "/v1/models", None, given)[0] == 200
            body = {"prompt": "x"}
            assert ask(front, "POST", "/v1/completions", body, given)[0] == 200
        for given in (
            {},
            {"Authorization": "Bearer first-key-"},
            {"Authorization": "Bearer "},
            {"Authorization": "Basic first-key-1"},
            {"Authorization": "Bearer # for people"},
        ):
            for method, path in (
                ("GET", "/v1/models"),
                ("POST", "/v1/completions"),
                ("GET", "/metrics"),
                ("GET", "/nothing"),
            ):
                status, headers, found = ask(front, method, path, None, given)
                assert (status, found["error"]["code"]) == (401, "invalid_api_key")
                assert headers["www-authenticate"] == "Bearer"
        assert ask(front, "GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no key in it"), ("short\n", "8 to 1000"), ("käse-käse-käse\n", "printable ASCII")],
)
def test_keys_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text, "utf-8")
    with pytest.raises(scant.InvalidArgument, match=words):
        Keys.read(file, {})
    with pytest.raises(scant.InvalidArgument, match="No such file"):
        Keys.read(tmp_path / "none", {})


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example", 403), ("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200)],
)
def test_a_page_in_a_browser_cannot_rename_this_machine(
    front: Front, host: str, status: int
) -> None:
    assert ask(front, "GET", "/v1/models", None, {"Host": host})[0] == status
