"""The two ways on after a loss that docs/python.md names: the examples do what they say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HERE, ROOT, launch_ranks, worker_path

pytest.importorskip("torch")

EXAMPLES = ROOT / "examples"
DIES = str(worker_path("dies.py"))


def test_survivors_go_on_without_the_lost_rank(tmp_path: Path) -> None:
    launch = launch_ranks(
        [DIES, "1", "20", str(tmp_path / "died"), str(EXAMPLES / "survivors.py")], 3, 120.0
    )
    assert launch.returncodes == [0, -signal.SIGKILL, 0], launch.text()
    found = re.search(r"^2 ranks: loss ([\d.]+)$", launch.outputs[0], flags=re.MULTILINE)
    assert found is not None, launch.text()
    assert float(found[1]) < 0.01


def test_torchrun_starts_anew_from_the_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", "1"]
    command += [DIES, "1", "25", str(tmp_path / "died")]
    command += [str(EXAMPLES / "resume.py"), str(tmp_path / "line.pt")]
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    # 24 steps were done, 20 are in the checkpoint; the others were repeated.
    assert re.search(r"^steps 20 to 100: loss 0\.00", done.stdout, flags=re.MULTILINE), done.stdout
