"""Draws the README's picture of trainings from committed rows: time to one loss, by network.

    bench/sync/train_bars.py bench/results/*/{train,convergence}.jsonl --out docs/train.svg

One strip for each model, a group of bars for each number of ranks and network that has step times,
a bar for the fastest of each family of sides. The axis is logarithmic; 1 is a free network.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Iterable, Sequence
from html import escape

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness
from train_figures import OURS, Curves, Outcome, Place, Rows, good, outcomes, place

from scant.lab.units import format_rate

WIDTH, LEFT, RIGHT, HEAD, STRIP = 940, 48, 12, 44, 226
TITLE, FOOT = 56, 40  # of a strip, above and below its bars
GROUP_MAX = 290
TICKS = (1, 2, 3, 5, 10, 20, 50, 100, 200)
# A side, or a family of them (what ends with a space begins their names): words and a colour. gloo
# is orange and scant blue as in bench/figure.py; the planner's are dark, to be found first.
FAMILIES = {
    "DDP, ": ("DDP on gloo", "#e8a06a"),
    "fp16, ": ("… fp16 hook", "#e8c86a"),
    "PowerSGD ": ("… PowerSGD", "#a8a8a8"),
    "DDP on scant": ("DDP on scant", "#7fb8dc"),
    "auto": ("scant.torch.wrap", "#0072b2"),
    "auto, step in forward": ("… step in forward", "#5e4fa2"),
}
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#777}"
    ".title{font-size:13px;font-weight:600}.value{font-size:10px;text-anchor:middle}"
    ".auto{font-size:10.5px;font-weight:600;fill:#1a82c4}"
    ".grid{stroke:#8884;fill:none}.free{stroke:#777;fill:none;stroke-width:1.5}"
    ".step{fill-opacity:.15;stroke-width:1.2;stroke-dasharray:3 2}"
)


def of_family(family: str, names: Iterable[str]) -> list[str]:
    if family.endswith(" "):
        return [name for name in names if name.startswith(family)]
    return [name for name in names if name == family]


class Bar:
    """The fastest side of a family: its time as a multiple, and whether to the target loss."""

    def __init__(self, family: str, row: harness.Row, found: Sequence[Outcome]) -> None:
        self.family = family
        names = of_family(family, row["sides"])
        reached = [
            seconds / one.limit_s
            for one in found
            for name, seconds in {**one.peers, one.ours: one.auto_s}.items()
            if seconds and name in names
        ]
        self.reached = bool(reached)
        alone_s = float(row["sides"]["alone"]["seconds"][1])
        steps = (float(row["sides"][name]["seconds"][1]) / alone_s for name in names)
        self.multiple = min(reached or steps)

    def draw(self, left: float, width: float, strip: Strip) -> list[str]:
        ends = sorted((strip.y(1.0), strip.y(self.multiple)))
        colour = FAMILIES[self.family][1]
        kind = "" if self.reached else f' class="step" stroke="{colour}"'
        text = f"{self.multiple:.2f}" if self.multiple < 9.95 else f"{self.multiple:.0f}"
        value = "value auto" if self.family in OURS else "value"
        return [
            f'<rect x="{left:.1f}" y="{ends[0]:.1f}" width="{width:.1f}" '
            f'height="{ends[1] - ends[0]:.1f}" fill="{colour}"{kind}/>',
            f'<text x="{left + width / 2:.1f}" y="{ends[0] - 4:.1f}" class="{value}">{text}</text>',
        ]


class Strip:
    """The groups of one model, by ranks and ρ."""

    def __init__(self, rows: Rows, found: dict[Place, list[Outcome]], top: float) -> None:
        self.rows = sorted(rows, key=lambda row: (row["ranks"], row["rho"]))
        self.bars = [
            [
                Bar(family, row, found.get(place(row), []))
                for family in FAMILIES
                if of_family(family, row["sides"])
            ]
            for row in self.rows
        ]
        self.top, self.bottom = top + TITLE, top + STRIP - FOOT
        self.highest = max(bar.multiple for group in self.bars for bar in group)

    def y(self, multiple: float) -> float:
        share = math.log(multiple) / math.log(self.highest)
        return self.bottom - share * (self.bottom - self.top)

    def draw(self, group_width: float, families: int) -> list[str]:
        right = LEFT + group_width * len(self.rows)
        name = escape(str(self.rows[0]["model"]))
        parts = [f'<text x="{LEFT}" y="{self.top - TITLE + 26}" class="title">{name}</text>']
        for tick in TICKS:
            if tick <= self.highest:
                y, kind = self.y(tick), "free" if tick == 1 else "grid"
                parts.append(f'<path class="{kind}" d="M{LEFT} {y:.1f}H{right:.1f}"/>')
                parts.append(
                    f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>'
                )
        for i, (row, bars) in enumerate(zip(self.rows, self.bars, strict=True)):
            left = LEFT + group_width * i
            middle = f'x="{left + group_width / 2:.1f}" text-anchor="middle"'
            network = "no limit" if row["rate"] is None else format_rate(row["rate"])
            words = f"{row['ranks']} ranks, ρ {row['rho']:.2g}"
            parts.append(f'<text {middle} y="{self.bottom + 17:.0f}">{network}</text>')
            parts.append(f'<text {middle} y="{self.bottom + 32:.0f}">{words}</text>')
            width = group_width / (families + 1)
            left += (group_width - width * len(bars)) / 2
            for k, bar in enumerate(bars):
                parts += bar.draw(left + width * k, width - 4, self)
        return parts


def swatch(left: float, bottom: int, words: str, paint: str) -> str:
    return (
        f'<rect x="{left:.1f}" y="{bottom - 9}" width="10" height="10" {paint}/>'
        f'<text x="{left + 14:.1f}" y="{bottom}">{words}</text>'
    )


def head(families: Iterable[str]) -> list[str]:
    title = "Seconds to the same training loss ÷ seconds without communication (1: a free network)"
    hollow = "step time only: loss not reached"
    parts = [
        f'<text x="{LEFT}" y="16" class="title">{title}</text>',
        swatch(722, 16, hollow, 'fill="#888" stroke="#888" class="step"'),
    ]
    left = float(LEFT)
    for words, colour in (FAMILIES[family] for family in families):
        parts.append(swatch(left, 37, words, f'fill="{colour}"'))
        left += 14 + 6.8 * len(words) + 18
    return parts


def figure(rows: Rows) -> str:
    """The whole picture as SVG text."""
    found: dict[Place, list[Outcome]] = {}
    for one in outcomes(rows, Curves(rows))[0]:
        found.setdefault(place(one.row), []).append(one)
    steps = {place(row): row for row in good(rows, "steps")}
    strips: list[Strip] = []
    for model in sorted({row["model"] for row in steps.values()}, reverse=True):
        own = [row for row in steps.values() if row["model"] == model]
        strips.append(Strip(own, found, HEAD + STRIP * len(strips)))
    highest = max(2.0, *(strip.highest for strip in strips))  # one scale for all
    groups = max(len(strip.rows) for strip in strips)
    names = {name for row in steps.values() for name in row["sides"]}
    families = [family for family in FAMILIES if of_family(family, names)]
    parts = head(families)
    for strip in strips:
        strip.highest = highest
        parts += strip.draw(min((WIDTH - LEFT - RIGHT) / groups, GROUP_MAX), len(families))
    height = HEAD + STRIP * len(strips)
    text = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">\n<style>{STYLE}</style>\n{text}\n</svg>\n'
    )


if __name__ == "__main__":
    sys.exit(harness.draw_rows(__doc__, figure))
