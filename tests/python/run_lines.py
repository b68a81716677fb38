"""Lines of run logs for tests."""

from __future__ import annotations

import json
import pathlib
from typing import Any

RUN = {"kind": "run", "step": 0, "at_s": 0.0, "version": 1, "ranks": 2}
STEPS = {"kind": "steps", "step": 20, "at_s": 3.5, "steps": 20, "step_s": 0.1, "kept": 0.5}


def write_lines(path: pathlib.Path, *lines: Any) -> pathlib.Path:
    """A file of these lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
