"""Plots as SVG text: lines and bars with axes, ticks, units, legend; the page brings colours."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 46
KEY, LEGEND_ROW = 18, 18


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


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, both above 0, for a logarithmic axis."""
    decades = math.log10(high / low)
    steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0)
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    values = [step * 10.0**power for power in powers for step in (steps if decades < 3 else (1.0,))]
    return [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def label(value: float) -> str:
    """A tick's text: short, without noise digits."""
    return f"{value:.6g}"


def bytes_label(size: float) -> str:
    """``64 KiB``: sizes of messages are powers of two."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{size / (1 << power):.4g} {unit}"
    return f"{size:g} B"


class _Axes:
    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x0, self.x1 = x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5)
        self.y0, self.y1 = y if y[1] > y[0] else (y[0] - 0.5, y[0] + 0.5)

    def px(self, x: float) -> float:
        return LEFT + (x - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def py(self, y: float) -> float:
        return HEIGHT - BOTTOM - (y - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


_Tick = tuple[float, str]  # where on the axis, and its text


def _plain(values: Sequence[float]) -> list[_Tick]:
    return [(value, label(value)) for value in values]


def _frame(
    axes: _Axes, x_name: str, y_name: str, x_ticks: Sequence[_Tick], y_ticks: Sequence[_Tick]
) -> list[str]:
    parts = []
    bottom = HEIGHT - BOTTOM
    for value, text in y_ticks:
        y = axes.py(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in x_ticks:
        x = axes.px(value)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>'
    )
    parts.append(f'<text x="8" y="16" class="unit">{escape(y_name)}</text>')
    return parts


def _legend_rows(names: Sequence[str], y_name: str) -> list[list[int]]:
    """Which names stand together: as many as fit beside the unit."""
    room = WIDTH - RIGHT - _text_width(y_name) - 16
    rows: list[list[int]] = []
    used = 0.0
    for i, name in enumerate(names):
        if not rows or used + _key_width(name) > room:
            rows.append([])
            used = 0.0
        rows[-1].append(i)
        used += _key_width(name)
    return rows


def _text_width(text: str) -> float:
    return 7.2 * len(text)  # more than it is, whatever the font


def _key_width(name: str) -> float:
    return KEY + 6 + _text_width(name) + 12


def _legend(rows: Sequence[Sequence[int]], names: Sequence[str]) -> list[str]:
    parts = []
    for above, row in enumerate(reversed(rows)):
        y = 16 - LEGEND_ROW * above
        x = float(WIDTH - RIGHT) - sum(_key_width(names[i]) for i in row)
        for i in row:
            parts.append(
                f'<line class="key line{i}" x1="{x:.0f}" x2="{x + KEY:.0f}" y1="{y - 4}" '
                f'y2="{y - 4}"/>'
            )
            parts.append(f'<text x="{x + KEY + 6:.0f}" y="{y}">{escape(names[i])}</text>')
            x += _key_width(names[i])
    return parts


def _svg(title: str, parts: Sequence[str], legend_rows: int = 1) -> str:
    above = LEGEND_ROW * max(legend_rows - 1, 0)  # the plot itself is as high as any other
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 {-above} {WIDTH} {HEIGHT + above}" role="img" '
        f'aria-label="{escape(title, quote=True)}">'
        f"\n{body}\n</svg>"
    )


def _with_legend(title: str, parts: Sequence[str], names: Sequence[str], y_name: str) -> str:
    rows = _legend_rows(names, y_name)
    return _svg(title, [*parts, *_legend(rows, names)], len(rows))


def _marks(axes: _Axes, marks: Sequence[_Tick]) -> list[str]:
    """Lines upright across the plot, each with its text above unless another stands there."""
    parts = []
    free = -math.inf
    texts: dict[float, list[str]] = {}
    for x, text in sorted(marks):
        if axes.x0 <= x <= axes.x1:
            texts.setdefault(x, []).append(text)
    for x, names in texts.items():
        at, text = axes.px(x), ", ".join(names)
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
        if at - _text_width(text) / 2 >= free:
            parts.append(
                f'<text x="{at:.1f}" y="{TOP - 4}" text-anchor="middle">{escape(text)}</text>'
            )
            free = at + _text_width(text) / 2
    return parts


def line_plot(
    title: str,
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    from_zero: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Lines over a common x axis; ``marks`` are places on it with a short text."""
    points = [(x, y) for one in series for x, y in zip(one.x, one.y, strict=True)]
    if not points:
        return f"<p>{escape(title)}: no data.</p>"
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low = 0.0 if from_zero else min(ys)
    margin = 0.04 * (max(ys) - low)
    axes = _Axes((min(xs), max(xs)), (low if from_zero else low - margin, max(ys) + margin))
    x_ticks, y_ticks = ticks(axes.x0, axes.x1, 8), ticks(axes.y0, axes.y1)
    parts = _frame(axes, x_name, y_name, _plain(x_ticks), _plain(y_ticks))
    parts += _marks(axes, marks)
    for i, one in enumerate(series):
        places = [(axes.px(x), axes.py(y)) for x, y in zip(one.x, one.y, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line{i}" points="{path}"/>')
        if len(places) == 1:  # a line of one point is not drawn
            (x, y) = places[0]
            parts.append(f'<circle class="fill{i}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    return _with_legend(title, parts, [one.name for one in series], y_name)


def ratio_plot(title: str, series: Sequence[Series], y_name: str) -> str:
    """Ratios (y) over sizes in bytes (x), both logarithmic, so that 2 and 1/2 lie equally far from
    1, which is drawn across. What is not above 0 has no place there and is left out."""
    drawn = [
        [(math.log2(x), math.log10(y)) for x, y in zip(s.x, s.y, strict=True) if min(x, y) > 0]
        for s in series
    ]
    points = [point for line in drawn for point in line]
    if not points:
        return f"<p>{escape(title)}: no data.</p>"
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    # A range below this would show noise as if it were much.
    low, high = min(*ys, math.log10(0.8)), max(*ys, math.log10(1.25))
    margin = 0.04 * (high - low)
    side = 0.04 * (max(xs) - min(xs))  # room for half a label
    axes = _Axes((min(xs) - side, max(xs) + side), (low - margin, high + margin))
    x_ticks: list[_Tick] = []
    for x in sorted(set(xs)):
        if not x_ticks or axes.px(x) - axes.px(x_ticks[-1][0]) >= 56:  # wider than a label
            x_ticks.append((x, bytes_label(2**x)))
    y_values = log_ticks(10**axes.y0, 10**axes.y1)
    y_ticks = [(math.log10(value), label(value)) for value in y_values]
    parts = _frame(axes, "size", y_name, x_ticks, y_ticks)
    one = axes.py(0.0)
    parts.append(
        f'<line class="one" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{one:.1f}" y2="{one:.1f}"/>'
    )
    for i, line in enumerate(drawn):
        places = [(axes.px(x), axes.py(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line{i}" points="{path}"/>')
        parts += [f'<circle class="fill{i}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
    return _with_legend(title, parts, [s.name for s in series], y_name)


def point_plot(
    title: str,
    points: Sequence[tuple[float, float, str]],
    chosen: int,
    x_name: str,
    y_name: str,
    y_most: float = math.inf,
) -> str:
    """Points (x, y, text); the one of index ``chosen`` is ringed. Points in one place share a line
    of text; one that would hide another, above or below its point, is left out. No y lies above
    ``y_most``."""
    if not points:
        return f"<p>{escape(title)}: no data.</p>"
    axes = _Axes(_widened([x for x, _, _ in points]), _widened([y for _, y, _ in points]))
    y_ticks = [value for value in ticks(axes.y0, axes.y1) if value <= y_most]
    x_ticks = ticks(axes.x0, axes.x1, 8)
    parts = _frame(axes, x_name, y_name, _plain(x_ticks), _plain(y_ticks))
    # The chosen one last, so that none covers it; its text first, so that none is in its way.
    order = sorted(range(len(points)), key=lambda i: i == chosen)
    for i in order:
        x, y = axes.px(points[i][0]), axes.py(points[i][1])
        fill = 0 if i == chosen else 1
        parts.append(f'<circle class="fill{fill}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        if i == chosen:
            parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="9"/>')
    first = [chosen] if 0 <= chosen < len(points) else []
    places = [
        (axes.px(points[i][0]), axes.py(points[i][1]), points[i][2])
        for i in [*first, *(i for i in range(len(points)) if i != chosen)]
    ]
    return _svg(title, [*parts, *_point_texts(places, bool(first))])


def _point_texts(places: Sequence[tuple[float, float, str]], ringed: bool) -> list[str]:
    groups: list[tuple[float, float, list[str]]] = []
    for x, y, text in places:
        near = [texts for gx, gy, texts in groups if abs(gx - x) < 8 and abs(gy - y) < 8]
        if near:
            near[0].append(text)
        else:
            groups.append((x, y, [text]))
    parts = []
    taken: list[tuple[float, float, float]] = []  # left, right and height of texts
    for i, (x, y, texts) in enumerate(groups):
        text = ", ".join(texts[:4]) + (" …" if len(texts) > 4 else "")
        half = _text_width(text) / 2
        away = 5 if ringed and i == 0 else 0
        for high in (y - 8 - away, y + 18 + away):  # above, else below
            if all(
                abs(high - other) >= 13 or x - half >= right or x + half <= left
                for left, right, other in taken
            ):
                taken.append((x - half, x + half, high))
                parts.append(
                    f'<text x="{x:.1f}" y="{high:.1f}" text-anchor="middle">{escape(text)}</text>'
                )
                break
    return parts


def _widened(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis: some room on both sides, and never so little that noise looks much."""
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), 0.005 * abs(high), 1e-12)
    return low - room, high + room


def bar_plot(title: str, names: Sequence[str], values: Sequence[float | None], y_name: str) -> str:
    """One bar a name, its value above it; a dash where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return f"<p>{escape(title)}: no data.</p>"
    axes = _Axes((0.0, float(len(values))), (0.0, max(known) * 1.12 or 1.0))
    parts = _frame(axes, "", y_name, [], _plain(ticks(axes.y0, axes.y1)))
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        left, right = axes.px(i + 0.22), axes.px(i + 0.78)
        top, bottom = axes.py(value or 0.0), HEIGHT - BOTTOM
        if value is not None:
            parts.append(
                f'<rect class="fill{i}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                f'height="{bottom - top:.1f}" rx="3"/>'
            )
        middle, text = (left + right) / 2, "–" if value is None else f"{value:.4g}"
        for y, shown in ((top - 6, text), (bottom + 18.0, escape(name))):
            parts.append(f'<text x="{middle:.1f}" y="{y:.1f}" text-anchor="middle">{shown}</text>')
    return _svg(title, parts)


@dataclasses.dataclass(frozen=True)
class Racer:
    """One bar of a race: its colour is that of the series with this number in other plots."""

    name: str
    value: float | None  # the less, the better
    text: str
    number: int


_RACE_ROW, _RACE_BAR = 40, 26
_RACE_LEFT, _RACE_TEXT = 110, 250


def race_plot(title: str, racers: Sequence[Racer]) -> str:
    """Lying bars, the shortest above and in bold, each with its text at its end."""
    known = [racer.value for racer in racers if racer.value is not None]
    if not known:
        return f"<p>{escape(title)}: no data.</p>"
    ranked = sorted(racers, key=lambda racer: math.inf if racer.value is None else racer.value)
    scale = (WIDTH - _RACE_LEFT - _RACE_TEXT) / (max(known) or 1.0)
    parts = []
    for row, racer in enumerate(ranked):
        top, length = row * _RACE_ROW + 6, scale * (racer.value or 0.0)
        style = ' class="first"' if row == 0 else ""
        middle = top + _RACE_BAR / 2 + 5
        parts.append(
            f'<text{style} x="{_RACE_LEFT - 10}" y="{middle:.0f}" text-anchor="end">'
            f"{escape(racer.name)}</text>"
        )
        if racer.value is not None:
            parts.append(
                f'<rect class="fill{racer.number}" x="{_RACE_LEFT}" y="{top}" '
                f'width="{length:.1f}" height="{_RACE_BAR}" rx="3"/>'
            )
        parts.append(
            f'<text{style} x="{_RACE_LEFT + length + 8:.1f}" y="{middle:.0f}">'
            f"{escape(racer.text)}</text>"
        )
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {len(ranked) * _RACE_ROW + 6}" role="img" class="race" '
        f'aria-label="{escape(title, quote=True)}">\n{body}\n</svg>'
    )
