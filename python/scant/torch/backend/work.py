"""The Work that Scant's process group returns, and its Future.

Four facts of torch shape it (docs/decisions/python-process-group.md): DDP never calls ``wait`` but
takes the Future's value; a Future that is failed with ``set_exception``, or whose value is None,
crashes the process inside DDP; an exception raised by a ``then`` callback arrives as a clean
RuntimeError; nothing but ``wait`` and ``get_future`` of a Python Work is visible to C++. So the
completion thread only ever sets the result of a base Future, and the Future that callers see is
``base.then(...)``, which raises the operation's error.

Callbacks may submit operations and wait for them (the PowerSGD hook does). So that all ranks submit
them in one order, the futures of a group are completed in the order in which they were asked for,
on the completion thread even when the operation is done already; within a callback a Future is
completed before it is returned (see callbacks.py).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.futures import Future

from scant import _scant, lifetime
from scant.errors import Timeout
from scant.torch.backend.compiler import not_compiled

__all__ = ["GroupedWork", "ScantWork", "StagedWork"]

_ZERO = timedelta()


class ScantWork(dist.Work):
    """Operations that belong to one call, and what remains to be done when they have ended."""

    def __init__(
        self,
        works: Sequence[_scant.Work],
        result: list[Any],
        finish: Callable[[], None] | None = None,
        chain: int = 0,
    ) -> None:
        dist.Work.__init__(self)
        self._works = works
        self._result = result
        self._finish = finish
        self._chain = chain
        self._future: Future[Any] | None = None
        if finish is not None:
            self._finish_lock = threading.Lock()
            self._finish_error: BaseException | None = None

    @not_compiled
    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait for the end; raises the operation's error."""
        if timeout is None or timeout <= _ZERO:
            for work in self._works:
                work.wait()
        else:
            deadline = time.monotonic() + timeout.total_seconds()
            for work in self._works:
                work.wait(max(deadline - time.monotonic(), 1e-6))
        if self._finish is not None:
            self._finish_once()
        return True

    def _finish_once(self) -> None:
        # Both a waiting thread and the completion thread come here; the later one waits.
        with self._finish_lock:
            finish, self._finish = self._finish, None
            if finish is not None:
                try:
                    finish()
                except BaseException as error:
                    self._finish_error = error
            if self._finish_error is not None:
                self._finish = _nothing  # so that every later wait() comes here again
                raise self._finish_error

    @not_compiled
    def get_future(self) -> Future[Any]:
        """A Future whose value is the list of output tensors; it raises the operation's error."""
        if self._future is None:
            base = self._new_future()
            self._future = base.then(self._complete)
            if _scant.Executor.in_callback():
                with contextlib.suppress(Exception):
                    self.wait()  # the error is raised again by _complete
                base.set_result(None)
            else:
                self._call_when_done(lambda: base.set_result(None))
        return self._future

    def _new_future(self) -> Future[Any]:
        return Future()

    def _call_when_done(self, callback: Callable[[], object]) -> None:
        lifetime.completion().post_when_done(list(self._works), self._chain, callback)

    def _complete(self, _: Future[Any]) -> list[Any]:
        self.wait()
        return self._result

    def is_completed(self) -> bool:
        """True when all operations have ended, well or not."""
        return all(work.done() for work in self._works)

    def is_success(self) -> bool:
        """True when all operations have ended well."""
        return self.is_completed() and self.exception() is None

    def exception(self) -> BaseException | None:
        """The first error, if an operation has failed."""
        for work in self._works:
            error = work.error()
            if error is not None:
                return error
        return None

    def result(self) -> list[Any]:
        """The output tensors."""
        return self._result

    def source_rank(self) -> int:
        """Who sent what a receive from any source got (rank in the group)."""
        return self._works[0].source

    def _source_rank(self) -> int:
        return self.source_rank()

    def synchronize(self) -> None:
        """The same as wait()."""
        self.wait()


def _nothing() -> None:
    pass


