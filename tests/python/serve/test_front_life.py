"""A server from its first line to its exit status: signals, draining, thousands of connections."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from front_support import DEADLINE_S, ask, post, raw, read_all, served
from scripted_engine import ScriptedEngine

from scant.runlog import reader
from scant.serve import serve_cli
from scant.serve.server import front as front_module
from scant.serve.server.limits import Limits

HERE = Path(__file__).parent
STREAM = post(b'{"prompt": "x", "stream": true, "max_tokens": 100}')


class Program:
    """`scant serve` as a process; its lines, its port, its engine's steps."""

    def __init__(self, *options: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "serve_scripted.py"), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.lines: list[str] = []
        found = re.search(r"at http://127\.0\.0\.1:(\d+)/v1$", self.line("scripted"))
        assert found is not None, self.lines
        self.port = int(found[1])
        self.line("try: curl")

    def line(self, words: str) -> str:
        """The next line of stdout with these words."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            self.lines.append(line)
            if words in line:
                return line.strip()
        raise AssertionError(f"no line with {words!r}: {self.lines} {self.errors()}")

    def allow(self, steps: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"allow {steps}\n")
        self.process.stdin.flush()

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def connect(self, data: bytes) -> socket.socket:
        peer = socket.create_connection(("127.0.0.1", self.port), DEADLINE_S)
        peer.sendall(data)
        return peer

    def get(self, method: str, path: str, body: str | None = None) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.getheader("Retry-After")

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    """Those that a test has started; none is left running."""
    started: list[Program] = []
    yield started
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def until(peer: socket.socket, words: bytes) -> bytes:
    data = b""
    while words not in data:
        part = peer.recv(1 << 16)
        assert part, data
        data += part
    return data


def test_sigterm_lets_answers_end_and_takes_no_more(programs: list[Program]) -> None:
    program = Program()
    programs.append(program)
    peer = program.connect(STREAM)
    program.allow(1)
    until(peer, b'"text": "H"')
    program.process.send_signal(signal.SIGTERM)
    assert "waiting up to 30 s for the answers on their way: 1" in program.line("waiting")
    assert program.get("GET", "/health") == (503, "5")
    assert program.get("POST", "/v1/completions", '{"prompt": "x"}') == (503, "5")
    assert program.get("GET", "/metrics")[0] == 200
    program.allow(100)
    assert read_all(peer).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    peer.close()
    assert program.wait() == 0
    program.line("closed: True")
    assert program.errors() == ""


def test_the_second_signal_ends_at_once(programs: list[Program]) -> None:
    program = Program()
    programs.append(program)
    peer = program.connect(STREAM)
    program.allow(1)
    until(peer, b'"text": "H"')
    program.process.send_signal(signal.SIGTERM)
    program.line("waiting")
    program.process.send_signal(signal.SIGINT)
    assert program.wait() == -signal.SIGINT
    peer.close()
    assert program.errors() == ""


def test_who_takes_too_long_is_told_at_the_end(programs: list[Program]) -> None:
    program = Program("--drain-timeout", "0.05")
    programs.append(program)
    stream = program.connect(STREAM)
    program.allow(1)
    until(stream, b'"text": "H"')
    whole = program.connect(post(b'{"prompt": "x"}'))
    assert program.get("GET", "/health")[0] == 200  # the connection before was accepted
    program.process.send_signal(signal.SIGTERM)
    assert b'data: {"error": {"message": "the server is shutting down' in read_all(stream)
    assert b"draining" in read_all(whole) or b"HTTP/1.1 503" in read_all(whole)
    stream.close()
    whole.close()
    assert program.wait() == 0
    assert program.errors() == ""


def test_ctrl_c_is_quiet_and_idle_connections_do_not_hold_it(programs: list[Program]) -> None:
    program = Program("--access-log")
    programs.append(program)
    idle = program.connect(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(idle, b'{"status": "ok"}')
    program.process.send_signal(signal.SIGINT)
    assert program.wait() == 0
    idle.close()
    said = program.errors()
    assert re.fullmatch(r"\S+Z 127\.0\.0\.1 GET '/health' 200 0\.\d+ s\n", said), said


def test_a_key_is_asked_for_and_never_shown(programs: list[Program], tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key-in-a-file\n")
    file.chmod(0o644)
    program = Program("--api-key-file", str(file), env={"SCANT_API_KEY": "a-key-of-the-variable"})
    programs.append(program)
    assert program.get("GET", "/v1/models")[0] == 401
    status = Path(f"/proc/{program.process.pid}/cmdline").read_bytes()
    assert b"a-key-in-a-file" not in status
    head = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    peer = program.connect(head + b"Authorization: Bearer a-key-of-the-variable\r\n\r\n")
    assert read_all(peer).startswith(b"HTTP/1.1 200 ")
    peer.close()
    program.process.send_signal(signal.SIGTERM)
    assert program.wait() == 0
    assert "others can read" in program.errors()
    assert not any("a-key-" in line for line in program.lines)


def test_a_port_in_use_and_an_open_address(capsys: pytest.CaptureFixture[str]) -> None:
    with served(ScriptedEngine()) as front:
        engine = ScriptedEngine()
        status = serve_cli.main(["x.scp", "--port", str(front.port)], lambda _: engine)
        assert status == 2
        assert engine.closed
        said = capsys.readouterr().err
        assert said.startswith("scant serve: cannot listen on 127.0.0.1 port")
        assert said.count("\n") == 1
    said_by: list[str] = []
    with served(ScriptedEngine(), host="0.0.0.0") as front:
        front_module.Front(ScriptedEngine(), front.settings, said_by.append)._greet()
    assert any("whoever reaches this address" in line for line in said_by)


def needs_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"this process may open {hard} files; {count} are needed")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def test_a_thousand_streams_are_held_open() -> None:
    needs_files(2500)
    count = 1000
    engine = ScriptedEngine("Hello", queue=count)
    engine.gate = 0
    with served(engine) as front:
        peers = [raw(front, STREAM) for _ in range(count)]
        engine.wait(lambda: len(engine.requests) == count, "all requests")
        assert ask(front, "POST", "/v1/completions", {"prompt": "x"})[0] == 429
        assert ask(front, "GET", "/health")[0] == 200
        engine.allow(1000)
        for peer in peers:
            assert until(peer, b"[DONE]").startswith(b"HTTP/1.1 200 ")
            peer.close()
        assert 'endpoint="completions",status="200"} 1000' in ask(front, "GET", "/metrics")[2]


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_memory_of_a_connection(programs: list[Program]) -> None:
    needs_files(2500)
    count, most = 1000, 64 << 10
    program = Program("--max-waiting", "5000")
    programs.append(program)
    pid = program.process.pid
    check = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    peers = [program.connect(check) for _ in range(20)]  # what is made once is there
    for peer in peers:
        until(peer, b'{"status": "ok"}')
    before = resident_bytes(pid)
    idle = [program.connect(check) for _ in range(count)]
    for peer in idle:
        until(peer, b'{"status": "ok"}')
    assert resident_bytes(pid) - before <= count * most
    between = resident_bytes(pid)
    streams = [program.connect(STREAM) for _ in range(count)]
    for _ in range(count):
        program.allow(1)
    for peer in streams:
        until(peer, b'"text": "')
    assert resident_bytes(pid) - between <= count * most
    for peer in [*peers, *idle, *streams]:
        peer.close()


def test_the_limit_of_files_is_raised_or_told(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(256, 4096)]
    said: list[str] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    assert front_module.raise_file_limit(1000, said.append) == 1000
    assert limits[-1] == (1000, 4096) and said == []
    assert front_module.raise_file_limit(10_000, said.append) == 4096
    assert "may open 4,096 files" in said[0] and "ulimit -n 10000" in said[0]


def test_the_run_log_tells_what_was_served(tmp_path: Path) -> None:
    log = tmp_path / "serve.jsonl"
    with served(ScriptedEngine("Hello"), log=str(log), limits=Limits()) as front:
        for _ in range(3):
            assert ask(front, "POST", "/v1/completions", {"prompt": "x"})[0] == 200
        assert ask(front, "POST", "/v1/completions", {"prompt": "x", "n": 99})[0] == 400
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["run", "served"]
    assert lines[0]["serves"] == "scripted"
    served_line = lines[1]
    assert served_line["requests"] == 4
    assert served_line["tokens"] == 3 * 4 + 3  # He, ll: pairs are one token
    assert served_line["prompt_tokens"] == 6
    assert served_line["refused"] == served_line["failed"] == served_line["cancelled"] == 0
    assert served_line["first_s"] > 0
    assert reader.read(log)
