"""What the server's front costs for each streamed token, in CPU microseconds.

    ./dev bench front --quick
    ./dev bench front --streams 1 16 64 --pace 0 5

The front runs over an engine that has its tokens at once, so that nothing but the front is
measured: events of the engine, text, JSON, HTTP and the socket. `pace` is the time between steps
in milliseconds; with 0 a step is there when the front asks. CPU time is that of the event loop, the
only thread that works on tokens. The clients are another process, which checks each answer.

Beside it stands what a step of a model costs with as many sequences: SmolLM2-135M as a package
ships it, and random weights of Llama-3.2-1B's shape. The front may cost 2 % of both together.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness

ENDPOINTS = ("chat", "completions")
MODELS = ("135m", "1b")
SHARE_MAX = 0.02
CONTEXT = 128  # tokens of each sequence whose step is measured
EDGE = 20  # steps at both ends that do not count
DEFAULTS: harness.Defaults = {
    "streams": ([1, 16, 64], [1, 16]),
    "pace": ([0, 5], [0]),
    "tokens": (60_000, 4_000),
    "repeats": (4, 1),
    "threads": (2, 2),
}

# What the model says, over and over: words, a number, a line, a character of two tokens.
WORDS = ["The", " quick", " brown", " fox", " said", ' "', "no", '"', ",", " and", "\n", " 1", "7",
         " times", " it", " jumped", " over", " the", " lazy", " dog", "."]  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options = harness.Options(parser, DEFAULTS)
    options.add("--streams", "numbers of streams", type=int, nargs="+", metavar="N")
    options.add("--pace", "milliseconds between steps", type=int, nargs="+", metavar="MS")
    options.add("--tokens", "of a run, about", type=int, metavar="N")
    options.add("--repeats", "runs of each case", type=int, metavar="N")
    options.add("--threads", "of a model's step", type=int, metavar="N")
    add = parser.add_argument
    text = "chat or completions (default: %(default)s)"
    add("--endpoint", choices=ENDPOINTS, default="chat", help=text)
    text = "models whose step is measured too: 135m, 1b; none without it"
    add("--steps-of", choices=MODELS, nargs="*", default=[], metavar="MODEL", help=text)
    text = "where models are kept (default: %(default)s)"
    add("--models", default="out/models", metavar="FOLDER", help=text)
    return options.parse("rows and table", ("streams", "tokens", "repeats", "threads"))


# ---- the server's side: a process -------------------------------------------------------------


def tokenizer_json() -> bytes:
    """Byte-level: the 256 bytes, and the words."""
    from scant.serve.text import _byte_of_sign  # GPT-2's letters for bytes

    sign_of = {byte: sign for sign, byte in _byte_of_sign().items()}
    names = [sign_of[byte] for byte in range(256)]
    names += ["".join(sign_of[byte] for byte in word.encode()) for word in WORDS if len(word) > 1]
    kind = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    table: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": kind, "post_processor": None, "decoder": kind,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
            "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "byte_fallback": False, "merges": [],
            "vocab": {name: number for number, name in enumerate(names)},
        },
    }  # fmt: skip
    return json.dumps(table).encode()


def script() -> list[int]:
    """Tokens of what is said."""
    longer = [word for word in WORDS if len(word) > 1]
    tokens = [256 + longer.index(word) if len(word) > 1 else ord(word) for word in WORDS]
    return [*tokens, *"é ".encode()]


class StubModel:
    """What the front asks of a model."""

    name, context, vocabulary, bos, eos, adds_bos = "stub", 1 << 30, 512, None, (511,), False
    chat_template = "{{ messages[0].content }}"

    def __init__(self) -> None:
        from scant.serve.text import Tokenizer

        self.tokenizer = Tokenizer(tokenizer_json())


class StubEngine:
    """Gives each request its next token, when all have come; counts CPU time of the loop."""

    def __init__(self, streams: int, steps: int, pace_s: float) -> None:
        self.model = StubModel()
        self._streams = streams
        self._steps = steps
        self._pace_s = pace_s
        self._script = script()
        self._requests: list[int] = []
        self._step = 0
        self._file = os.eventfd(0, os.EFD_NONBLOCK)
        self.cpu_s: list[float] = []  # at the first step that counts, and at the last

    def submit(self, prompt: Sequence[int], **_: Any) -> int:
        number = len(self._requests)
        self._requests.append(number)
        if len(self._requests) == self._streams:
            threading.Thread(target=self._run, daemon=True).start()
        return number

    def _run(self) -> None:
        """What an engine's thread does as long as steps take time: it wakes the front."""
        next_s = time.monotonic()
        while self._pace_s and self._step < self._steps:
            next_s = max(next_s + self._pace_s, time.monotonic())
            time.sleep(max(next_s - time.monotonic(), 0))
            os.eventfd_write(self._file, 1)
        os.eventfd_write(self._file, 1)

    def cancel(self, request: int) -> None:
        """They end by themselves."""

    def poll(self, timeout_s: float) -> list[Any]:
        from scant.serve.engine import tokens_of

        os.eventfd_read(self._file)
        if self._step >= self._steps:
            return []
        step = self._step
        self._step += 1
        if step in (EDGE, self._steps - EDGE):
            self.cpu_s.append(time.thread_time())
        last = "length" if self._step == self._steps else None
        if not self._pace_s and not last:
            os.eventfd_write(self._file, 1)
        token = self._script[step % len(self._script)]
        return tokens_of([(one, token, -0.5, (), last, None, 9, 0) for one in self._requests])

    def fileno(self) -> int:
        return self._file

    def stats(self) -> dict[str, float | int]:
        return {"steps": self._step}

    def drain(self) -> None:
        """Takes no more."""

    def close(self) -> None:
        """Nothing to free."""


