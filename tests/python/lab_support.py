"""What the tests of the lab share: running the command line, and looking for what it left."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from waiting import DEADLINE_SECONDS

import scant.lab
from scant.lab import Lab, LabError

PACKAGE = str(Path(scant.lab.__file__).resolve().parents[2])


@functools.cache
def why_no_namespaces() -> str:
    """Empty when hosts can be namespaces here, else the reason."""
    try:
        with Lab(1):
            return ""
    except LabError as error:
        return str(error)


@functools.cache
def why_no_loss() -> str:
    """Empty when XDP programs can be loaded, else the reason."""
    try:
        with Lab(1, scant.lab.LinkOptions(loss=scant.lab.Loss.uniform(0.5))):
            return ""
    except LabError as error:
        return str(error)


needs_namespaces = pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces())
needs_loss = pytest.mark.skipif(bool(why_no_loss()), reason=why_no_loss())


def lab_environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (PACKAGE, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def start_lab(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """``scant lab`` in a session of its own, both streams piped."""
    return subprocess.Popen(
        [sys.executable, "-m", "scant.lab", *arguments],
        env=lab_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scant.lab", *arguments],
        env=lab_environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def holders(namespace: str) -> list[int]:
    """Processes that live in, or hold a descriptor of, a namespace such as ``net:[4026532…]``."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):
            links = [folder / "ns" / "net", folder / "ns" / "pid_for_children"]
            links += list((folder / "fd").iterdir())
            for link in links:
                with suppress(OSError):
                    if str(link.readlink()) == namespace:
                        found.append(int(folder.name))
                        break
    return found


def processes_with_mark(mark: str) -> list[int]:
    """Processes whose environment holds the mark: ranks of a test and all their children."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError):
                if mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
    return found
