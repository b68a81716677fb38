"""An answer on its way: requests to the engine, their tokens as text, until a client has it all.

Everything here belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
from collections.abc import Callable, Sequence
from typing import Any

from scant.errors import Error
from scant.serve.engine import Engine, Token
from scant.serve.server import forms
from scant.serve.server.fields import Asked
from scant.serve.server.forms import Form, Usage
from scant.serve.server.prompts import Prompt
from scant.serve.server.refusals import Refusal, draining
from scant.serve.text import StopStrings

__all__ = ["Answer", "Choice", "Sinks"]

Sinks = dict[int, "Choice"]  # by the engine's number of the request


class Choice:
    """One of an answer's texts: one request to the engine."""

    __slots__ = (
        "_characters",
        "_detokeniser",
        "_echoes",
        "_eos",
        "_stops",
        "_tells_logprobs",
        "answer",
        "begun",
        "cached",
        "ended",
        "events",
        "failure",
        "finish",
        "first_at",
        "index",
        "number",
        "offsets",
        "parts",
        "prompt",
        "tokens",
    )

    def __init__(self, answer: Answer, index: int, prompt: Prompt) -> None:
        self.answer = answer
        self.index = index
        self.prompt = prompt
        self.number = -1  # the engine's
        self.tokens = 0
        self.first_at = 0.0  # monotonic seconds
        self.cached = 0
        self.finish: str | None = None
        self.failure: Refusal | None = None
        self.parts: list[str] = [prompt.text] if answer.asked.echo else []
        self.events: list[Token] = []  # whose logprobs were not told yet
        self.offsets: list[int] = []
        self.begun = False  # its stream
        self.ended = False  # its stream
        self._characters = 0  # of the text so far
        self._echoes = len(prompt.tokens) if answer.echoes else 0
        self._detokeniser = answer.engine.model.tokenizer.stream()
        self._stops = StopStrings(answer.asked.stops) if answer.asked.stops else None
        self._eos = answer.silent
        self._tells_logprobs = answer.wants_logprobs

    def take(self, event: Token) -> None:
        """An event of the engine. After the choice has ended they mean nothing."""
        if self.finish is not None:
            return
        if event.cached_tokens:
            self.cached = event.cached_tokens
        token = event.token
        if token is not None:
            if self._echoes:
                self._echo(event, token)
            else:
                self._add(event, token)
        if event.finish is not None and self.finish is None:
            self._end(event)

    def _echo(self, event: Token, token: int) -> None:
        self._echoes -= 1
        if self._tells_logprobs:
            self.events.append(event)
            self.offsets.append(self._characters)
        self._characters += len(self._detokeniser.add(token))

    def _add(self, event: Token, token: int) -> None:
        self.tokens += 1
        if event.finish == "stop" and token in self._eos:
            return
        if self._tells_logprobs:
            self.events.append(event)
            self.offsets.append(self._characters)
        text = self._detokeniser.add(token)
        if text:
            self._told(text)

    def _told(self, text: str) -> None:
        self._characters += len(text)
        if self._stops is not None:
            text, found = self._stops.add(text)
            if found:
                self.end_as("stop")
                self.answer.engine.cancel(self.number)
        if text:
            self.parts.append(text)

    def _end(self, event: Token) -> None:
        rest = self._detokeniser.end()
        if rest:
            self._told(rest)
        if self.finish is not None:
            return
        if self._stops is not None:
            self.parts.append(self._stops.end())
        well = event.finish in ("stop", "length")
        self.end_as(event.finish or "error", None if well else self._failure(event))

    def end_as(self, finish: str, failure: Refusal | None = None) -> None:
        """No event means anything any more."""
        self.finish = finish
        self.answer.open -= 1
        if failure is not None:
            self.failure = failure
            self.answer.failed = True

    def _failure(self, event: Token) -> Refusal:
        if event.finish == "deadline":
            text = f"the deadline of the request passed after {self.tokens} tokens"
            return Refusal(504, text, code="deadline")
        if event.finish == "cancelled":
            return draining()
        text = f"the engine failed: {event.error or 'it does not say why'}"
        return Refusal(500, text, code="engine_failed")

    def text(self) -> str:
        """What was not told yet; told by this."""
        text = "".join(self.parts)
        self.parts.clear()
        return text

    def logprobs(self) -> dict[str, Any] | None:
        """Those that were not told yet; told by this."""
        if not self._tells_logprobs:
            return None
        tokenizer = self.answer.engine.model.tokenizer
        if self.answer.is_chat:
            found = forms.logprobs_of_chat(tokenizer, self.events)
        else:
            found = forms.logprobs_of_completion(tokenizer, self.events, self.offsets)
        self.events = []
        self.offsets = []
        return found


class VectorChoice(Choice):
    """A prompt's vector, which `text` tells."""

    __slots__ = ()

    def take(self, event: Token) -> None:
        """The only event: the end, with the vector."""
        if self.finish is not None or event.finish is None:
            return
        if event.vector is None:
            self.end_as(event.finish, self._failure(event))
            return
        if self.answer.asked.base64:
            self.parts.append(base64.b64encode(event.vector).decode())
        else:
            # The shortest numbers that read back as these.
            numbers = struct.unpack(f"<{len(event.vector) // 4}f", event.vector)
            self.parts.append(f"[{', '.join(f'{one:.9g}' for one in numbers)}]")
        self.end_as(event.finish)


