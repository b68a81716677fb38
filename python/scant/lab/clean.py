"""``scant lab --clean``: ends labs whose owner is gone.

A lab dies with its owner, so this finds something only where a guardian was stopped (SIGSTOP) or
its owner's pipe is still held by a stray child.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

_MARK = b"scant.lab.agent"


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def orphaned_guardians() -> list[int]:
    """Guardians of this user whose owner, named on their command line, no longer lives."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError, KeyError, ValueError, IndexError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if not any(_MARK in word for word in words[:3]):
                continue
            pid = int(folder.name)
            status = _status(pid)
            owner = int(words[words.index(b"--owner") + 1])
            same_user = status["Uid"].split()[0] == str(os.getuid())
            # Only the guardian: the agent shares its command line but is the guardian's child.
            parent_words = Path(f"/proc/{status['PPid']}/cmdline").read_bytes()
            if same_user and _MARK not in parent_words and not Path(f"/proc/{owner}").exists():
                found.append(pid)
    return found


def sweep() -> int:
    pids = orphaned_guardians()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if pids:
        print(f"ended {len(pids)} lab(s) whose owner was gone")
    else:
        print("nothing to clean: a lab's namespaces have no names and die with it")
    return 0
