"""Numbers as people read them; what is not known is a dash."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

__all__ = [
    "UNKNOWN",
    "duration",
    "error",
    "fold",
    "median",
    "number",
    "rate",
    "share",
    "size",
    "span",
    "times",
    "whole",
]

UNKNOWN = "–"


def number(value: float | None, digits: int = 3) -> str:
    """``5.1``, ``12,400``: so many digits that count."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # 0.9999 has as many digits as 1
    if not 1e-6 <= abs(rounded) < 1e12:
        return f"{rounded:.{digits}g}"
    return f"{value:,.{max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)}f}"


def duration(seconds: float | None) -> str:
    """``340 ms``, ``2.04 s``: a time within a step."""
    if seconds is None:
        return UNKNOWN
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= 0.9995 * size:  # what is shown as 1.00
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds * 1e6)} µs" if seconds else "0 ms"


def span(seconds: float) -> str:
    """``5 min 12 s``: how long a run went."""
    if not seconds < 1e9:
        return "ages"
    whole_s = int(seconds)
    if whole_s < 60:
        return f"{whole_s} s"
    minutes, rest = divmod(whole_s, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def size(count: float | None) -> str:
    """``860 kB``, ``1.23 MB``: bytes in powers of ten, as links count them."""
    if count is None:
        return UNKNOWN
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= 0.9995 * factor:  # what is shown as 1.00
            return f"{number(count / factor)} {unit}"
    return f"{count:.0f} B"


def rate(bytes_per_s: float | None) -> str:
    """``99 Mb/s``."""
    if bytes_per_s is None:
        return UNKNOWN
    bits = 8 * bytes_per_s
    for unit, size in (("Gb/s", 1e9), ("Mb/s", 1e6), ("kb/s", 1e3)):
        if bits >= size:
            return f"{number(bits / size)} {unit}"
    return f"{number(bits)} b/s"


def share(value: float | None) -> str:
    """``97.2 %``, ``99.96 %``; all of it, and only that, is 100 %."""
    if value is None:
        return UNKNOWN
    if 0.999 <= value < 1:
        return f"{min(100 * value, 99.99):.2f} %"
    return "100 %" if value == 1 else f"{100 * value:.1f} %"


def error(value: float | None) -> str:
    """``+3.1 %``."""
    return UNKNOWN if value is None else f"{100 * value:+.1f} %".replace("-", "−")


def times(value: float | None) -> str:
    """``5.8×``."""
    return UNKNOWN if value is None else f"{number(value)}×"


def whole(value: float | None) -> str:
    """``1,234``."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def fold(a: float | None, b: float | None) -> float | None:
    """a ÷ b, where both are known and b is above 0."""
    return None if a is None or b is None or not b > 0 else a / b


def median(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
