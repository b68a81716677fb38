"""Thin wrappers of the Linux calls that Python 3.10 lacks: namespaces, mounts, prctl.

Each raises OSError that names the call. Owner: whoever calls; nothing here keeps state.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_TIMERSLACK = 29
_PR_SET_CHILD_SUBREAPER = 36

libc = ctypes.CDLL(None, use_errno=True)


def _checked(name: str, result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    _checked("unshare", libc.unshare(ctypes.c_int(flags)))


def setns(fd: int, kind: int) -> None:
    _checked("setns", libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)))


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    _checked(
        f"mount {target}",
        libc.mount(
            source.encode(),
            target.encode(),
            kind.encode(),
            ctypes.c_ulong(flags),
            data.encode() or None,
        ),
    )


def unmount(target: str, flags: int = MNT_DETACH) -> None:
    _checked(f"umount {target}", libc.umount2(target.encode(), ctypes.c_int(flags)))


def _prctl(name: str, option: int, value: int | bytes) -> None:
    argument = value if isinstance(value, bytes) else ctypes.c_ulong(value)
    _checked(f"prctl {name}", libc.prctl(ctypes.c_int(option), argument, 0, 0, 0))


def die_with_parent(signal_number: int) -> None:
    """Ask the kernel to send this process a signal when the thread that forked it ends."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signal_number)


def become_subreaper() -> None:
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def set_timer_slack_ns(slack_ns: int) -> None:
    """How late the kernel may wake this thread to group timers; the default is 50 µs."""
    _prctl("PR_SET_TIMERSLACK", _PR_SET_TIMERSLACK, slack_ns)


def set_process_name(name: str) -> None:
    _prctl("PR_SET_NAME", _PR_SET_NAME, name.encode()[:15] + b"\0")


def open_namespace(kind: str) -> int:
    """A descriptor that holds this thread's namespace of ``kind`` ("net", "mnt", …) alive."""
    return os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def new_network_namespace() -> int:
    """Create an unnamed network namespace; it lives as long as the descriptor or a process."""
    before = open_namespace("net")
    try:
        unshare(CLONE_NEWNET)
        try:
            return open_namespace("net")
        finally:
            setns(before, CLONE_NEWNET)
    finally:
        os.close(before)


@contextmanager
def inside_network(fd: int) -> Iterator[None]:
    """Run the body in another network namespace; only for single-threaded processes."""
    before = open_namespace("net")
    try:
        setns(fd, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(before, CLONE_NEWNET)
    finally:
        os.close(before)
