"""Draws loss against bytes from committed rows of convergence.py.

    bench/codec/convergence_figure.py bench/results/*/convergence.jsonl --out docs/convergence.svg

A panel for each model that has points with a rank; both axes are logarithmic. Of several trainings
with one seed the last counts.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Sequence
from html import escape

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness
from convergence_goals import PLAIN, Point, frontier, points

PANEL, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 470, 420, 48, 34, 78, 46
BYTES = (0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2)
LOSSES = (
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5),
    *(2, 2.05, 2.1, 2.15, 2.2, 2.25, 2.3, 2.35, 2.4, 2.5),
)
ROOM = 0.12  # of the axis of losses, under its points: for labels
MARGIN = 1.08  # of the axis of bytes, beyond its last points
# Words and colour of each family, as in bench/figure.py. Later ones are drawn over earlier ones.
FAMILIES = {
    "powersgd": ("PowerSGD", "#888888"),
    "values": ("values in few bits", "#d55e00"),
    "factors": ("factors alone", "#56b4e9"),
    "rest": ("factors and a rest", "#0072b2"),
}
LABELLED = ("factors", "rest")
SLANT = 56  # of a label, in degrees
LABEL_LONG, LABEL_HIGH = 70.0, 12.0  # pixels
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#777}"
    ".title{font-size:13px;font-weight:600}.name{font-size:10px}"
    ".grid{stroke:#8883;fill:none}.plain{fill:#8886}polyline{fill:none;stroke-width:1.6}"
    ".seeds{fill:none;stroke-width:1;stroke-opacity:.5}"
)


def family(point: Point) -> str | None:
    """The family of a point; None if it is not shown."""
    if point.kind == "factors":
        return "rest" if point.values else "factors"
    if point.kind == "powersgd":
        return "powersgd" if "," not in point.name else None
    # Of dense codecs only those without options, whose names are those of their values.
    return "values" if point.kind == "codec" and point.name == point.values else None


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether slanted labels at these places do."""
    right, down = other[0] - one[0], other[1] - one[1]
    cosine, sine = math.cos(math.radians(SLANT)), math.sin(math.radians(SLANT))
    along, across = right * cosine + down * sine, down * cosine - right * sine
    return abs(along) < LABEL_LONG and abs(across) < LABEL_HIGH


