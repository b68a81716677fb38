"""What Scant reads from the environment, once, when a communicator is created.

==========================  ======================================================================
``RANK``, ``WORLD_SIZE``    set by torchrun; Slurm's, Open MPI's and PMI's own names are known too
``SCANT_STORE``             a directory that every rank sees: the rendezvous without torch
``SCANT_JOB``               the job's name; peers of another job are refused
``SCANT_INTERFACE``         address or interface to use (else ``GLOO_SOCKET_IFNAME``)
``SCANT_PEER_TIMEOUT_S``    silence after which a peer is lost (1.5)
``SCANT_CONNECTIONS``       connections between two ranks (0: chosen by measurement)
``SCANT_RATE_LIMIT``        bytes per second that this rank may send (0: no limit)
``SCANT_SAME_HOST``         0: no unix sockets between ranks of one host
==========================  ======================================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from scant.errors import InvalidArgument

__all__ = ["options", "rank_and_size", "store"]

_RANK_NAMES = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)


def rank_and_size(environ: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Rank and world size as the launcher set them."""
    env = os.environ if environ is None else environ
    for rank_name, size_name in _RANK_NAMES:
        if rank_name in env and size_name in env:
            return _number(env, rank_name, int), _number(env, size_name, int)
    names = ", ".join(f"{rank}/{size}" for rank, size in _RANK_NAMES)
    raise InvalidArgument(f"no launcher found: none of {names} is set")


def options(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The communicator options that the environment asks for; absent ones keep their defaults."""
    env = os.environ if environ is None else environ
    found: dict[str, Any] = {}
    interface = env.get("SCANT_INTERFACE") or env.get("GLOO_SOCKET_IFNAME")
    if interface:
        found["address"] = interface.split(",")[0]
    job = env.get("SCANT_JOB") or env.get("TORCHELASTIC_RUN_ID") or env.get("SLURM_JOB_ID")
    if job:
        found["job"] = job
    if env.get("SCANT_PEER_TIMEOUT_S"):
        found["peer_timeout"] = _number(env, "SCANT_PEER_TIMEOUT_S", float)
    if env.get("SCANT_CONNECTIONS"):
        found["connections_per_pair"] = _number(env, "SCANT_CONNECTIONS", int)
    if env.get("SCANT_RATE_LIMIT"):
        found["rate_limit_bytes_per_second"] = _number(env, "SCANT_RATE_LIMIT", int)
    if env.get("SCANT_SAME_HOST"):
        found["same_host_sockets"] = env["SCANT_SAME_HOST"] != "0"
    return found


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
