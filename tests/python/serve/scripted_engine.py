"""An engine that says what a test tells it to: the other side of scant.serve.engine.

Its tokenizer has one token for each byte, some for pairs, and special ones. Nothing here waits for
time: tokens flow as soon as somebody polls, or one by one where a test holds the `gate`.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import scant
from scant.serve.engine import Sampling, Token
from scant.serve.text import Tokenizer

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n"
    "{% if message.content == 'refuse' %}{{ raise_exception('refused by template') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
BOS, START, END = 256, 257, 258
PAIRS = ["he", "ll", "Ġt", "in"]


def vector_of(prompt: Sequence[int], wanted: str) -> tuple[float, ...]:
    """Four numbers that tell the prompt and what was wanted."""
    return (0.1, float(len(prompt)), -prompt[-1] / 3, 1.0 if wanted == "mean" else 0.0)


def signs() -> list[str]:
    """GPT-2's letters of the 256 bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain}
    table.update({byte: chr(0x100 + place) for place, byte in enumerate(others)})
    return [table[byte] for byte in range(256)]


def tokenizer_json() -> bytes:
    """Byte-level BPE: token n below 256 is the byte n."""
    vocab = {sign: byte for byte, sign in enumerate(signs())}
    vocab.update({pair: 259 + place for place, pair in enumerate(PAIRS)})
    names = (("<|begin|>", BOS), ("<|start|>", START), ("<|end|>", END))
    vocab.update(names)
    special = {
        "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": True,
    }  # fmt: skip
    byte_level = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
    }  # fmt: skip
    table = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name, **special} for name, number in names],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
            "merges": [f"{pair[0]} {pair[1]}" for pair in PAIRS],
        },
    }  # fmt: skip
    return json.dumps(table).encode()


@dataclass
class ScriptedModel:
    """What the server tells of its model."""

    name: str = "scripted"
    context: int = 512
    width: int = 4
    vocabulary: int = 259 + len(PAIRS)
    bos: int | None = BOS
    eos: tuple[int, ...] = (END,)
    adds_bos: bool = True
    tokenizer: Tokenizer = field(default_factory=lambda: Tokenizer(tokenizer_json()))
    chat_template: str | None = TEMPLATE


@dataclass
class Submitted:
    """A request as it came, and how far it is."""

    number: int
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    deadline_s: float | None
    echo: bool
    script: list[int] = field(default_factory=list)
    sent: int = 0
    ended: bool = False
    wanted: str = "answer"


Script = Callable[[Submitted], "list[int] | str"]


