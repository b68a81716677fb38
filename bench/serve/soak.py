"""A server under mixed load for minutes: does its memory stay, do its descriptors come back?

    ./dev bench soak --minutes 30

`scant serve` over SmolLM2-135M gets streams, whole answers, clients that leave in the middle,
readers that stop reading, requests that are wrong, heads and bodies that never end. Each must get
what it should. The resident memory, descriptors and requests are printed all the time; at the end
the server must be as idle as it was, and SIGTERM must end it well.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import pathlib
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness
import perplexity
from goodput import free_port

WAIT_S = 120.0
# Resident memory, at most: share of file and pages, and beside them.
SHARE_MAX, OWN_BYTES, CONNECTION_BYTES = 1.05, 150 << 20, 64 << 10
FILES_MORE = 4  # descriptors that may be open more than at the start

DEFAULTS: harness.Defaults = {
    "minutes": (30.0, 0.2),
    "every": (10.0, 3.0),
    "clients": (24, 8),
    "threads": (2, 2),
}
TEXT = "Once upon a time there was a small machine that answered letters. "


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options = harness.Options(parser, DEFAULTS)
    options.add("--minutes", "of load", type=float, metavar="M")
    options.add("--every", "seconds between two lines", type=float, metavar="S")
    options.add("--clients", "at a time", type=int, metavar="N")
    options.add("--threads", "of the server", type=int, metavar="N")
    add = parser.add_argument
    add("--seed", type=int, default=1, metavar="N", help="(default: %(default)s)")
    text = "MiB for keys and values (default: %(default)s)"
    add("--kv-mib", type=int, default=256, metavar="N", help=text)
    text = "where the model is kept (default: %(default)s)"
    add("--models", default="out/models", metavar="FOLDER", help=text)
    return options.parse("rows and table", ("clients", "threads"))


# ---- what clients do --------------------------------------------------------------------------


class Client:
    """One at a time, each on a connection of its own; says what was not as it should be."""

    def __init__(self, port: int, seed: str) -> None:
        self._port = port
        self._draw = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self, end: float) -> None:
        kinds: list[Callable[[], str | None]] = [
            self.stream, self.stream, self.stream, self.whole, self.whole, self.leaves,
            self.leaves, self.leaves_unanswered, self.stops_reading, self.wrong_request,
            self.wrong_request, self.half_a_head, self.half_a_body, self.keeps_alive, self.noise,
        ]  # fmt: skip
        while time.monotonic() < end:
            kind = self._draw.choice(kinds)
            try:
                fault = kind()
            except (OSError, http.client.HTTPException, ValueError) as error:
                fault = f"{type(error).__name__}: {error}"
            self.done[kind.__name__] += 1
            if fault is not None:
                self.wrong.append(f"{kind.__name__}: {fault}")

    def _body(self, **more: Any) -> dict[str, Any]:
        draw = self._draw
        body: dict[str, Any] = {"max_tokens": draw.randint(1, 64), "ignore_eos": True}
        body |= draw.choice([{}, {"temperature": 0.8, "seed": draw.randint(0, 9)}, {"top_k": 5}])
        body |= draw.choice([{}, {}, {"stop": ["the", "\n\n"]}, {"n": 2}])
        return body | more

    def _asked(self, **more: Any) -> tuple[str, bytes]:
        draw = self._draw
        text = TEXT * draw.choice([0, 1, 1, 4, 30]) + f"Letter {draw.randint(0, 10**6)}:"
        if draw.random() < 0.5:
            return "/v1/completions", json.dumps(self._body(prompt=text, **more)).encode()
        messages = [{"role": "user", "content": text}]
        body = self._body(messages=messages, **more)
        body |= draw.choice([{}, {}, {"logprobs": True, "top_logprobs": 3}])
        return "/v1/chat/completions", json.dumps(body).encode()

    @contextlib.contextmanager
    def _answer(self, path: str, body: bytes) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT_S)
        with contextlib.closing(connection):
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            yield connection.getresponse()

    def _raw(self, data: bytes) -> socket.socket:
        peer = socket.create_connection(("127.0.0.1", self._port), WAIT_S)
        peer.sendall(data)
        return peer

    def stream(self) -> str | None:
        path, body = self._asked(stream=True, stream_options={"include_usage": True})
        with self._answer(path, body) as answer:
            text = answer.read()
        if answer.status == 429:
            return None
        if answer.status != 200 or not text.endswith(b"data: [DONE]\n\n"):
            return f"{answer.status} {text[-200:]!r}"
        return None if b'"completion_tokens": ' in text else "no usage"

    def whole(self) -> str | None:
        path, body = self._asked()
        with self._answer(path, body) as answer:
            found = json.loads(answer.read())
        if answer.status == 429:
            return None
        if answer.status != 200:
            return f"{answer.status} {found}"
        return None if found["usage"]["completion_tokens"] > 0 else "no tokens"

    def leaves(self) -> str | None:
        path, body = self._asked(stream=True, max_tokens=2000)
        with self._answer(path, body) as answer:
            answer.read(self._draw.randint(1, 2000))
        return None if answer.status in (200, 429) else str(answer.status)

    def leaves_unanswered(self) -> str | None:
        path, body = self._asked(max_tokens=2000)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        peer = self._raw(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(self._draw.random() * 0.2)
        peer.close()
        return None

    def stops_reading(self) -> str | None:
        """Never reads: its bytes stay in the buffers of the kernel, or its request is ended."""
        path, body = self._asked(stream=True, max_tokens=300)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(("127.0.0.1", self._port))
        peer.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(self._draw.random() * 3)
        peer.close()
        return None

    def wrong_request(self) -> str | None:
        status, path, body = self._draw.choice([
            (400, "/v1/completions", b"{"),
            (400, "/v1/completions", b'{"prompt": "\xff"}'),
            (400, "/v1/completions", b"[" * 100_000),
            (400, "/v1/completions", b'{"prompt": "x", "nonsense": 1}'),
            (400, "/v1/chat/completions", b'{"messages": []}'),
            (400, "/v1/chat/completions", b'{"messages": [{"role": "user"}], "tools": [{}]}'),
            (400, "/v1/completions", json.dumps({"prompt": TEXT * 10_000}).encode()),
            (404, "/v1/nothing", b"{}"),
            (413, "/v1/completions", b" " * (9 << 20)),
        ])  # fmt: skip
        with self._answer(path, body) as answer:
            found = json.loads(answer.read())
        well = answer.status in (status, 429) and found["error"]["message"]
        return None if well else f"{answer.status} for {body[:60]!r}"

    def half_a_head(self) -> str | None:
        peer = self._raw(b"GET /health HTTP/1.1\r\nHo")
        time.sleep(self._draw.random() * 0.5)
        peer.close()
        return None

    def half_a_body(self) -> str | None:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
        peer = self._raw(head + b"\r\nContent-Length: 1000\r\n\r\n{")
        time.sleep(self._draw.random() * 0.5)
        peer.close()
        return None

    def keeps_alive(self) -> str | None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT_S)
        with contextlib.closing(connection):
            for path in ("/health", "/v1/models", "/metrics", "/health"):
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    return f"{path} {answer.status}"
        return None

    def noise(self) -> str | None:
        peer = self._raw(self._draw.randbytes(self._draw.randint(1, 3000)) + b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            peer.settimeout(15)  # a head's time is 10 s
            peer.recv(1 << 16)
        peer.close()
        return None


# ---- the server -------------------------------------------------------------------------------


def observed(pid: int, port: int) -> dict[str, float]:
    """Memory, descriptors, threads, and what the server says of itself."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    files = sum(1 for _ in pathlib.Path(f"/proc/{pid}/fd").iterdir())
    threads = sum(1 for _ in pathlib.Path(f"/proc/{pid}/task").iterdir())
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    found = dict(re.findall(r"^scant_serve_(\w+)(?:\{kind=\"generated\"\})? (\S+)$", text, re.M))
    names = (
        "connections",
        "answers",
        "preparing",
        "body_bytes",
        "running",
        "waiting",
        "tokens_total",
    )
    return {
        "resident_bytes": pages * resource.getpagesize(), "files": files, "threads": threads,
    } | {name: float(found.get(name, "nan")) for name in names}  # fmt: skip