class Panel:
    """One model: axes, the band of plain's seeds, points and frontiers."""

    def __init__(self, model: str, known: Sequence[Point], left: float) -> None:
        self.model = model
        self.plain = next(point for point in known if point.name == PLAIN)
        self.shown = {
            name: [point for point in known if family(point) == name] for name in FAMILIES
        }
        every = [point for own in self.shown.values() for point in own]
        losses = [loss for point in [*every, self.plain] for loss in point.losses]
        self.sizes = (min(p.size for p in every) / MARGIN, max(p.size for p in every) * MARGIN)
        low, high = min(losses), max(losses)
        self.losses = (low * (low / high) ** ROOM, high)
        self.labelled: list[tuple[float, float]] = []
        self.left, self.right = left + LEFT, left + PANEL - RIGHT

    def x(self, size: float) -> float:
        low, high = map(math.log, self.sizes)
        return self.left + (math.log(size) - low) / (high - low) * (self.right - self.left)

    def y(self, loss: float) -> float:
        low, high = map(math.log, self.losses)
        return HEIGHT - BOTTOM - (math.log(loss) - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    def axes(self) -> list[str]:
        middle = (self.left + self.right) / 2
        foot = HEIGHT - BOTTOM
        parts = [f'<text x="{self.left:.0f}" y="{TOP - 18}" class="title">{self.model}</text>']
        for loss in LOSSES:
            if self.losses[0] <= loss <= self.losses[1]:
                y = self.y(loss)
                parts.append(f'<path class="grid" d="M{self.left:.0f} {y:.1f}H{self.right:.0f}"/>')
                parts.append(
                    f'<text x="{self.left - 6:.0f}" y="{y + 4:.1f}" text-anchor="end">{loss:g}'
                    "</text>"
                )
        for size in BYTES:
            if self.sizes[0] <= size <= self.sizes[1]:
                x = self.x(size)
                parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{foot}"/>')
                parts.append(
                    f'<text x="{x:.1f}" y="{foot + 18}" text-anchor="middle">{size:g}</text>'
                )
        parts.append(
            f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">'
            "bytes an element that a rank sends</text>"
        )
        high, low = self.y(max(self.plain.losses)), self.y(min(self.plain.losses))
        parts.append(
            f'<rect class="plain" x="{self.left:.0f}" y="{high:.1f}" '
            f'width="{self.right - self.left:.0f}" height="{low - high:.1f}"/>'
        )
        return parts

    def label(self, point: Point) -> list[str]:
        """Aslant under the point, where lines that fall to the right leave room; nothing where
        another point's label is."""
        place = self.x(point.size), self.y(point.loss)
        if any(overlap(place, other) for other in self.labelled):
            return []
        self.labelled.append(place)
        words = point.name.replace("rank ", "").replace(" of ", "·").replace(", ", " + ")
        x, y = place[0] + 3, place[1] + 11
        turned = f"rotate({SLANT} {x:.1f} {y:.1f})"
        return [
            f'<text class="name" x="{x:.1f}" y="{y:.1f}" transform="{turned}">'
            f"{escape(words)}</text>"
        ]

    def family(self, name: str) -> list[str]:
        """Points, hollow where there are fewer seeds; a line through the settled frontier."""
        colour = FAMILIES[name][1]
        edge = frontier([point for point in self.shown[name] if point.settled])
        line = " ".join(f"{self.x(one.size):.1f},{self.y(one.loss):.1f}" for one in edge)
        parts = [f'<polyline stroke="{colour}" points="{line}"/>'] if len(edge) > 1 else []
        for point in self.shown[name]:
            x, y = self.x(point.size), self.y(point.loss)
            if point.settled:
                ends = self.y(min(point.losses)), self.y(max(point.losses))
                line = f"M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}"
                parts.append(f'<path class="seeds" stroke="{colour}" d="{line}"/>')
            fill = colour if point.settled else "none"
            size = 3.2 if point.settled else 2.2
            title = f"{point.name}: {point.size:.3f} bytes, loss {point.loss:.3f}"
            parts.append(
                f'<circle fill="{fill}" stroke="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{size}">'
                f"<title>{escape(title)}</title></circle>"
            )
        return parts

    def draw(self) -> list[str]:
        parts = self.axes()
        for name in FAMILIES:
            parts += self.family(name)
        ours = [point for name in LABELLED for point in self.shown[name] if point.settled]
        for point in reversed(frontier(ours)):
            parts += self.label(point)
        return parts


def head() -> list[str]:
    title = "Held-out loss after 250 steps, 4 ranks: mean and range of three seeds"
    parts = [f'<text x="{LEFT}" y="16" class="title">{title}</text>']
    left = float(LEFT)
    for words, colour in FAMILIES.values():
        parts.append(f'<circle cx="{left + 5:.0f}" cy="33" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{left + 14:.0f}" y="37">{words}</text>')
        left += 14 + 6.6 * len(words) + 20
    for mark, words in (
        (f'<rect class="plain" x="{left:.0f}" y="28" width="14" height="10"/>', "plain, 6 bytes"),
        (
            f'<circle cx="{left + 120:.0f}" cy="33" r="2.6" fill="none" stroke="#777"/>',
            "fewer seeds",
        ),
    ):
        parts += [mark, f'<text x="{left + 20:.0f}" y="37">{words}</text>']
        left += 110
    return parts


def figure(rows: Sequence[harness.Row]) -> str:
    """The whole picture as SVG text."""
    parts = head()
    left = 0.0
    for model in sorted({harness.model_of(row) for row in rows}, reverse=True):
        known = points([row for row in rows if harness.model_of(row) == model])
        if any(point.kind == "factors" for point in known):
            parts += Panel(model, known, left).draw()
            left += PANEL
    width = max(left, 2 * PANEL)  # the words above need as much
    text = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {HEIGHT}" '
        f'width="{width:.0f}" height="{HEIGHT}" role="img">\n<style>{STYLE}</style>\n{text}\n'
        "</svg>\n"
    )


if __name__ == "__main__":
    sys.exit(harness.draw_rows(__doc__, figure))
