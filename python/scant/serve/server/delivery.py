"""How the engine's tokens reach their streams: the event loop hears the engine, a batch at a time.

Of the event loop's thread alone: no other thread stands between the engine and a socket. While the
loop is busy the next steps wait in the engine and come as one batch, so that a late loop has less
to do for each token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from scant.serve.engine import Engine
from scant.serve.server.answers import Answer, Sinks
from scant.serve.server.figures import Figures
from scant.serve.server.limits import Limits

__all__ = ["Delivery"]


class Delivery:
    """Runs from `start` to `stop`; `failed` is called where the engine fails."""

    def __init__(
        self,
        engine: Engine,
        sinks: Sinks,
        figures: Figures,
        limits: Limits,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._engine = engine
        self._sinks = sinks
        self._figures = figures
        self._unread_max = limits.unread_tokens
        self._failed = failed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._file = -1

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to listen."""
        self._loop = loop
        self._file = self._engine.fileno()
        loop.add_reader(self._file, self._deliver)

    def stop(self) -> None:
        """Listens no more."""
        if self._loop is not None:
            self._loop.remove_reader(self._file)
            self._loop = None

    def _deliver(self) -> None:
        try:
            events = self._engine.poll(0.0)
        except Exception as error:
            self.stop()
            self._failed(error)
            return
        now = time.monotonic()
        sinks = self._sinks
        figures = self._figures
        changed: list[Answer] = []
        generated = 0
        for event in events:
            choice = sinks.get(event.request)
            if choice is None:
                continue
            before = choice.tokens
            choice.take(event)
            if choice.tokens > before:
                generated += 1
                if before == 0:
                    figures.first_token(choice, now)
            if event.finish is not None:
                del sinks[event.request]
                figures.ended(choice, event, now)
            answer = choice.answer
            if not answer.stirred:
                answer.stirred = True
                changed.append(answer)
            answer.unread += 1 + len(event.top)
        figures.generated(generated)
        for answer in changed:
            answer.stirred = False
            if answer.unread > self._unread_max and answer.on_slow is not None:
                answer.on_slow()
            answer.advance()