class GroupedWork(ScantWork):
    """Several calls seen as one."""

    def __init__(
        self,
        calls: Sequence[ScantWork],
        result: list[Any],
        finish: Callable[[], None] | None = None,
        chain: int = 0,
    ) -> None:
        super().__init__((), result, finish, chain)
        self._calls = calls

    @not_compiled
    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait for the end of all calls; raises the first error."""
        for call in self._calls:
            call.wait(timeout)
        return super().wait()

    def _new_future(self) -> Future[Any]:
        devices = {call._device for call in self._calls if isinstance(call, StagedWork)}
        return Future(devices=[device for device in devices if device.type == "cuda"])

    def _call_when_done(self, callback: Callable[[], object]) -> None:
        waiting = len(self._calls)

        def one_done() -> None:
            # Always on the completion thread, so the count needs no lock.
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                callback()

        for call in self._calls:
            call._call_when_done(one_done)

    def is_completed(self) -> bool:
        """True when all calls have ended, well or not."""
        return all(call.is_completed() for call in self._calls)

    def exception(self) -> BaseException | None:
        """The first error, if a call has failed."""
        return next((error for call in self._calls if (error := call.exception())), None)


class StagedWork(ScantWork):
    """A call on CUDA tensors. Host copies are made on a side stream; the staging thread submits.

    The calling thread never waits for the device: it only enqueues the copies to pinned memory.
    The staging thread waits for them and starts the operation; later calls of the group queue
    behind it, so that all ranks submit in program order. Whoever waits first enqueues the copies
    back.
    """

    def __init__(
        self,
        device: torch.device,
        side: torch.cuda.Stream | None,
        copied: torch.cuda.Event | None,
        launch: Callable[[], Sequence[_scant.Work]],
        result: list[Any],
        copy_back: Callable[[], None],
        submitted: Callable[[], None],
        chain: int,
    ) -> None:
        super().__init__((), result, self._enqueue_copies_back, chain)
        self._device = device
        self._side = side
        self._copied = copied
        self._launch: Callable[[], Sequence[_scant.Work]] | None = launch
        self._copy_back = copy_back
        self._submitted = submitted
        self._is_submitted = threading.Event()
        self._launch_error: BaseException | None = None
        self._back: torch.cuda.Event | None = None
        if _scant.Executor.in_callback():
            self._submit()  # callbacks have an order of their own
        else:
            lifetime.staging().post(self._submit)

    def _submit(self) -> None:
        try:
            if self._copied is not None:
                self._copied.synchronize()
            assert self._launch is not None
            self._works = self._launch()
        except BaseException as error:
            self._launch_error = error
        finally:
            self._launch = None
            self._submitted()
            self._is_submitted.set()

    @not_compiled
    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait for the network; the current stream waits for the copies back to the device."""
        limited = timeout is not None and timeout > _ZERO
        if not self._is_submitted.wait(timeout.total_seconds() if limited and timeout else None):
            raise Timeout("wait: the operation still waits for the device")
        if self._launch_error is not None:
            raise self._launch_error
        super().wait(timeout)
        if self._back is not None:
            torch.cuda.current_stream(self._device).wait_event(self._back)
        return True

    def _enqueue_copies_back(self) -> None:
        if self._side is None:
            self._copy_back()
            return
        with torch.cuda.stream(self._side):
            self._copy_back()
            self._back = self._side.record_event()

    def _new_future(self) -> Future[Any]:
        if self._device.type != "cuda":
            return Future()
        return Future(devices=[self._device])

    def _call_when_done(self, callback: Callable[[], object]) -> None:
        # The staging thread runs in order: by then the operations have been submitted.
        lifetime.staging().post(lambda: super(StagedWork, self)._call_when_done(callback))

    def is_completed(self) -> bool:
        """True when the network part has ended, well or not."""
        return self._is_submitted.is_set() and super().is_completed()

    def exception(self) -> BaseException | None:
        """The first error, if an operation has failed."""
        return self._launch_error or super().exception()
