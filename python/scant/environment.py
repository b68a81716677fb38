"""What Scant reads from the environment, once, when a communicator is created.

==========================  ======================================================================
``RANK``, ``WORLD_SIZE``    set by torchrun; Slurm's, Open MPI's and PMI's own names are known too
``SCANT_STORE``             a directory that every rank sees: the rendezvous without torch
``SCANT_JOB``               the job's name; peers of another job are refused
``SCANT_INTERFACE``         address or interface to use (else ``GLOO_SOCKET_IFNAME``)
``SCANT_PEER_TIMEOUT_S``    silence after which a peer is lost (1.5)
``SCANT_CONNECTIONS``       connections between two ranks (0: chosen by measurement)
``SCANT_RATE_LIMIT``        bytes per second that this rank may send (0: no limit)
``SCANT_SAME_HOST``         0 (no, false, off): no unix sockets between ranks of one host
==========================  ======================================================================

Another name that starts with ``SCANT_`` is most likely a typing error: it is warned of, once.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from scant.errors import InvalidArgument

__all__ = ["SETTINGS", "options", "rank_and_size", "store", "warn_of_unknown"]

_RANK_NAMES = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)

_YES = ("1", "yes", "true", "on")
_NO = ("0", "no", "false", "off")


def _integer(env: Mapping[str, str], name: str) -> int:
    return int(_number(env, name, int))


def _seconds(env: Mapping[str, str], name: str) -> float:
    return float(_number(env, name, float))


def _text(env: Mapping[str, str], name: str) -> str:
    return env[name]


def _boolean(env: Mapping[str, str], name: str) -> bool:
    word = env[name].strip().lower()
    if word in _YES:
        return True
    if word in _NO:
        return False
    raise InvalidArgument(
        f"{name}={env[name]!r} is neither yes ({', '.join(_YES)}) nor no ({', '.join(_NO)})"
    )


SETTINGS: dict[str, tuple[str, Callable[[Mapping[str, str], str], Any]]] = {
    "SCANT_INTERFACE": ("address", _text),
    "SCANT_JOB": ("job", _text),
    "SCANT_PEER_TIMEOUT_S": ("peer_timeout", _seconds),
    "SCANT_CONNECTIONS": ("connections_per_pair", _integer),
    "SCANT_RATE_LIMIT": ("rate_limit_bytes_per_second", _integer),
    "SCANT_SAME_HOST": ("same_host_sockets", _boolean),
}
"""Variable -> the communicator option that it sets, and how its text is read."""

# Read elsewhere: the server's key, serving's kernels, the rendezvous, what the lab tells its ranks,
# the demo, ./dev, the tests.
_OTHER_NAMES = frozenset(
    {
        "SCANT_API_KEY",
        "SCANT_KERNELS",
        "SCANT_STORE",
        "SCANT_LAB",
        "SCANT_LAB_HOST",
        "SCANT_DEMO_STEPS",
        "SCANT_GOLDEN_WRITE",
        "SCANT_CHECK_ONLY",
        "SCANT_DEV_LOCKED",
        "SCANT_EXCLUDE",
        "SCANT_SEED",
        "SCANT_TEST_MARK",
        "SCANT_TEST_ONLY",
    }
)

# What other programs set for the same purpose, best first.
_SUBSTITUTES = {
    "SCANT_INTERFACE": ("GLOO_SOCKET_IFNAME",),
    "SCANT_JOB": ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"),
}

_warned: set[str] = set()  # names, so that one process warns of each once


def rank_and_size(environ: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Rank and world size as the launcher set them."""
    env = os.environ if environ is None else environ
    for rank_name, size_name in _RANK_NAMES:
        if rank_name in env and size_name in env:
            return _number(env, rank_name, int), _number(env, size_name, int)
    for rank_name, size_name in _RANK_NAMES:
        for there, missing in ((rank_name, size_name), (size_name, rank_name)):
            if there in env:
                raise InvalidArgument(f"{there} is set but {missing} is not: set both")
    names = ", ".join(f"{rank}/{size}" for rank, size in _RANK_NAMES)
    raise InvalidArgument(f"no launcher found: none of {names} is set")


def options(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The communicator options that the environment asks for; absent ones keep their defaults."""
    env = os.environ if environ is None else environ
    warn_of_unknown(env)
    found: dict[str, Any] = {}
    for variable, (option, read) in SETTINGS.items():
        names = (variable, *_SUBSTITUTES.get(variable, ()))
        name = next((name for name in names if env.get(name)), None)
        if name is not None:
            found[option] = read(env, name)
    if "address" in found:
        found["address"] = found["address"].split(",")[0]
    return found


def warn_of_unknown(env: Mapping[str, str]) -> None:
    """Warn of each ``SCANT_`` variable that nothing reads, and name the nearest that is read."""
    known = {*SETTINGS, *_OTHER_NAMES}
    for name in sorted(set(env) - known - _warned):
        if not name.startswith("SCANT_"):
            continue
        _warned.add(name)
        near = difflib.get_close_matches(name, sorted({*SETTINGS, "SCANT_STORE"}), 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(SETTINGS))}"
        warnings.warn(f"unknown variable {name}: {hint}", RuntimeWarning, stacklevel=2)


def store(rank: int, size: int, environ: Mapping[str, str] | None = None) -> Any:
    """The rendezvous store: ``SCANT_STORE``, or torch's TCPStore at ``MASTER_ADDR``."""
    env = os.environ if environ is None else environ
    directory = env.get("SCANT_STORE")
    if directory:
        from scant.store import DirectoryStore

        return DirectoryStore(directory)
    if "MASTER_ADDR" not in env or "MASTER_PORT" not in env:
        raise InvalidArgument(
            "no rendezvous: set SCANT_STORE to a directory that every rank sees, "
            "or MASTER_ADDR and MASTER_PORT (needs torch)"
        )
    try:
        dist: Any = import_module("torch.distributed")
    except ImportError as error:
        raise InvalidArgument(
            "MASTER_ADDR is set but torch is not installed: set SCANT_STORE to a directory "
            "that every rank sees"
        ) from error
    agent = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    tcp = dist.TCPStore(
        env["MASTER_ADDR"],
        _number(env, "MASTER_PORT", int),
        size,
        is_master=rank == 0 and not agent,
        wait_for_workers=False,
        multi_tenant=True,
    )
    attempt = env.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"scant/{attempt}", tcp)


def _number(env: Mapping[str, str], name: str, kind: type) -> Any:
    try:
        value = kind(env[name])
    except ValueError as error:
        raise InvalidArgument(f"{name}={env[name]!r} is not a number") from error
    if value < 0:
        raise InvalidArgument(f"{name}={env[name]!r} is negative")
    return value
