"""Self-contained HTML pages with plots, drawn by the standard library alone."""

from __future__ import annotations

from scant.report.page import Page
from scant.report.plot import (
    Racer,
    Series,
    bar_plot,
    bytes_label,
    line_plot,
    point_plot,
    race_plot,
    ratio_plot,
)

__all__ = [
    "Page",
    "Racer",
    "Series",
    "bar_plot",
    "bytes_label",
    "line_plot",
    "point_plot",
    "race_plot",
    "ratio_plot",
]
