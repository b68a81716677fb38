"""`scant replay` as people run it: a trace, a server of another process, table, report, status."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scant import _scant  # noqa: F401 - without it no command runs

HERE = Path(__file__).parent
DEADLINE_S = 60.0
TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,20,4
2023-11-16 18:15:46.7805900,30,1
2023-11-16 18:15:46.8805900,40,9
2023-11-16 18:15:46.8905900,10,0
"""


@contextlib.contextmanager
def stub(*certificate: Path) -> Iterator[int]:
    command = [sys.executable, str(HERE / "replay_stub.py"), *map(str, certificate)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stdin is not None
        yield int(server.stdout.readline())
        server.stdin.close()


def replay(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scant.cli", "replay", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


def test_a_run_from_the_trace_to_the_report(trace: Path, tmp_path: Path) -> None:
    page, rows = tmp_path / "page.html", tmp_path / "rows.jsonl"
    with stub() as port:
        url = f"http://127.0.0.1:{port}/v1"
        done = replay(trace, "--url", url, "--report", page, "--out", rows, "--speed", "10")
    assert "model stub" in done.stderr
    # Whether sends were in time is the machine's matter; what is said of it is not.
    assert done.returncode == int("INVALID" in done.stdout), done.stdout
    for words in (
        "requests +3\n",
        "whole answers +3\n",
        "1 row tells of a failed request",
        r"\(TTFT\) +\S+ .?s",
        r"tokens out per CPU second +9\.33\n",  # 14 tokens of answers, 1.5 s
        f"report: {page}\n",
    ):
        assert re.search(words, done.stdout), done.stdout
    told = [json.loads(line) for line in rows.read_text().splitlines()]
    assert sorted(one["answer_tokens"] for one in told) == [1, 4, 9]
    assert all(one["error"] is None and one["prompt_tokens"] == 7 for one in told)
    assert [round(one["at_s"], 3) for one in sorted(told, key=lambda one: one["number"])] == [
        0.0, 0.01, 0.02,
    ]  # fmt: skip
    html = page.read_text()
    assert html.count("<svg") == 6 and "Replay of trace.csv" in html and '"whole": 3' in html


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl command to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    own, key = folder / "own.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += [
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=stub",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    subprocess.run([*command, "-keyout", key, "-out", own], check=True, capture_output=True)
    return own, key


def test_https(trace: Path, certificate: tuple[Path, Path]) -> None:
    with stub(*certificate) as port:
        url = f"https://127.0.0.1:{port}"
        refused = replay(trace, "--url", url)
        assert refused.returncode == 2
        assert "--ca FILE" in refused.stderr and refused.stderr.count("\n") == 1
        for words in (["--ca", certificate[0]], ["--insecure"]):
            done = replay(trace, "--url", url, *words, "--speed", "10")
            assert done.returncode == int("INVALID" in done.stdout), done.stderr
            assert re.search("whole answers +3\n", done.stdout), done.stdout
        none = replay(trace, "--url", url, "--ca", trace)
        assert (none.returncode, none.stderr.count("\n")) == (2, 1)
        assert "no certificates" in none.stderr


def test_ctrl_c_reports_what_there_is(trace: Path) -> None:
    with stub() as port:
        command = [sys.executable, "-m", "scant.cli", "replay", str(trace), "--speed", "0.001"]
        with subprocess.Popen(
            [*command, "--url", f"http://127.0.0.1:{port}", "--out", "/dev/stdout"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as run:  # fmt: skip
            assert run.stdout is not None
            line = run.stdout.readline()  # of the first request: the next one is due in 100 s
            assert json.loads(line)["error"] is None
            run.send_signal(signal.SIGINT)
            said, errors = run.communicate(timeout=DEADLINE_S)
    assert run.returncode == 130, errors
    assert "Cut short" in said and "Traceback" not in errors


def test_no_server(trace: Path) -> None:
    done = replay(trace, "--url", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "is the server running?" in done.stderr and done.stderr.count("\n") == 1


def test_a_run_without_a_whole_answer_is_none(trace: Path) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(404)

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        done = replay(trace, "--url", url, "--ask", "model", "--speed", "10")
        server.shutdown()
    assert done.returncode == 1, done.stderr
    assert "http 404" in done.stdout
