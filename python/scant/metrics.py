"""Counters of this process: bytes, frames, operations, losses."""

from __future__ import annotations

from scant import _scant

__all__ = ["counters", "counters_prometheus"]


def counters() -> dict[str, int]:
    """All counters as ``{'name{label="value"}': count}``."""
    return {name + labels: value for name, labels, _, value in _scant.counters()}


def counters_prometheus() -> str:
    """The same as Prometheus text."""
    return _scant.counters_prometheus()
