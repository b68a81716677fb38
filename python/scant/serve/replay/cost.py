"""What a run cost the server: CPU seconds by its /metrics or by /proc, joules where a meter is.

CPU seconds are read before and after the run; the difference is the run's. What cannot be read is
None.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from scant import _scant
from scant.errors import InvalidArgument, Refused
from scant.serve.replay.client import Server

__all__ = ["Energy", "Reading", "cpu_of_metrics", "model_of", "read", "spent"]

# Of a whole process before parts of it.
_CPU_NAMES = ("process_cpu_seconds_total", "scant_serve_engine_cpu_seconds_total")
_HERE = ("127.0.0.1", "localhost", "::1")
_WAIT_S = 10.0
_ANSWER_MAX = 8 << 20


@dataclass(frozen=True)
class Reading:
    """Counters at one moment."""

    cpu_s: float | None = None
    cpu_source: str = ""


class Meter(Protocol):
    """Of the extension, or a test's."""

    @property
    def counts(self) -> bool:
        """Whether there is anything to read."""

    def joules(self) -> float:
        """Since it was made."""


class Energy:
    """Joules of this machine since it was made, where the server is on it."""

    def __init__(self, server: Server, meter: Callable[[], Meter] = _scant.EnergyMeter) -> None:
        self._meter = meter() if server.host in _HERE else None

    def joules(self) -> float | None:
        """None without a meter. Its counters wrap: it must be asked once a minute."""
        if self._meter is None or not self._meter.counts:
            return None
        return self._meter.joules()


def get(server: Server, path: str) -> tuple[int, str]:
    """Status and text of a small answer."""
    connection: http.client.HTTPConnection
    if server.tls is not None:
        connection = http.client.HTTPSConnection(
            server.host, server.port, timeout=_WAIT_S, context=server.tls
        )
    else:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=_WAIT_S)
    try:
        connection.request("GET", server.path + path, headers=server.headers)
        answer = connection.getresponse()
        return answer.status, answer.read(_ANSWER_MAX).decode("utf-8", "replace")
    finally:
        connection.close()


def model_of(server: Server) -> str:
    """The first model that the server names."""
    try:
        status, text = get(server, "/v1/models")
    except ssl.SSLCertVerificationError as error:
        raise Refused(
            f"the certificate of {server.host}:{server.port} is not trusted: "
            f"{error.verify_message}; --ca FILE names one that is, --insecure takes any"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise Refused(
            f"no answer of {server.host}:{server.port}: {error}; is the server running?"
        ) from error
    with contextlib.suppress(ValueError, LookupError, TypeError):
        name = json.loads(text)["data"][0]["id"]
        if status == 200 and isinstance(name, str):
            return name
    raise Refused(
        f"{server.host}:{server.port} names no model at /v1/models (status {status}): "
        "give its name with --ask"
    )


def cpu_of_metrics(text: str) -> tuple[float, str] | None:
    """CPU seconds of a server's Prometheus text, and the name of the counter."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name in _CPU_NAMES:
            with contextlib.suppress(ValueError):
                found[name] = float(value.split()[0])
    return next(((found[name], name) for name in _CPU_NAMES if name in found), None)


def cpu_of_process(pid: int) -> float:
    """CPU seconds of a process, its threads and the children it waited for."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError as error:
        raise InvalidArgument(f"--pid {pid}: {error.strerror}") from error
    fields = text.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def read(server: Server, pid: int | None) -> Reading:
    """All that can be read now."""
    if pid is not None:
        return Reading(cpu_of_process(pid), f"/proc/{pid}")
    found = None
    with contextlib.suppress(OSError, http.client.HTTPException):
        status, text = get(server, "/metrics")
        found = cpu_of_metrics(text) if status == 200 else None
    cpu_s, source = found or (None, "")
    return Reading(cpu_s, source)


def spent(before: Reading, after: Reading, joules: float | None) -> dict[str, float | str | None]:
    """Between two readings."""
    cpu_s = None
    if before.cpu_s is not None and after.cpu_s is not None and after.cpu_s >= before.cpu_s:
        cpu_s = after.cpu_s - before.cpu_s
    return {"cpu_s": cpu_s, "cpu_source": before.cpu_source or None, "joules": joules}