class ScriptedEngine:
    """Answers each request with the tokens of a script, then with eos.

    A script is a text, tokens, or a function of the request that gives either.
    """

    def __init__(
        self,
        script: str | list[int] | Script = "Hello, world",
        *,
        model: ScriptedModel | None = None,
        queue: int = 1000,
        endless: bool = False,
        step_tokens: int = 1,
    ) -> None:
        self.model = model or ScriptedModel()
        self.queue = queue  # requests at a time; more are refused
        self.endless = endless  # the script again and again, up to max_tokens
        self.step_tokens = step_tokens
        self.requests: list[Submitted] = []
        self.cancelled: list[int] = []
        self.failing: BaseException | None = None  # what poll raises
        self.gate: int | None = None  # steps that may still be made; None: any number
        self.closed = False
        self._script = script
        self._changed = threading.Condition()
        self._running: dict[int, Submitted] = {}
        self._events: list[Token] = []
        self._steps = 0
        self._tokens = 0
        self._file = os.eventfd(0, os.EFD_NONBLOCK)

    # The engine's contract.

    def submit(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling,
        deadline_s: float | None = None,
        echo: bool = False,
        wanted: str = "answer",
    ) -> int:
        with self._changed:
            if len(self._running) >= self.queue:
                error = scant.Resource("the queue is full")
                error.retry_after_s = 2.5  # type: ignore[attr-defined]
                raise error
            if max_tokens + len(prompt) > self.model.context:
                raise scant.InvalidArgument("this request can never fit")
            number = len(self.requests)
            one = Submitted(number, list(prompt), max_tokens, sampling, deadline_s, echo)
            one.wanted = wanted
            script = self._script(one) if callable(self._script) else self._script
            one.script = self.model.tokenizer.encode(script) if isinstance(script, str) else script
            self.requests.append(one)
            self._running[number] = one
            if echo:
                self._events += [
                    Token(number, token, -0.5 if place else None)
                    for place, token in enumerate(prompt)
                ]
            self._stir()
            return number

    def cancel(self, request: int) -> None:
        with self._changed:
            self.cancelled.append(request)
            if self._running.pop(request, None) is not None:
                self._events.append(self._last(self.requests[request], None, "cancelled"))
            self._stir()

    def poll(self, timeout_s: float) -> list[Token]:
        with self._changed:
            self._changed.wait_for(self._ready, timeout_s)
            if self.failing is not None:
                raise self.failing
            if self._running and self.gate != 0:
                if self.gate is not None:
                    self.gate -= 1
                self._steps += 1
                for one in list(self._running.values()):
                    for _ in range(self.step_tokens):
                        self._step(one)
            events, self._events = self._events, []
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._file)
            self._stir()
            return events

    def fileno(self) -> int:
        return self._file

    def stats(self) -> dict[str, float | int]:
        with self._changed:
            return {
                "running": len(self._running),
                "waiting": 0,
                "kv_pages": 100,
                "kv_pages_used": len(self._running),
                "steps": self._steps,
                "decode_tokens": self._tokens,
                "cpu_s": 0.25,
                "rss_bytes": 1_000_000,
                "odd": 3,
            }

    def drain(self) -> None:
        """Nothing more to do: the front sends no more requests."""

    def close(self) -> None:
        self.closed = True
        os.close(self._file)

    # What tests do with it.

    def allow(self, steps: int) -> None:
        """So many steps more, where the gate is held."""
        with self._changed:
            self.gate = (self.gate or 0) + steps
            self._stir()

    def end(self, request: int, finish: str, error: str | None = None) -> None:
        """The request ends so."""
        with self._changed:
            one = self._running.pop(request)
            self._events.append(self._last(one, None, finish, error))
            self._stir()

    def fail(self, error: BaseException) -> None:
        """The engine breaks."""
        with self._changed:
            self.failing = error
            self._stir()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Until the condition holds, which something that the engine is asked makes true."""
        with self._changed:
            assert self._changed.wait_for(condition, 30), f"still not: {what}"

    # Inside, with the lock held.

    def _stir(self) -> None:
        if self._ready():
            os.eventfd_write(self._file, 1)
        self._changed.notify_all()

    def _ready(self) -> bool:
        moving = bool(self._running) and self.gate != 0
        return self.failing is not None or bool(self._events) or moving

    def _step(self, one: Submitted) -> None:
        if one.ended:
            return
        at = one.sent
        if one.wanted != "answer":
            self._finish(one, None, "stop")
        elif one.max_tokens == 0:
            self._finish(one, None, "length")
        elif at >= len(one.script) and not self.endless:
            self._finish(one, self.model.eos[0], "stop")
        else:
            token = one.script[at % len(one.script)]
            one.sent += 1
            if one.sent >= one.max_tokens:
                self._finish(one, token, "length")
            else:
                self._events.append(self._token(one, token))
                self._tokens += 1

    def _finish(self, one: Submitted, token: int | None, finish: str) -> None:
        one.ended = True
        del self._running[one.number]
        self._events.append(self._last(one, token, finish))

    def _token(self, one: Submitted, token: int) -> Token:
        return Token(one.number, token, -0.25, self._top(one, token))

    @staticmethod
    def _top(one: Submitted, token: int) -> tuple[tuple[int, float], ...]:
        return tuple((token + k, -0.25 - k) for k in range(max(one.sampling.logprobs, 0)))

    def _last(
        self, one: Submitted, token: int | None, finish: str, error: str | None = None
    ) -> Token:
        top = () if token is None else self._top(one, token)
        cached = len(one.prompt) // 2
        vector = None
        if one.wanted != "answer" and finish == "stop":
            vector = struct.pack("<4f", *vector_of(one.prompt, one.wanted))
        return Token(one.number, token, -0.25, top, finish, error, len(one.prompt), cached, vector)
