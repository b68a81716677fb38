"""Counters of this process (bytes, frames, operations, losses), gauges of its training, and an
endpoint where Prometheus finds both.
"""

from __future__ import annotations

import contextlib
import http.server
import math
import re
import socket
import socketserver
import threading
from collections.abc import Mapping
from typing import Any

from scant import _scant, checks
from scant.closing import Closing
from scant.errors import InvalidArgument, reason

__all__ = ["Endpoint", "counters", "counters_prometheus", "gauges", "serve", "set_gauges"]

# What is known of a gauge by its name; others may be set too.
_HELP = {
    "scant_backward_seconds": "Backward of a step.",
    "scant_dense_bytes_per_step": "What a rank would send in a step by the plain plan.",
    "scant_encode_seconds": "Work of the encoding threads in a step.",
    "scant_energy_kept_ratio": "Share of the energy of gradient and residual that is sent.",
    "scant_exposed_seconds": "What a step waits for communication after backward.",
    "scant_guard_events": "How often the guard acted.",
    "scant_journal_base_step": "Step of the newest base that is durable.",
    "scant_journal_bytes_per_step": "Of the last entry of the journal's log.",
    "scant_journal_step": "The last step in the journal's log.",
    "scant_journal_unsynced_steps": "Entries that a power cut would take.",
    "scant_link_bytes_per_second": "Sent by a rank while its link worked.",
    "scant_plain_step_seconds": "A step by the plain plan, predicted or measured.",
    "scant_predicted_step_seconds": "A step as it was predicted.",
    "scant_residual_ratio": "Norm of the residual to the norm of the gradient.",
    "scant_rho": "A dense all-reduce of the gradients to a step without communication.",
    "scant_sent_bytes_per_step": "What a rank sends in a step.",
    "scant_step_seconds": "From one optimizer step to the next.",
    "scant_steps": "Averaged steps so far.",
}
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ANSWER_S = 5.0  # for a request and its answer; scrapes are answered one after the other
_LOOK_S = 0.2  # how soon close() is noticed

_gauges: dict[str, float] = {}
_gauges_lock = threading.Lock()


def counters() -> dict[str, int]:
    """All counters as ``{'name{label="value"}': count}``."""
    return {name + labels: value for name, labels, _, value in _scant.counters()}


def counters_prometheus() -> str:
    """The same as Prometheus text."""
    return _scant.counters_prometheus()


def set_gauges(values: Mapping[str, float | None]) -> None:
    """Sets gauges of this process by name; None takes one away. Any thread."""
    found = {}
    for name, value in values.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidArgument(f"a gauge's name must be like scant_rho, got {name!r}")
        try:
            found[name] = None if value is None else float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidArgument(f"gauge {name} must be a number, got {value!r}") from error
    with _gauges_lock:
        for name, number in found.items():
            if number is None:
                _gauges.pop(name, None)
            else:
                _gauges[name] = number


def gauges() -> dict[str, float]:
    """All gauges that are set."""
    with _gauges_lock:
        return dict(sorted(_gauges.items()))


def _prometheus() -> str:
    lines = []
    for name, value in gauges().items():
        if name in _HELP:
            lines.append(f"# HELP {name} {_HELP[name]}")
        lines += [f"# TYPE {name} gauge", f"{name} {_number(value)}"]
    text = counters_prometheus()
    if text and not text.endswith("\n"):
        text += "\n"
    return text + "".join(f"{line}\n" for line in lines)


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(value)


class _Handler(http.server.BaseHTTPRequestHandler):
    def setup(self) -> None:
        super().setup()
        # Of the whole exchange: who sends a byte now and then would keep the others waiting.
        self._end = threading.Timer(_ANSWER_S, self._hang_up)
        self._end.daemon = True
        self._end.start()

    def finish(self) -> None:
        self._end.cancel()
        super().finish()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, with_body: bool) -> None:
        found = self.path.partition("?")[0] == "/metrics"
        body = _prometheus().encode() if found else b"only /metrics is here\n"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", CONTENT_TYPE if found else "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def version_string(self) -> str:
        return "scant"

    def log_message(self, format: str, *args: Any) -> None:
        """A training's terminal is for other things."""


class _Server(socketserver.TCPServer):
    # Not http.server.HTTPServer: that asks name servers for the host's full name.
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that goes away is its own affair."""


class Endpoint(Closing):
    """Answers ``/metrics`` from a thread of its own until ``close``; made by :func:`serve`."""

    def __init__(self, host: str, port: int) -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            server = type("_ServerOfFamily", (_Server,), {"address_family": family})
            self._server: _Server = server(address, _Handler)
        except OSError as error:
            text = f"metrics: cannot listen on {host} port {port}: {reason(error)}"
            raise InvalidArgument(text) from error
        self.host = host
        self.port = int(self._server.server_address[1])
        self._server.timeout = _LOOK_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scant-metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._server.handle_request()

    def close(self) -> None:
        """Gives the port back; again and again if you like."""
        self._stop.set()
        self._thread.join(_ANSWER_S + 2 * _LOOK_S)
        self._server.server_close()


def serve(port: int, host: str = "127.0.0.1") -> Endpoint:
    """Counters and gauges for Prometheus at ``http://host:port/metrics``.

    Port 0 takes any free one: ``serve(0).port``. Who can reach the port can read; there is nothing
    secret, and nothing to be changed. One training step never waits for a reader.
    """
    number = checks.whole(port, "metrics port", 0, 65535, None)
    if not isinstance(host, str) or not host:
        raise InvalidArgument(f"metrics: a host's name or address is expected, got {host!r}")
    return Endpoint(host, number)
