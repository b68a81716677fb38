"""One HTML file with everything inside: style, plots, tables and the data they were drawn from."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Sequence
from html import escape
from typing import Any

_STYLE = """
:root { --ink:#1c2430; --soft:#5c6675; --paper:#fff; --line:#dfe4ea;
  --c0:#b4530a; --c1:#0b62a8; --c2:#2f7d32; --c3:#7a3e9d; --c4:#8a6d00; --c5:#a1184e; }
@media (prefers-color-scheme: dark) {
  :root { --ink:#e6eaf0; --soft:#9aa5b4; --paper:#14181e; --line:#2c343f;
    --c0:#f0975a; --c1:#6cb4f2; --c2:#7fce82; --c3:#c795e6; --c4:#d9bd4a; --c5:#ef7fa8; } }
body { font:16px/1.5 system-ui,sans-serif; color:var(--ink); background:var(--paper);
  margin:0 auto; max-width:780px; padding:24px 16px 64px; }
h1 { font-size:1.6rem; margin:0 0 4px; }
h2 { font-size:1.15rem; margin:36px 0 8px; }
h3 { font-size:1rem; margin:20px 0 4px; }
ul { margin:8px 0; padding-left:20px; }
p { margin:8px 0; }
.lead { color:var(--soft); }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }
th,td { padding:6px 8px; border-bottom:1px solid var(--line); text-align:right; }
th:first-child,td:first-child { text-align:left; }
th { color:var(--soft); font-weight:600; }
.scroll { overflow-x:auto; font-size:.9rem; }
.scroll td,.scroll th { white-space:nowrap; }
svg { width:100%; height:auto; }
svg text { font:12px system-ui,sans-serif; fill:var(--soft); }
.race text { font-size:15px; }
svg text.first { font-weight:700; fill:var(--ink); }
.headline { font-size:1.15rem; font-weight:600; }
.grid { stroke:var(--line); }
.axis { stroke:var(--soft); }
.one { stroke:var(--ink); stroke-width:1.5; stroke-dasharray:6 4; }
.mark { stroke:var(--soft); stroke-dasharray:2 4; }
.ring { fill:none; stroke:var(--c0); stroke-width:2; }
polyline { fill:none; stroke-width:2; stroke-linejoin:round; }
.key { stroke-width:3; }
""" + "\n".join(
    f".line{i} {{ stroke:var(--c{i % 6}); {'stroke-dasharray:6 3; ' if i >= 6 else ''}}} "
    f".fill{i} {{ fill:var(--c{i % 6}); }}"
    for i in range(12)
)


class Page:
    """Collects sections in order; ``write`` makes the file whole or not at all."""

    def __init__(self, title: str, lead: str) -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead)}</p>']

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def subheading(self, text: str) -> None:
        self._parts.append(f"<h3>{escape(text)}</h3>")

    def text(self, text: str) -> None:
        self._parts.append(f"<p>{escape(text)}</p>")

    def headline(self, text: str) -> None:
        """What the page says, in one sentence."""
        self._parts.append(f'<p class="headline">{escape(text)}</p>')

    def points(self, lines: Sequence[str]) -> None:
        """A list of sentences."""
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        self._parts.append(f"<ul>{items}</ul>")

    def plot(self, svg: str) -> None:
        """An SVG from scant.report.plot."""
        self._parts.append(svg)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        cells = "".join(f"<th>{escape(str(cell))}</th>" for cell in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        self._parts.append(f'<div class="scroll"><table><tr>{cells}</tr>{body}</table></div>')

    def data(self, name: str, value: Any) -> None:
        """Embeds the numbers, so that the page can be checked."""
        text = json.dumps(value).replace("<", "\\u003c")  # nothing ends or hides the element
        self._parts.append(
            f'<script type="application/json" id="{escape(name, quote=True)}">{text}</script>'
        )

    def html(self) -> str:
        body = "\n".join(self._parts)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self._title)}</title><style>{_STYLE}</style></head>\n"
            f"<body>\n{body}\n</body></html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        target = pathlib.Path(path)
        if target.exists() and not target.is_file():  # a pipe or a device is written, not replaced
            target.write_text(self.html(), encoding="utf-8")
            return
        partial = target.with_name(target.name + ".partial")
        try:
            partial.write_text(self.html(), encoding="utf-8")
            partial.replace(target)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