def soak(arguments: argparse.Namespace) -> harness.Row:
    folder = pathlib.Path(arguments.models)
    folder.mkdir(parents=True, exist_ok=True)
    model = perplexity.fetch(folder)
    port = free_port()
    kv_bytes = arguments.kv_mib << 20
    command = [
        sys.executable, "-m", "scant.cli", "serve", str(model), "--port", str(port),
        "--threads", str(arguments.threads), "--kv-bytes", str(kv_bytes),
    ]  # fmt: skip
    log = pathlib.Path(arguments.out) / "soak-server.log"
    with log.open("w") as out, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=out, text=True
    ) as server:  # fmt: skip
        assert server.stdout is not None
        if not server.stdout.readline():
            raise SystemExit(f"soak: the server does not start; see {log}")
        before = observed(server.pid, port)
        clients = [Client(port, f"{arguments.seed}:{n}") for n in range(arguments.clients)]
        end = time.monotonic() + 60 * arguments.minutes
        threads = [threading.Thread(target=one.run, args=(end,)) for one in clients]
        for thread in threads:
            thread.start()
        samples = watch(server.pid, port, clients, threads, arguments.every)
        after = settled(server.pid, port)
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)
    wrong = [fault for one in clients for fault in one.wrong]
    for fault in wrong[:20]:
        print(f"soak: {fault}", file=sys.stderr)
    limit = SHARE_MAX * (model.stat().st_size + kv_bytes) + OWN_BYTES
    return {
        "case": "soak", "minutes": arguments.minutes, "clients": arguments.clients,
        "seed": arguments.seed, "quick": arguments.quick, "before": before, "after": after,
        "samples": samples, "requests": sum(sum(one.done.values()) for one in clients),
        "kinds": dict(sum((one.done for one in clients), Counter())), "wrong": wrong,
        "status": status, "said": log.read_text()[-2000:],
        "resident_max_bytes": limit + CONNECTION_BYTES * (arguments.clients + 1),
    } | harness.machine()  # fmt: skip


