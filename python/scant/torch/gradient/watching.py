"""Rank 0 tells what a wrapped model does: the run log, metrics, TensorBoard.

``docs/run_log.md`` has the lines; the planner's come with the reports of steps.
"""

from __future__ import annotations

import os
import socket
import time
from datetime import datetime, timezone
from typing import Any

import torch.distributed as dist

import scant
from scant import _scant
from scant.runlog import Watch
from scant.torch.gradient.wrap_options import WrapOptions

__all__ = ["Watching"]


class Watching:
    """Nothing on ranks other than the group's first, or where nobody asked to watch."""

    def __init__(self, options: WrapOptions, layout: _scant.GradientLayout, group: Any) -> None:
        self._watch: Watch | None = None
        self._begun = time.monotonic()
        self._steps = 0
        self._samples = 0  # since the last line of `steps`
        if dist.get_rank(group) != 0:
            return
        watch = Watch(options.log, options.metrics_port, options.tensorboard)
        if not watch:
            return
        self._watch = watch
        self._write(
            {
                "kind": "run",
                "version": 1,
                "scant": scant.__version__,
                "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "ranks": layout.ranks,
                "tensors": len(layout.offsets),
                "elements": layout.elements,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "options": options.described(),
            }
        )

    def step(self, report: dict[str, Any]) -> None:
        """A step is over."""
        self._steps += 1
        self._samples += report["samples"]
        if self._watch is None:
            return
        for line in report.get("agreement", ()):
            if line["kind"] == "steps":
                line = {**line, "samples": self._samples or None}
                self._samples = 0
            self._write(line)

    def close(self) -> None:
        """Closes the files and the port."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _write(self, line: dict[str, Any]) -> None:
        assert self._watch is not None
        at_s = round(time.monotonic() - self._begun, 6)
        self._watch.write({**line, "step": self._steps, "at_s": at_s})
