"""Draws the README's picture from committed rows: time of an all-reduce over its size.

    bench/figure.py bench/results/*/collectives.jsonl --out docs/all_reduce.svg

Both axes are logarithmic; one panel for each network.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
from collections.abc import Sequence
from html import escape
from typing import Any

import harness

from scant.report import bytes_label

Row = dict[str, Any]

PANEL, HEIGHT, LEFT, TOP, BOTTOM = 470, 320, 64, 54, 44
# Colours that remain apart for colour-blind readers, on light and dark pages.
# gloo last and dashed: where the line is full it lies on scant.
SIDES = {
    "mpi_tcp": ("Open MPI, TCP", "#888888"),
    "scant": ("scant", "#0072b2"),
    "gloo": ("gloo", "#d55e00"),
}
NETWORKS = {"loopback": "one host", "1gbit": "four hosts, links of 1 Gb/s"}


def time_text(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= factor * 0.999:
            return f"{seconds / factor:.0f} {unit}"
    return f"{seconds:g} s"


class Panel:
    """One network: axes, lines and the words at them."""

    def __init__(self, rows: Sequence[Row], left: float, decades: tuple[int, int]) -> None:
        self.rows = sorted(rows, key=lambda row: row["bytes"])
        self.left = left + LEFT
        self.right = left + PANEL - 24
        self.decades = decades

    def x(self, size: float) -> float:
        low, high = (math.log2(self.rows[i]["bytes"]) for i in (0, -1))
        share = (math.log2(size) - low) / max(high - low, 1)
        return self.left + share * (self.right - self.left)

    def y(self, seconds: float) -> float:
        low, high = self.decades
        share = (math.log10(seconds) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    def draw(self, title: str) -> list[str]:
        parts = [f'<text x="{self.left}" y="40" class="title">{escape(title)}</text>']
        for decade in range(self.decades[0], self.decades[1] + 1):
            y = self.y(10.0**decade)
            parts.append(f'<path class="grid" d="M{self.left} {y:.1f}H{self.right}"/>')
            parts.append(
                f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">'
                f"{time_text(10.0**decade)}</text>"
            )
        for row in self.rows:
            parts.append(
                f'<text x="{self.x(row["bytes"]):.1f}" y="{HEIGHT - BOTTOM + 18}" '
                f'text-anchor="middle">{bytes_label(row["bytes"])}</text>'
            )
        parts.append(
            f'<text x="{(self.left + self.right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
            "size</text>"
        )
        for side, (_, colour) in SIDES.items():
            points = [
                (self.x(row["bytes"]), self.y(row[side]["seconds"][1]))
                for row in self.rows
                if side in row
            ]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            dashes = ' stroke-dasharray="5 4"' if side == "gloo" else ""
            parts.append(f'<polyline fill="none" stroke="{colour}"{dashes} points="{line}"/>')
            parts += [
                f'<circle fill="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points
            ]
        return parts


def figure(rows: Sequence[Row], ranks: int) -> str:
    """The whole picture as SVG text."""
    own = [row for row in rows if row.get("case") == "all_reduce" and row["ranks"] == ranks]
    own = [row for row in own if "scant" in row]
    times = [row[side]["seconds"][1] for row in own for side in SIDES if side in row]
    decades = (math.floor(math.log10(min(times))), math.ceil(math.log10(max(times))))
    parts: list[str] = []
    left = 0.0
    for network, title in NETWORKS.items():
        part = [row for row in own if row["network"] == network]
        if part:
            parts += Panel(part, left, decades).draw(title)
            left += PANEL
    parts.append(
        f'<text x="{LEFT}" y="18" class="title">Time of one all-reduce, {ranks} ranks, f32</text>'
    )
    place = left - 12.0
    for name, colour in reversed(SIDES.values()):
        # A style, since an attribute would lose to the rule for all text.
        parts.append(
            f'<text x="{place}" y="18" text-anchor="end" style="fill:{colour}">{name}</text>'
        )
        place -= 9.0 * len(name) + 14
    style = (
        "text{font:12px system-ui,sans-serif;fill:#777}"
        ".title{font-size:13px;font-weight:600}"
        "polyline{stroke-width:2}.grid{stroke:#8884;fill:none}"
    )
    text = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left:.0f} {HEIGHT}" '
        f'width="{left:.0f}" height="{HEIGHT}" role="img">\n<style>{style}</style>\n'
        f"{text}\n</svg>\n"
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", nargs="+", type=pathlib.Path)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    rows = harness.read_rows(arguments.rows)
    arguments.out.write_text(figure(rows, arguments.ranks), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
