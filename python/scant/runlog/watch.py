"""Takes each line of a run to those who watch it: a file, Prometheus, TensorBoard.

One thread's. Opening raises for what cannot work; afterwards a sink that fails is dropped with one
warning and training goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from collections.abc import Mapping
from typing import Any, Protocol

from scant.closing import Closing
from scant.errors import InvalidArgument
from scant.runlog.lines import UNKNOWN_AT_0
from scant.runlog.writer import RunLog, warn

__all__ = ["Watch"]

# field of a ``steps`` line -> gauge
_GAUGES = {
    "backward_s": "scant_backward_seconds",
    "bytes_per_s": "scant_link_bytes_per_second",
    "dense_bytes": "scant_dense_bytes_per_step",
    "encode_s": "scant_encode_seconds",
    "exposed_s": "scant_exposed_seconds",
    "kept": "scant_energy_kept_ratio",
    "predicted_s": "scant_predicted_step_seconds",
    "residual": "scant_residual_ratio",
    "rho": "scant_rho",
    "sent_bytes": "scant_sent_bytes_per_step",
    "step": "scant_steps",
    "step_s": "scant_step_seconds",
}


class _Sink(Protocol):
    def write(self, line: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Watch(Closing):
    """Where the lines of a run go::

        watch = Watch(log="run.jsonl", metrics_port=9400, tensorboard="runs/a")
        watch.write({"kind": "run", "step": 0, "at_s": 0.0, "version": 1, ...})
        watch.close()

    Args:
        log: file for ``scant explain`` and ``scant top``; what was there is replaced.
        metrics_port: port on this host alone where Prometheus finds ``/metrics``; 0: any.
        tensorboard: folder for TensorBoard's files.
    """

    def __init__(
        self,
        log: str | os.PathLike[str] | None = None,
        metrics_port: int | None = None,
        tensorboard: str | os.PathLike[str] | None = None,
    ) -> None:
        self._sinks: dict[str, _Sink] = {}
        self.metrics_port: int | None = None
        try:
            if log is not None:
                self._sinks["run log"] = RunLog(log)
            if metrics_port is not None:
                gauges = _Gauges(metrics_port)
                self._sinks["metrics"] = gauges
                self.metrics_port = gauges.port
            if tensorboard is not None:
                self._sinks["TensorBoard"] = _TensorBoard(tensorboard)
        except BaseException:
            self.close()
            raise

    def __bool__(self) -> bool:
        """Whether anybody watches: lines for nobody need not be made."""
        return bool(self._sinks)

    def write(self, line: Mapping[str, Any]) -> None:
        """A line of ``docs/run_log.md`` to all; never raises."""
        for name, sink in list(self._sinks.items()):
            try:
                sink.write(line)
            except Exception as error:
                warn(f"{name} ends here, training goes on: {error}")
                del self._sinks[name]
                with contextlib.suppress(Exception):
                    sink.close()

    def close(self) -> None:
        """Again and again if you like; never raises."""
        while self._sinks:
            name, sink = self._sinks.popitem()
            try:
                sink.close()
            except Exception as error:
                warn(f"{name}: {error}")


def _known(line: Mapping[str, Any], field: str) -> float | None:
    """A number of the line, unless it stands for what is not known."""
    value = line.get(field)
    if value is None or not math.isfinite(value) or (value == 0 and field in UNKNOWN_AT_0):
        return None
    return float(value)


class _Gauges:
    """The newest ``steps`` line as gauges of this process, and the endpoint that shows them."""

    def __init__(self, port: int) -> None:
        from scant import metrics  # needs the extension, which a reader of logs does without

        self._metrics = metrics
        self._endpoint = metrics.serve(port)
        self.port = self._endpoint.port
        self._guards = 0
        metrics.set_gauges({"scant_guard_events": 0})

    def write(self, line: Mapping[str, Any]) -> None:
        if line["kind"] == "steps":
            self._metrics.set_gauges({name: _known(line, field) for field, name in _GAUGES.items()})
        elif line["kind"] == "guard":
            self._guards += 1
            self._metrics.set_gauges({"scant_guard_events": self._guards})
        if line["kind"] in ("guard", "profile") and _known(line, "plain_s") is not None:
            self._metrics.set_gauges({"scant_plain_step_seconds": line["plain_s"]})

    def close(self) -> None:
        self._endpoint.close()
        names = [*_GAUGES.values(), "scant_guard_events", "scant_plain_step_seconds"]
        self._metrics.set_gauges(dict.fromkeys(names))


class _TensorBoard:
    """Scalars ``scant/step_s`` and so on at their step; choices and guard events as texts."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise InvalidArgument(
                f"tensorboard: not installed ({error}); pip install tensorboard"
            ) from error
        try:
            self._writer = module.SummaryWriter(log_dir=os.fspath(folder))
        except (OSError, TypeError) as error:
            raise InvalidArgument(f"tensorboard: {folder!r} cannot be written: {error}") from error

    def write(self, line: Mapping[str, Any]) -> None:
        kind, step = line["kind"], line["step"]
        if kind == "steps":
            for field in _GAUGES:
                value = _known(line, field)
                if value is not None and field != "step":
                    self._writer.add_scalar(f"scant/{field}", value, step)
            self._writer.flush()
        elif kind == "profile" and (plain_s := _known(line, "plain_s")) is not None:
            self._writer.add_scalar("scant/plain_s", plain_s, step)
        elif kind == "plan" and line.get("changed", True):
            text = f"{line.get('chosen', {}).get('text', '?')}: {line.get('why', '')}"
            self._writer.add_text("scant/plan", text, step)
        elif kind in ("guard", "note"):
            self._writer.add_text(f"scant/{kind}", line.get("why") or line.get("text", ""), step)

    def close(self) -> None:
        self._writer.close()