class Answer:
    """One HTTP request's choices, and whoever waits for them."""

    def __init__(
        self,
        engine: Engine,
        sinks: Sinks,
        form: Form,
        asked: Asked,
        prompts: Sequence[Prompt],
        begun_at: float,
    ) -> None:
        self.engine = engine
        self.asked = asked
        self.is_chat = isinstance(form, forms.ChatForm)
        self.wants_logprobs = asked.sampling.logprobs >= 0
        # The engine repeats a prompt where its logprobs are wanted, or nothing else is.
        self.echoes = asked.echo and (self.wants_logprobs or asked.max_tokens == 0)
        self.silent = frozenset((*engine.model.eos, *asked.sampling.stop_tokens))
        self.begun_at = begun_at  # monotonic seconds
        self.left: str | None = None  # why nobody waits any more
        self.unread = 0  # tokens, and their alternatives, since the connection took some
        self.on_slow: Callable[[], None] | None = None
        self.tell: Callable[[Answer], None] | None = None  # of a stream that has begun
        self.stirred = False  # by the batch of events that is being delivered
        self.failed = False
        self._sinks = sinks
        self._form = form
        self._changed = asyncio.Event()
        self._prompts = prompts
        kind = Choice if asked.wanted == "answer" else VectorChoice
        self.choices = [
            kind(self, which * asked.n + place, prompt)
            for which, prompt in enumerate(prompts)
            for place in range(asked.n)
        ]
        self.open = len(self.choices)  # that have not ended

    def submit(self, timeout_s: float | None) -> None:
        """Hands all of it to the engine, or nothing: its refusal ends what was begun."""
        for choice in self.choices:
            try:
                choice.number = self.engine.submit(
                    choice.prompt.tokens,
                    max_tokens=choice.prompt.max_tokens,
                    sampling=self.asked.sampling_of(choice.index % self.asked.n),
                    deadline_s=timeout_s,
                    echo=self.echoes,
                    wanted=self.asked.wanted,
                )
            except Exception:
                self.abandon()
                raise
            self._sinks[choice.number] = choice

    def abandon(self) -> None:
        """Ends what still runs; its tokens go nowhere."""
        for choice in self.choices:
            if self._sinks.pop(choice.number, None) is not None and choice.finish is None:
                self._cancel(choice)

    def _cancel(self, choice: Choice) -> None:
        with contextlib.suppress(Error):  # an engine that has failed has nothing to cancel
            self.engine.cancel(choice.number)

    def leave(self, why: str) -> None:
        """The connection is gone; the first reason counts."""
        self.left = self.left or why
        self.wake()

    def fail(self, refusal: Refusal) -> None:
        """Ends what still runs with this answer."""
        for choice in self.choices:
            if choice.finish is None:
                choice.end_as("error", refusal)
                self._cancel(choice)
        self.wake()

    def advance(self) -> None:
        """After events, and when a connection takes bytes again: a stream in its middle is written
        here and now, so that a token wakes no task; the rest is for who waits."""
        if self.open and not self.failed and self.left is None:
            if self.tell is not None:
                self.tell(self)
            elif self.asked.stream:
                self._changed.set()
        else:
            self._changed.set()

    def wake(self) -> None:
        """Something changed for who waits."""
        self._changed.set()

    async def changed(self) -> None:
        """Waits for the next event."""
        await self._changed.wait()
        self._changed.clear()

    @property
    def failure(self) -> Refusal | None:
        """Of the first choice that failed."""
        return next((one.failure for one in self.choices if one.failure is not None), None)

    @property
    def ended(self) -> bool:
        """All choices."""
        return self.open == 0

    @property
    def tokens(self) -> int:
        """Generated so far."""
        return sum(choice.tokens for choice in self.choices)

    def usage(self) -> Usage:
        """So far."""
        return Usage(
            sum(len(prompt.tokens) for prompt in self._prompts),
            sum(choice.cached for choice in self.choices[:: self.asked.n]),
            self.tokens,
        )

    def whole(self) -> bytes:
        """The answer that is no stream."""
        return self._form.whole(
            [
                self._form.choice(one.index, one.text(), one.logprobs(), one.finish or "stop")
                for one in self.choices
            ],
            self.usage(),
        )

    def chunk(self) -> str:
        """The events of a stream since the last call: ASCII."""
        self.unread = 0
        parts: list[str] = []
        for choice in self.choices:
            if not choice.ended and (choice.parts or choice.events or choice.finish is not None):
                self._tell(choice, parts)
        return "".join(parts)

    def _tell(self, choice: Choice, parts: list[str]) -> None:
        form = self._form
        if not choice.begun:
            choice.begun = True
            parts.append(form.begin(choice.index))
        text = choice.text()
        if text or choice.events:
            parts.append(form.piece(choice.index, text, choice.logprobs()))
        if choice.finish is not None and choice.failure is None:
            choice.ended = True
            parts.append(form.end(choice.index, choice.finish))

    def last(self) -> bytes:
        """What ends a stream: the rest of its text, then why it ended."""
        rest = self.chunk().encode()
        failure = self.failure
        if failure is not None:
            return rest + b"data: " + failure.body() + b"\n\n"
        return rest + self._form.usage(self.usage()) + forms.DONE