def work(plan: dict[str, Any]) -> None:
    """Serves until stdin ends; prints the port, then CPU seconds."""
    from scant.serve.engine import Engine
    from scant.serve.server.app import Settings
    from scant.serve.server.front import Front

    engine = StubEngine(plan["streams"], plan["steps"], plan["pace"] / 1e3)
    front = Front(cast(Engine, engine), Settings(port=0, timeout_s=None), lambda line: None)
    thread = threading.Thread(target=front.run)
    thread.start()
    front.ready.wait()
    print(front.port, flush=True)
    sys.stdin.read()
    front.stop()
    thread.join()
    began, ended = engine.cpu_s
    print(json.dumps(ended - began))


# ---- the clients ------------------------------------------------------------------------------


def ask(port: int, plan: dict[str, Any]) -> None:
    """All streams at a time, until their last bytes; raises where an answer is not whole."""
    asked: dict[str, Any] = {
        "model": "stub", "stream": True, "max_tokens": plan["steps"],
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    if plan["endpoint"] == "chat":
        asked["messages"] = [{"role": "user", "content": "hello"}]
        path = "/v1/chat/completions"
    else:
        asked["prompt"] = "hello"
        path = "/v1/completions"
    body = json.dumps(asked).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    data = f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    answers: dict[socket.socket, bytearray] = {}
    with selectors.DefaultSelector() as selector:
        for _ in range(plan["streams"]):
            peer = socket.create_connection(("127.0.0.1", port))
            peer.sendall(data)
            answers[peer] = bytearray()
            selector.register(peer, selectors.EVENT_READ)
        left = len(answers)
        while left:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                peer = key.fileobj
                part = peer.recv(1 << 20)
                answers[peer] += part
                if not part:
                    selector.unregister(peer)
                    left -= 1
    for peer, answer in answers.items():
        peer.close()
        check(bytes(answer), plan)


def check(answer: bytes, plan: dict[str, Any]) -> None:
    """Every token's text is there, in order, and the count of tokens at the end."""
    said = []
    usage = None
    for line in _unchunked(answer).split(b"\n"):
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            said.append(choice["delta"].get("content", "") if "delta" in choice else choice["text"])
    text = "".join(WORDS) + "é "
    length = len("".join(said))
    wanted = (text * (length // len(text) + 1))[:length]
    if usage is None or usage["completion_tokens"] != plan["steps"] or "".join(said) != wanted:
        raise SystemExit(f"front: an answer is not whole: {answer[:2000]!r}")


def _unchunked(answer: bytes) -> bytes:
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    parts = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        count = int(size, 16)
        parts.append(rest[:count])
        rest = rest[count + 2 :]
    return b"".join(parts)


def token_us(plan: dict[str, Any]) -> float:
    """CPU microseconds of a token."""
    command = [sys.executable, __file__, "--worker", json.dumps(plan)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stdin is not None
        ask(int(server.stdout.readline()), plan)
        server.stdin.close()
        used = float(server.stdout.readline())
    if server.returncode != 0:
        raise SystemExit(f"front: the server ended with {server.returncode}")
    return float(used * 1e6 / (plan["streams"] * (plan["steps"] - 2 * EDGE)))


# ---- what a model's step costs ----------------------------------------------------------------


def step_us(name: str, sequences: int, threads: int, folder: pathlib.Path) -> float:
    """CPU microseconds of a token: a step's, of all threads, by its sequences."""
    from scant.serve import Decoder, Model, Piece

    if name == "135m":
        import perplexity

        path = perplexity.fetch(folder)
    else:
        import weights

        path = folder / "llama-1b-Q4_0.gguf"
        weights.write(path, "Q4_0")
    steps = 8
    each = (CONTEXT + steps) // 16 + 1
    decoder = Decoder(Model(path), pages=sequences * each, threads=threads)
    pages = [range(i * each, (i + 1) * each) for i in range(sequences)]
    for own in pages:
        decoder.run([Piece(list(range(100, 100 + CONTEXT)), 0, own)])

    def step(position: int) -> None:
        decoder.run([Piece([position], position, own) for own in pages])

    step(CONTEXT)
    began = time.process_time()
    for position in range(CONTEXT + 1, CONTEXT + steps):
        step(position)
    return (time.process_time() - began) * 1e6 / (sequences * (steps - 1))


# ---- rows -------------------------------------------------------------------------------------


def measure(streams: int, pace: int, arguments: argparse.Namespace) -> harness.Row:
    steps = max(arguments.tokens // streams, 4 * EDGE)
    if pace:  # two seconds are enough
        steps = min(steps, 2 * EDGE + 2000 // pace)
    plan = {"streams": streams, "pace": pace, "steps": steps, "endpoint": arguments.endpoint}
    samples = [token_us(plan) for _ in range(arguments.repeats)]
    row: harness.Row = {
        "case": "front", "streams": streams, "pace_ms": pace, "endpoint": arguments.endpoint,
        "steps": steps, "quick": arguments.quick, "samples": samples,
        "token_us": harness.quantiles(samples),
    }  # fmt: skip
    return row


def table(rows: Sequence[harness.Row]) -> str:
    head = ["streams", "between steps", "µs CPU for each token (quartiles)"]
    head += [f"of a {name} step" for name in MODELS]
    lines = []
    for row in rows:
        low, middle, top = row["token_us"]
        pace = f"{row['pace_ms']} ms" if row["pace_ms"] else "–"
        shares = [f"{row['shares'][name]:.1%}" if name in row["shares"] else "–" for name in MODELS]
        cells = [str(row["streams"]), pace, f"{middle:.1f} ({low:.1f}–{top:.1f})", *shares]
        lines.append(cells)
    return harness.markdown(head, lines)


def gate(rows: Sequence[harness.Row]) -> list[str]:
    """Shares that are too large."""
    return [
        f"{row['streams']} streams: {share:.1%} of a {name} step, wanted {SHARE_MAX:.0%}"
        for row in rows
        for name, share in row["shares"].items()
        if share > SHARE_MAX
    ]


def main() -> int:
    """Returns the exit status."""
    arguments = parse()
    if arguments.worker:
        work(json.loads(arguments.worker))
        return 0
    folder = pathlib.Path(arguments.models)
    folder.mkdir(parents=True, exist_ok=True)

    def run(recorder: harness.Recorder) -> None:
        for streams in arguments.streams:
            steps = {
                name: step_us(name, streams, arguments.threads, folder)
                for name in arguments.steps_of
            }
            for pace in arguments.pace:
                print(f"front: {streams} streams, {pace} ms", file=sys.stderr)
                row = measure(streams, pace, arguments)
                own = row["token_us"][1]
                row |= {"step_token_us": steps}
                row |= {"shares": {name: own / (own + us) for name, us in steps.items()}}
                recorder.add(row | harness.machine())

    return harness.record("front", arguments, run, lambda rows, _: table(rows), gate)


if __name__ == "__main__":
    sys.exit(main())
