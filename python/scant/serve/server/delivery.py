"""The thread that polls the engine, and how its tokens reach the event loop: a batch at a time.

While the loop is busy with one batch the next ones wait in the engine and come as one, so that a
late loop has less to do for each token.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from scant.serve.engine import Engine, Token
from scant.serve.server.answers import Answer, Sinks
from scant.serve.server.figures import Figures
from scant.serve.server.limits import Limits

__all__ = ["Delivery"]

_POLL_S = 0.2  # how soon the thread sees that it is to end


class Delivery:
    """Runs from `start` to `stop`; `failed` is called on the loop where the engine fails."""

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
        self._unread_tokens = limits.unread_tokens
        self._failed = failed
        self._stopping = False
        self._taken = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="scant-deliver", daemon=True)
        self.cpu_s = 0.0  # of the thread

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to poll."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, from any thread but itself."""
        self._stopping = True
        self._taken.set()
        self._thread.join()

    def _run(self) -> None:
        assert self._loop is not None
        try:
            while not self._stopping:
                tokens = self._engine.poll(_POLL_S)
                self.cpu_s = time.thread_time()
                if tokens:
                    self._taken.clear()
                    self._loop.call_soon_threadsafe(self._deliver, tokens)
                    self._taken.wait()
        except Exception as error:
            if not self._stopping:  # else the loop or the engine has ended first
                self._loop.call_soon_threadsafe(self._failed, error)

    def _deliver(self, tokens: list[Token]) -> None:
        """On the loop."""
        now = time.monotonic()
        sinks = self._sinks
        figures = self._figures
        changed: set[Answer] = set()
        for event in tokens:
            choice = sinks.get(event.request)
            if choice is None:
                continue
            before = choice.tokens
            choice.take(event)
            if choice.tokens > before:
                figures.token(choice, now)
            if event.finish is not None:
                del sinks[event.request]
                figures.ended(choice, event, now)
            choice.answer.unread += 1
            changed.add(choice.answer)
        self._taken.set()
        for answer in changed:
            if answer.unread > self._unread_tokens and answer.on_slow is not None:
                answer.on_slow()
            answer.wake()
