"""Tables and plots of convergence rows: loss against steps, against bytes, and at the end."""

from __future__ import annotations

import math
import pathlib
import statistics
from collections.abc import Sequence

import harness

from scant.report import Page, Series, line_plot

ByName = dict[str, list[harness.Row]]

FACTOR_RANKS = (64, 32, 16, 12, 8, 4, 2)

# What stands together in a plot; each has the plain training beside it.
FAMILIES: dict[str, list[str]] = {
    "Dense, both legs quantised": ["fp16", "q8", "q4", "q3", "q2", "q1"],
    "Sparse": ["25% q4", "10% bf16", "10% q4", "1% bf16", "1% q4"],
    "Two bits, and ways to help them": [
        "q2", "q2, decay 0.9", "q1 there, q3 back", "q1 there, q3 back, decay 0.9",
        "q2, decay 0.7", "even budget 0.27, decay 0.9", "q2, after Adam", "budget 0.27",
        "even budget 0.27", "PowerSGD 16", "PowerSGD 12",
    ],
    "One per cent, and ways to help it": [
        "1% q4", "1% q4, decay 0.95", "1% q4, momentum", "1% q4, warm-up", "1% q4, after Adam",
        "budget 0.019, after Adam", "even budget 0.019", "even budget 0.019, after Adam",
    ],
    "Residual stores": [
        "q4", "q4, bf16 residual", "q4, i8 residual", "q2", "q2, bf16 residual", "q2, i8 residual",
        "1% q4", "1% q4, i8 residual",
    ],
    "PowerSGD": [
        "PowerSGD 32", "PowerSGD 16", "PowerSGD 12", "PowerSGD 8", "PowerSGD 4", "PowerSGD 2",
        "PowerSGD 1",
    ],
    "Factors alone": [f"rank {rank} of q4" for rank in FACTOR_RANKS],
    "Factors, and a rest of one bit": [f"rank {rank} of q8, q1" for rank in FACTOR_RANKS],
    "Factors, and a rest of two bits": [f"rank {rank} of q8, q2" for rank in FACTOR_RANKS],
    "Factors, and the largest 5 %": [f"rank {rank} of q4, 5% q4" for rank in FACTOR_RANKS],
    "After the local Adam step": [
        "f32, after Adam", "q2, after Adam", "1% q4, after Adam", "PowerSGD 8, after Adam",
        "PowerSGD 1, after Adam",
    ],
}  # fmt: skip
PLAIN = "f32"
LAST_STEPS = 50  # whose training loss is compared with plain's
# Families that get a line in the plot of loss at the end against bytes.
ENDS = (
    "Dense, both legs quantised", "Sparse", "PowerSGD", "Factors alone",
    "Factors, and a rest of one bit", "Factors, and a rest of two bits",
)  # fmt: skip


def last(row: harness.Row) -> float:
    """Held-out loss at the end."""
    return float(row["held_out"][-1][2])


def by_name(rows: Sequence[harness.Row]) -> ByName:
    found: ByName = {}
    for row in rows:
        if row["case"] == "convergence":
            found.setdefault(row["configuration"], []).append(row)
    return found


def bytes_per_element(rows: Sequence[harness.Row]) -> float:
    return float(statistics.mean(row["bytes_per_element"] for row in rows))


def beyond_plain(rows: Sequence[harness.Row], plain: Sequence[harness.Row]) -> list[float]:
    """Training loss of the last steps minus plain's with the same seed and so the same samples."""
    known = {row["seed"]: row["loss"][-LAST_STEPS:] for row in plain}
    return [
        statistics.mean(a - b for a, b in zip(row["loss"][-LAST_STEPS:], of, strict=False))
        for row in rows
        if (of := known.get(row["seed"])) is not None
    ]


