"""Tables and curves as text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["render", "sparkline"]

_BARS = "▁▂▃▄▅▆▇█"


def render(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table: its first column to the left, the others to the right."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    out = []
    for line in lines:
        first = line[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        out.append("  ".join([first, *rest]).rstrip())
    return "\n".join(out)


def sparkline(values: Sequence[float]) -> str:
    """One bar a value, from the least to the most; alike values lie in the middle."""
    if not values:
        return ""
    low, high = min(values), max(values)
    if not high > low:
        return _BARS[len(_BARS) // 2 - 1] * len(values)
    top = len(_BARS) - 1
    return "".join(_BARS[round((value - low) / (high - low) * top)] for value in values)
