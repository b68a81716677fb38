"""The examples of scant.Journal, run as a user would: killed in the middle, and started again."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("torch")

EXAMPLES = ROOT / "examples"
ALONE = [sys.executable, "-W", "ignore"]
TORCHRUN = [*ALONE, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*command: str, expected: int | None = 0) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )
    text = done.stdout + done.stderr
    assert expected is None or done.returncode == expected, text
    return text


def found(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text, flags=re.MULTILINE)
    assert match is not None, text
    return match


@pytest.mark.parametrize("launcher", [ALONE, TORCHRUN], ids=["alone", "torchrun"])
def test_plain_loop(launcher: list[str], tmp_path: Path) -> None:
    command = [*launcher, str(EXAMPLES / "journal.py"), str(tmp_path / "j")]
    first = found(r"^steps 0 to 60: off by (.*)$", run(*command))
    again = found(r"^steps 60 to 60: off by (.*)$", run(*command))
    assert first[1] == again[1]


def test_elastic(tmp_path: Path) -> None:
    command = [*TORCHRUN, "--max-restarts", "1", str(EXAMPLES / "journal_elastic.py")]
    text = run(*command, str(tmp_path / "j"))
    found(r"^attempt 1: step 24 is back: base \d+ and \d+ steps of the log$", text)
    found(r"^steps lost: 0$", text)
    found(r"^attempt 1: step 60, loss 0\.\d+$", text)


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


FRAMEWORKS = [
    pytest.param("journal_lightning.py", marks=needs("lightning"), id="lightning"),
    pytest.param(
        "journal_trainer.py", marks=[needs("transformers"), needs("accelerate")], id="trainer"
    ),
]


@pytest.mark.parametrize("example", FRAMEWORKS)
@pytest.mark.parametrize("launcher", [ALONE, TORCHRUN], ids=["alone", "torchrun"])
def test_frameworks_go_on_to_the_bit(launcher: list[str], example: str, tmp_path: Path) -> None:
    command = [*launcher, str(EXAMPLES / example)]
    whole = found(r"steps.*: off by (.*)$", run(*command, str(tmp_path / "whole")))
    killed = run(*command, str(tmp_path / "j"), "10", expected=None)
    assert "off by" not in killed, killed
    if launcher is TORCHRUN:
        assert "SIGKILL" in killed, killed
    text = run(*command, str(tmp_path / "j"))
    found(r"^goes on behind step 10\b", text)
    assert found(r"steps.*: off by (.*)$", text)[1] == whole[1]


def test_kill_is_what_ends_the_example(tmp_path: Path) -> None:
    """Without a framework: any moment of the plain example will do."""
    program = (
        "import os, runpy, signal, sys, torch\n"
        "real, done = torch.optim.Adam.step, []\n"
        "def step(self, *arguments):\n"
        "    done.append(1)\n"
        "    if len(done) == 31: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, *arguments)\n"
        "torch.optim.Adam.step = step\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    example, journal = str(EXAMPLES / "journal.py"), str(tmp_path / "j")
    run(*ALONE, "-c", program, example, journal, expected=-signal.SIGKILL)
    whole = found(r"off by (.*)$", run(*ALONE, example, str(tmp_path / "whole")))
    # It dies within step 31, whose gradients may be in the log already.
    again = found(r"^steps 3[01] to 60: off by (.*)$", run(*ALONE, example, journal))
    assert again[1] == whole[1]
