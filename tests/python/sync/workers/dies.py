"""Runs a script in which one rank dies: dies.py RANK STEP MARK script [argument ...].

It dies in place of its STEP-th optimizer step, unless the file MARK says that it died before.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from ranks import RANK

victim, deadly, mark = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
sys.argv = sys.argv[4:]
real_step = torch.optim.SGD.step
done = 0


def step(self: torch.optim.SGD, *arguments: Any) -> Any:
    global done
    done += 1
    if victim == RANK and done == deadly and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return real_step(self, *arguments)


sgd: Any = torch.optim.SGD
sgd.step = step
runpy.run_path(sys.argv[0], run_name="__main__")
