"""Rates, sizes, times and shares as people write them, and back.

Rates follow tc: ``mbit`` is 10^6 bits per second and ``MBps``-like byte rates end in ``bps``.
"""

from __future__ import annotations

import re

from scant.lab.errors import UsageError

_RATE = {
    "bit": 1.0,
    "kbit": 1e3,
    "mbit": 1e6,
    "gbit": 1e9,
    "kibit": 2.0**10,
    "mibit": 2.0**20,
    "gibit": 2.0**30,
    "bps": 8.0,
    "kbps": 8e3,
    "mbps": 8e6,
    "gbps": 8e9,
}
_SIZE = {
    "b": 1.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "kib": 2.0**10,
    "mib": 2.0**20,
    "gib": 2.0**30,
}
_TIME = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}

RATE_MIN_BITS_PER_SECOND = 8_000  # a full frame takes 1.5 s there; slower links starve TCP
RATE_MAX_BITS_PER_SECOND = 100_000_000_000  # beyond what a veth carries on any machine
DELAY_MAX_SECONDS = 10.0

_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Zµ%]*)")


def _split(text: str, name: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{name}: {text!r} is not a number with a unit")
    return float(match.group(1)), match.group(2)


def _scaled(text: str, name: str, units: dict[str, float], example: str) -> float:
    value, unit = _split(text, name)
    if value == 0:
        return 0.0  # no unit is needed
    factor = units.get(unit) or units.get(unit.lower())
    if factor is None:
        known = " ".join(units)
        what = f"unit {unit!r} is unknown" if unit else "a unit is missing"
        raise UsageError(f"{name}: {what} in {text!r} (write {example}; units: {known})")
    return value * factor


def parse_rate(text: str, name: str = "--rate") -> int:
    """Bits per second."""
    rate = round(_scaled(text, name, _RATE, "100mbit"))
    if not RATE_MIN_BITS_PER_SECOND <= rate <= RATE_MAX_BITS_PER_SECOND:
        low = format_rate(RATE_MIN_BITS_PER_SECOND)
        high = format_rate(RATE_MAX_BITS_PER_SECOND)
        raise UsageError(f"{name}: {text!r} is outside {low} to {high}")
    return rate


def parse_duration(text: str, name: str, maximum: float | None = None) -> float:
    """Seconds."""
    seconds = _scaled(text, name, _TIME, "2ms")
    if maximum is not None and seconds > maximum:
        raise UsageError(f"{name}: {text!r} is above {format_duration(maximum)}")
    return seconds


def parse_delay(text: str, name: str = "--delay") -> float:
    return parse_duration(text, name, DELAY_MAX_SECONDS)


def parse_size(text: str, name: str) -> int:
    """Bytes."""
    return round(_scaled(text, name, _SIZE, "512kb"))


def parse_share(text: str, name: str) -> float:
    """A probability: ``0.1%`` or ``0.001``."""
    value, unit = _split(text, name)
    if unit not in ("", "%"):
        raise UsageError(f"{name}: unit {unit!r} is unknown in {text!r} (write 0.1% or 0.001)")
    share = value / 100 if unit == "%" else value
    if not unit and 1 < share <= 100:
        raise UsageError(f"{name}: {text!r} is above 1; write {text.strip()}% or {value / 100:g}")
    if share > 1:
        raise UsageError(f"{name}: {text!r} is above 100 %")
    return share


def _with_unit(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for factor, unit in steps:
        if value >= factor:
            return f"{value / factor:.4g} {unit}"
    factor, unit = steps[-1]
    return f"{value / factor:.4g} {unit}"


def format_rate(bits_per_second: float) -> str:
    steps = ((1e9, "Gb/s"), (1e6, "Mb/s"), (1e3, "kb/s"), (1.0, "b/s"))
    return _with_unit(bits_per_second, steps)


def format_duration(seconds: float) -> str:
    return _with_unit(seconds, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")))


def format_share(share: float) -> str:
    return f"{share * 100:.4g} %"
