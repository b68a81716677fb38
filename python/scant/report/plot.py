"""Plots as SVG text: lines and bars with axes, ticks, units, legend; the page brings colours."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 46


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: equally many x and y."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, about so many."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A tick's text: short, without noise digits."""
    return f"{value:.6g}"


class _Axes:
    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x0, self.x1 = x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5)
        self.y0, self.y1 = y if y[1] > y[0] else (y[0] - 0.5, y[0] + 0.5)

    def px(self, x: float) -> float:
        return LEFT + (x - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def py(self, y: float) -> float:
        return HEIGHT - BOTTOM - (y - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def _frame(axes: _Axes, x_name: str, y_name: str, x_ticks: Sequence[float]) -> list[str]:
    parts = []
    bottom = HEIGHT - BOTTOM
    for value in ticks(axes.y0, axes.y1):
        y = axes.py(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label(value)}</text>'
        )
    for value in x_ticks:
        x = axes.px(value)
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label(value)}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>'
    )
    parts.append(f'<text x="8" y="16" class="unit">{escape(y_name)}</text>')
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    x = float(WIDTH - RIGHT)
    for i in reversed(range(len(names))):
        x -= 7.2 * len(names[i]) + 8
        parts.append(f'<text x="{x:.0f}" y="16">{escape(names[i])}</text>')
        x -= 18
        parts.append(f'<rect class="fill{i}" x="{x:.0f}" y="7" width="12" height="10" rx="2"/>')
        x -= 10
    return parts


def _svg(title: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f"\n{body}\n</svg>"
    )


def line_plot(
    title: str, series: Sequence[Series], x_name: str, y_name: str, from_zero: bool = False
) -> str:
    """Lines over a common x axis."""
    points = [(x, y) for one in series for x, y in zip(one.x, one.y, strict=True)]
    if not points:
        return f"<p>{escape(title)}: no data.</p>"
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low = 0.0 if from_zero else min(ys)
    margin = 0.04 * (max(ys) - low)
    axes = _Axes((min(xs), max(xs)), (low if from_zero else low - margin, max(ys) + margin))
    parts = _frame(axes, x_name, y_name, ticks(axes.x0, axes.x1, 8))
    for i, one in enumerate(series):
        path = " ".join(
            f"{axes.px(x):.1f},{axes.py(y):.1f}" for x, y in zip(one.x, one.y, strict=True)
        )
        parts.append(f'<polyline class="line{i}" points="{path}"/>')
    parts += _legend([one.name for one in series])
    return _svg(title, parts)


def bar_plot(title: str, names: Sequence[str], values: Sequence[float], y_name: str) -> str:
    """One bar a name, its value above it."""
    if not values:
        return f"<p>{escape(title)}: no data.</p>"
    axes = _Axes((0.0, float(len(values))), (0.0, max(values) * 1.12 or 1.0))
    parts = _frame(axes, "", y_name, [])
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        left, right = axes.px(i + 0.22), axes.px(i + 0.78)
        top = axes.py(value)
        parts.append(
            f'<rect class="fill{i}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{HEIGHT - BOTTOM - top:.1f}" rx="3"/>'
        )
        middle = (left + right) / 2
        parts.append(
            f'<text x="{middle:.1f}" y="{top - 6:.1f}" text-anchor="middle">{value:.4g}</text>'
        )
        parts.append(
            f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
            f"{escape(name)}</text>"
        )
    return _svg(title, parts)
