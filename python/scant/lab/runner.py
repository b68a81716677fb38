"""Runs the ranks to their end: output, timed events, statistics, signals, exit code.

One thread and one loop over the ranks' pipes. Ends when every rank has ended; asked to stop
(signal, timeout, a failed rank) it signals the ranks, waits the grace time and kills.
"""

from __future__ import annotations

import dataclasses
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any

from scant import amounts
from scant.lab.errors import LabError
from scant.lab.events import Event
from scant.lab.lab import Lab, RankProcess
from scant.lab.network import LinkCounters
from scant.lab.units import format_duration, format_rate

EXIT_TIMEOUT = 124
_LINE_BYTES_MAX = 1 << 16
_DRAIN_SECONDS = 0.5  # a rank's orphan may hold its pipe open; it is killed with the lab
_STATUS_SECONDS = 0.5
_COLOURS = (36, 33, 32, 35, 34, 31, 96, 93)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How to run and when to give up."""

    events: Sequence[Event] = ()
    stats_seconds: float | None = None
    stop_on_failure: bool = True
    grace_seconds: float = 10.0
    timeout_seconds: float | None = None


class _Terminal:
    """Writes whole lines to both streams and keeps one status line below them."""

    def __init__(self) -> None:
        self._out: IO[bytes] = sys.stdout.buffer
        self._err: IO[bytes] = sys.stderr.buffer
        self.live = sys.stderr.isatty()
        self._colour = {self._out: sys.stdout.isatty(), self._err: sys.stderr.isatty()}
        self._status = b""

    def rank_line(self, rank: int, line: bytes, error: bool) -> None:
        stream = self._err if error else self._out
        prefix = f"[{rank}] ".encode()
        if self._colour[stream]:
            prefix = b"\x1b[%dm" % _COLOURS[rank % len(_COLOURS)] + prefix + b"\x1b[0m"
        self._write(stream, prefix + line + b"\n")

    def note(self, text: str) -> None:
        self._write(self._err, f"[lab] {text}\n".encode())

    def status(self, text: str) -> None:
        width = shutil.get_terminal_size().columns
        self._status = text[: max(0, width - 1)].encode()
        self._write(self._err, b"")

    def clear(self) -> None:
        if self._status:
            self._err.write(b"\r\x1b[2K")
            self._err.flush()
            self._status = b""

    def _write(self, stream: IO[bytes], data: bytes) -> None:
        if self._status:
            self._err.write(b"\r\x1b[2K")
            if stream is not self._err:
                self._err.flush()
        stream.write(data)
        stream.flush()
        if self._status:
            self._err.write(self._status)
            self._err.flush()


class _Lines:
    """Splits one stream into lines."""

    def __init__(self, emit: Callable[[bytes], None]) -> None:
        self._emit = emit
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._emit(line)
        if len(self._rest) >= _LINE_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        if self._rest:
            self._emit(self._rest)
            self._rest = b""


class Runner:
    """One run of a command in a lab."""

    def __init__(self, lab: Lab, options: RunOptions) -> None:
        self._lab = lab
        self._options = options
        self._terminal = _Terminal()
        self._selector = selectors.DefaultSelector()
        self._alive: list[RankProcess] = []
        self._open_streams = 0
        self._pending = list(options.events)
        self._sent: dict[int, set[int]] = {}  # rank → signals that events sent
        self._frozen: set[int] = set()
        self._exit_code = 0
        self._kill_at: float | None = None
        self._stopping = False
        self._begin = time.monotonic()
        self._next_stats = 0.0
        self._last: tuple[float, list[LinkCounters]] = (0.0, [])
        self._signals: list[int] = []
        self.applied: list[dict[str, Any]] = []
        self.ended_by_event: set[int] = set()
        self.counters: list[LinkCounters] = []
        self.seconds = 0.0

    def run(self, command: Sequence[str]) -> int:
        """Start, serve, end; returns the exit code. Signal handlers are restored."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {n: signal.signal(n, lambda n, _: self._signals.append(n)) for n in numbers}
        old_wakeup = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        # The handlers note the signal; reading the byte only ends the wait.
        self._selector.register(wake_read, selectors.EVENT_READ, lambda: os.read(wake_read, 64))
        try:
            self._start(command)
            self._loop()
            self.counters = self._lab.counters()
        except BrokenPipeError:  # nobody reads the output any more
            self._exit_code = 128 + signal.SIGPIPE
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        finally:
            self.seconds = time.monotonic() - self._begin
            with suppress(OSError):
                self._terminal.clear()
            signal.set_wakeup_fd(old_wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            os.close(wake_read)
            os.close(wake_write)
        return self._exit_code

    def _start(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self._begin = time.monotonic()
        self._next_stats = self._stats_interval() or 0.0
        self._last = (0.0, self._lab.counters())
        self._alive = self._lab.run(command, stdout=pipe, stderr=pipe)
        for process in self._alive:
            for stream, error in ((process.stdout, False), (process.stderr, True)):
                assert stream is not None
                lines = _Lines(self._line_writer(process.rank, error))
                self._selector.register(
                    stream, selectors.EVENT_READ, self._stream_reader(stream, lines)
                )
                self._open_streams += 1
            self._selector.register(
                process.fileno(), selectors.EVENT_READ, self._exit_reader(process)
            )

    def _line_writer(self, rank: int, error: bool) -> Callable[[bytes], None]:
        return lambda line: self._terminal.rank_line(rank, line, error)

    def _stream_reader(self, stream: IO[bytes], lines: _Lines) -> Callable[[], None]:
        def read() -> None:
            data = os.read(stream.fileno(), 1 << 16)
            if data:
                lines.feed(data)
                return
            lines.flush()
            self._selector.unregister(stream)
            self._open_streams -= 1

        return read

    def _exit_reader(self, process: RankProcess) -> Callable[[], None]:
        fd = process.fileno()

        def read() -> None:
            self._selector.unregister(fd)
            process.poll()
            self._alive.remove(process)
            self._rank_ended(process)

        return read

    def _loop(self) -> None:
        drain_until: float | None = None
        while True:
            now = time.monotonic()
            if not self._alive:
                if drain_until is None:
                    drain_until = now + _DRAIN_SECONDS
                if self._open_streams == 0 or now >= drain_until:
                    return
            for key, _ in self._selector.select(self._wait_seconds(now, drain_until)):
                key.data()
            self._take_signals()
            if self._alive:
                self._on_time()

    def _wait_seconds(self, now: float, drain_until: float | None) -> float | None:
        deadlines = [drain_until, self._kill_at]
        if self._pending and self._alive:
            deadlines.append(self._begin + self._pending[0].at_seconds)
        if self._stats_interval() and self._alive:
            deadlines.append(self._begin + self._next_stats)
        if self._options.timeout_seconds is not None and not self._stopping:
            deadlines.append(self._begin + self._options.timeout_seconds)
        waits = [deadline - now for deadline in deadlines if deadline is not None]
        return max(0.0, min(waits)) if waits else None

    def _on_time(self) -> None:
        now = time.monotonic()
        while self._pending and now - self._begin >= self._pending[0].at_seconds:
            self._apply(self._pending.pop(0))
        interval = self._stats_interval()
        if interval and now - self._begin >= self._next_stats:
            self._show_stats(now - self._begin)
            self._next_stats = max(self._next_stats + interval, time.monotonic() - self._begin)
        timeout = self._options.timeout_seconds
        if timeout is not None and not self._stopping and now - self._begin >= timeout:
            self._terminal.note(f"timeout after {format_duration(timeout)}: stopping the ranks")
            self._exit_code = self._exit_code or EXIT_TIMEOUT
            self._stop(signal.SIGTERM)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            if self._stopping:
                self._signal_all(signal.SIGKILL)
            else:
                self._stop(signal.SIGTERM)
        self._end_frozen()

    def _end_frozen(self) -> None:
        """Ranks that an event stopped for good do not keep the run alive."""
        if self._pending or not self._alive or self._stopping:
            return
        if all(process.rank in self._frozen for process in self._alive):
            for process in self._alive:
                self._sent.setdefault(process.rank, set()).add(signal.SIGKILL)
            self._terminal.note("only stopped ranks are left: killing them")
            self._stopping = True
            self._signal_all(signal.SIGKILL)

    def _apply(self, event: Event) -> None:
        at = time.monotonic() - self._begin
        error = None
        try:
            event.apply(self._lab)
        except LabError as failure:
            error = str(failure)
        if event.signal is not None:
            for rank in event.targets:
                self._sent.setdefault(rank, set()).add(event.signal)
            if event.signal == signal.SIGSTOP:
                self._frozen.update(event.targets)
            elif event.signal == signal.SIGCONT:
                self._frozen.difference_update(event.targets)
        self._terminal.note(f"{at:.2f} s: {event.text}" + (f" FAILED: {error}" if error else ""))
        self.applied.append(
            {"text": event.text, "seconds": round(at, 6), "asked_seconds": event.at_seconds}
            | ({"error": error} if error else {})
        )

    def _take_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            name = signal.Signals(number).name
            self._exit_code = 128 + number
            if self._stopping:
                self._terminal.note(f"{name} again: killing the ranks")
                self._signal_all(signal.SIGKILL)
            else:
                self._terminal.note(f"{name}: passing it to the ranks")
                self._stop(number)

    def _stop(self, number: int) -> None:
        self._stopping = True
        self._pending.clear()
        self._kill_at = time.monotonic() + self._options.grace_seconds
        self._signal_all(number)
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        for process in self._alive:
            with suppress(LabError):
                process.send_signal(number)

    def _rank_ended(self, process: RankProcess) -> None:
        code = process.returncode or 0
        if code == 0:
            return
        if code < 0 and -code in self._sent.get(process.rank, ()):
            self.ended_by_event.add(process.rank)
            return
        shell_code = 128 - code if code < 0 else code
        if self._stopping:
            return
        what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._terminal.note(f"rank {process.rank} failed: {what}")
        self._exit_code = self._exit_code or shell_code
        if self._options.stop_on_failure and self._kill_at is None and self._alive:
            grace = self._options.grace_seconds
            self._kill_at = time.monotonic() + grace
            self._terminal.note(f"the others have {format_duration(grace)} to end")

    def _stats_interval(self) -> float | None:
        if self._options.stats_seconds is not None:
            return self._options.stats_seconds
        return _STATUS_SECONDS if self._terminal.live else None

    def _show_stats(self, at: float) -> None:
        counters = self._lab.counters()
        before_at, before = self._last
        self._last = (at, counters)
        seconds = max(at - before_at, 1e-6)
        parts = []
        for host, link in enumerate(counters):
            up = (link.up.bytes - before[host].up.bytes) * 8 / seconds
            down = (link.down.bytes - before[host].down.bytes) * 8 / seconds
            total = link.up.bytes + link.down.bytes
            parts.append(f"{host} ↑{format_rate(up)} ↓{format_rate(down)} {amounts.size(total)}")
        text = f"{at:.1f} s  " + " | ".join(parts or [f"{len(self._alive)} ranks run"])
        if self._options.stats_seconds is None:
            self._terminal.status(text)
        else:
            self._terminal.note(text)
