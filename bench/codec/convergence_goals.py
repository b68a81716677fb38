"""Goals that points with a rank must reach in the rows of convergence.py.

A point is an exchange trained with several seeds. It is within plain's seeds if its mean loss is
not above that of plain's worst seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import harness

PLAIN = "f32"
SEEDS_MIN = 3  # with fewer the mean is chance

# At most so many bytes an element, by model: for a loss within plain's seeds, and for plain's mean
# loss + a number.
LOSSLESS_MAX = {"transformer": 0.45, "resnet": 0.8}
NEAR_MAX = {"transformer": ((0.05, 0.14), (0.10, 0.07))}


class Point(NamedTuple):
    """One exchange: means over its seeds, and their losses."""

    name: str
    kind: str  # of exchanges.Options
    values: str  # of the rest, where the kind is factors: "" for none
    size: float  # bytes an element
    loss: float
    losses: tuple[float, ...]

    @property
    def settled(self) -> bool:
        return len(self.losses) >= SEEDS_MIN


def points(rows: Sequence[harness.Row]) -> list[Point]:
    """The points of one model, by bytes. Of several trainings with one seed the last counts."""
    found: dict[str, dict[int, harness.Row]] = {}
    for row in rows:
        if row["case"] == "convergence":
            found.setdefault(row["configuration"], {})[row["seed"]] = row
    made = []
    for name, by_seed in found.items():
        own = [by_seed[seed] for seed in sorted(by_seed)]
        losses = tuple(float(row["held_out"][-1][2]) for row in own)
        size = statistics.fmean(row["bytes_per_element"] for row in own)
        options = own[0]["options"]
        mean = statistics.fmean(losses)
        made.append(Point(name, options["kind"], options["values"], size, mean, losses))
    return sorted(made, key=lambda point: (point.size, point.name))


def smallest(points: Sequence[Point], loss: float) -> Point | None:
    """The point with the fewest bytes whose mean loss is at most ``loss``."""
    enough = [point for point in points if point.loss <= loss]
    return min(enough, key=lambda point: point.size) if enough else None


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points, by bytes, that have less loss than all with fewer bytes."""
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.size, one.loss)):
        if not found or point.loss < found[-1].loss:
            found.append(point)
    return found


def missed_by(model: str, known: Sequence[Point]) -> list[str]:
    """Goals that the points of one model miss."""
    settled = [point for point in known if point.settled]
    ours = [point for point in settled if point.kind == "factors"]
    peers = [point for point in settled if point.kind == "powersgd"]
    plain = next((point for point in settled if point.name == PLAIN), None)
    if not plain or not ours or not peers:
        return [f"{model}: no {SEEDS_MIN} seeds of {PLAIN}, of a point with a rank and of PowerSGD"]
    said = []
    for peer in peers:
        under = [point for point in ours if point.size <= peer.size]
        if all(point.loss >= peer.loss for point in under):
            best = f"{min(point.loss for point in under):.3f}" if under else "nothing"
            said.append(
                f"{model}: {peer.name} has {peer.loss:.3f} with {peer.size:.2f} bytes an element, "
                f"points with a rank {best}"
            )
    wanted = [("a loss within plain's seeds", max(plain.losses), LOSSLESS_MAX[model])]
    for more, most in NEAR_MAX.get(model, ()):
        wanted.append((f"plain's mean loss + {more:g}", plain.loss + more, most))
    for words, loss, most in wanted:
        first = smallest(ours, loss)
        if first is None:
            best_of = min(ours, key=lambda point: point.loss)
            got = f"the least is {best_of.loss:.3f}, by {best_of.name}"
        elif first.size > most:
            got = f"{first.name} needs {first.size:.3f}"
        else:
            continue
        said.append(f"{model}: {words} ({loss:.3f}) with {most:g} bytes an element: {got}")
    return said


def missed(rows: Sequence[harness.Row], models: Sequence[str] = ()) -> list[str]:
    """Goals that were missed, of these models and of all that have points with a rank."""
    found: dict[str, list[harness.Row]] = {model: [] for model in models}
    for row in rows:
        found.setdefault(harness.model_of(row), []).append(row)
    said = []
    for model, own in found.items():
        known = points(own)
        if model in models or any(point.kind == "factors" for point in known):
            said += missed_by(model, known)
    return said