def watch(
    pid: int,
    port: int,
    clients: Sequence[Client],
    threads: Sequence[threading.Thread],
    every: float,
) -> list[dict[str, float]]:
    """A line each while clients are at work."""
    samples = []
    began = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        end = time.monotonic() + every
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0))
        one = observed(pid, port) | {"at_s": time.monotonic() - began}
        one["requests"] = sum(sum(client.done.values()) for client in clients)
        one["wrong"] = sum(len(client.wrong) for client in clients)
        samples.append(one)
        print(
            f"soak: {one['at_s']:5.0f} s: {one['resident_bytes'] / 2**20:.1f} MiB, "
            f"{one['files']:.0f} files, {one['threads']:.0f} threads, "
            f"{one['connections']:.0f} connections, {one['running']:.0f} running, "
            f"{one['requests']:.0f} requests, {one['tokens_total']:.0f} tokens, "
            f"{one['wrong']:.0f} wrong",
            file=sys.stderr,
        )
    return samples


def settled(pid: int, port: int) -> dict[str, float]:
    """When nothing runs any more; what it is after a minute where it never comes to rest."""
    end = time.monotonic() + 60
    while True:
        now = observed(pid, port)
        idle = now["running"] == now["waiting"] == now["answers"] == now["body_bytes"] == 0
        if (idle and now["connections"] <= 1) or time.monotonic() > end:
            return now
        time.sleep(0.5)


# ---- rows -------------------------------------------------------------------------------------


def table(rows: Sequence[harness.Row]) -> str:
    head = ["minutes", "requests", "wrong", "resident at the start, highest, in the end",
            "descriptors at the start, most, in the end", "status"]  # fmt: skip
    lines = []
    for row in rows:
        sizes = [row["before"], max(row["samples"], key=lambda one: one["resident_bytes"])]
        files = [row["before"]["files"], max(one["files"] for one in row["samples"])]
        shown = [f"{one['resident_bytes'] / 2**20:.0f}" for one in (*sizes, row["after"])]
        lines.append([
            f"{row['minutes']:g}", str(row["requests"]), str(len(row["wrong"])),
            ", ".join(shown) + " MiB",
            ", ".join(str(int(one)) for one in (*files, row["after"]["files"])),
            str(row["status"]),
        ])  # fmt: skip
    return harness.markdown(head, lines)


def gate(rows: Sequence[harness.Row]) -> list[str]:
    """What did not stay as it should."""
    missed = [] if rows else ["no row"]
    for row in rows:
        highest = max(one["resident_bytes"] for one in row["samples"])
        after, before = row["after"], row["before"]
        idle = after["running"] == after["waiting"] == after["answers"] == 0
        for well, text in (
            (not row["wrong"], f"{len(row['wrong'])} requests went wrong"),
            (highest <= row["resident_max_bytes"], f"{highest:,} bytes resident"),
            (after["files"] <= before["files"] + FILES_MORE, f"{after['files']} descriptors"),
            (idle, f"never idle again: {after}"),
            (row["status"] == 0, f"the server ended with {row['status']}"),
            (not row["said"], f"the server said: {row['said']}"),
        ):
            if not well:
                missed.append(text)
    return missed


def main() -> int:
    """Returns the exit status."""
    arguments = parse()
    pathlib.Path(arguments.out).mkdir(parents=True, exist_ok=True)

    def run(recorder: harness.Recorder) -> None:
        recorder.add(soak(arguments))

    return harness.record("soak", arguments, run, lambda rows, _: table(rows), gate)


if __name__ == "__main__":
    sys.exit(main())