def table(rows: Sequence[harness.Row]) -> tuple[list[str], list[list[str]]]:
    """Loss of each exchange, mean and spread over the seeds."""
    head = [
        "exchange",
        "bytes/element",
        "held-out loss",
        "of seeds",
        "loss, last 20 steps",
        f"beyond plain, last {LAST_STEPS}",
        "of seeds",
        "seeds",
    ]
    lines = []
    found = by_name(rows)
    for name, own in sorted(found.items(), key=lambda one: -bytes_per_element(one[1])):
        values = [last(row) for row in own]
        train = statistics.mean(statistics.mean(row["loss"][-20:]) for row in own)
        spread = f"{min(values):.3f}–{max(values):.3f}"
        size = f"{bytes_per_element(own):.4f}"
        mean = f"{statistics.mean(values):.3f}"
        beyond = beyond_plain(own, found.get(PLAIN, []))
        apart = ["–", "–"]
        if beyond:
            apart = [f"{statistics.mean(beyond):+.3f}", f"{min(beyond):+.3f}…{max(beyond):+.3f}"]
        lines.append([name, size, mean, spread, f"{train:.3f}", *apart, str(len(own))])
    return head, lines


def of_steps(name: str, rows: Sequence[harness.Row]) -> Series:
    """Mean held-out loss over the seeds, by step."""
    points = list(zip(*(row["held_out"] for row in rows), strict=False))
    steps = [float(point[0][0]) for point in points]
    return Series(name, steps, [statistics.mean(one[2] for one in point) for point in points])


def of_bytes(name: str, rows: Sequence[harness.Row]) -> Series:
    """The same by the logarithm of megabytes that a rank has sent."""
    points = list(zip(*(row["held_out"] for row in rows), strict=False))
    sent = [math.log10(statistics.mean(one[1] for one in point) / 1e6) for point in points]
    return Series(name, sent, [statistics.mean(one[2] for one in point) for point in points])


def at_the_end(found: ByName) -> list[Series]:
    """One line a family: loss by bytes an element."""
    series = []
    for family in ENDS:
        names = [name for name in FAMILIES[family] if name in found]
        points = sorted(
            (math.log10(bytes_per_element(found[name])), statistics.mean(map(last, found[name])))
            for name in names
        )
        if len(points) > 1:
            series.append(Series(family, [x for x, _ in points], [y for _, y in points]))
    return series


def models(rows: Sequence[harness.Row]) -> dict[str, list[harness.Row]]:
    """The rows of each model, the transformer's first."""
    names = sorted({harness.model_of(row) for row in rows}, reverse=True)
    return {name: [row for row in rows if harness.model_of(row) == name] for name in names}


def plots(page: Page, found: ByName) -> None:
    """The plots of one model."""
    ends = at_the_end(found)
    if ends:
        page.subheading("Loss at the end against bytes")
        page.plot(line_plot("Held-out loss", ends, "log10 of bytes an element", "loss"))
    for family, names in FAMILIES.items():
        present = [name for name in names if name in found]
        if not present:
            continue
        shown = [PLAIN, *present] if PLAIN in found else present
        page.subheading(family)
        by_steps = [of_steps(name, found[name]) for name in shown]
        page.plot(line_plot("Against steps", by_steps, "step", "loss"))
        by_bytes = [of_bytes(name, found[name]) for name in shown]
        page.plot(line_plot("Against bytes", by_bytes, "log10 of megabytes sent", "loss"))


def write(rows: Sequence[harness.Row], folder: pathlib.Path) -> str:
    """convergence.md and convergence.html; returns the tables' text."""
    page = Page(
        "Convergence",
        "Models on four ranks with every kind of exchange: loss on samples that are not trained "
        "on, mean over the seeds. Bytes are those that one rank sends.",
    )
    parts = []
    for model, own in models(rows).items():
        head, lines = table(own)
        parts += [f"Model: {model}", harness.markdown(head, lines)]
        page.heading(f"Model: {model}")
        plots(page, by_name(own))
        page.subheading("All figures")
        page.table(head, lines)
        for row in own:
            if row["case"] == "real":
                same = "the same bits as" if row["same_bits"] else "NOT the losses of"
                parts.append(f"Four processes, {row['configuration']}: {same} the simulation.")
    text = "\n\n".join(parts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "convergence.md").write_text(text + "\n")
    page.write(folder / "convergence.html")
    return text
