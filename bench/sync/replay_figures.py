"""What rows of replayed trainings say: the share of a free network's step, beside every peer's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import harness
from train_figures import OURS, Place, Rows, good, place, where
from train_replay import MADE
from train_sides import ALONE, AUTO

# Of the made recording and `auto`, by ρ as measured, below which bound they hold: the wanted are
# 0.5 and 5. With the step in forward the planner may keep more instead.
SHARE_MIN = ((2.0, 0.96), (10.0, 0.93))
PEER_MIN = 1.0


@dataclasses.dataclass
class Share:
    """One side of one row."""

    row: harness.Row
    side: str
    share: list[float]  # quartiles of a free step ÷ this side's, of neighbouring blocks
    step_s: float

    @property
    def ours(self) -> bool:
        return self.side in OURS


def shares(row: harness.Row) -> list[Share]:
    free = row["sides"][ALONE]["samples"]
    return [
        Share(
            row, name, harness.quantiles(harness.ratios(free, side["samples"])), side["seconds"][1]
        )
        for name, side in row["sides"].items()
    ]


def best_peer(row: harness.Row) -> tuple[str, float]:
    peers = {
        name: float(side["seconds"][1])
        for name, side in row["sides"].items()
        if row["kinds"][name] == "peer"
    }
    best = min(peers, key=lambda name: peers[name])
    return best, peers[best]


def wanted(row: harness.Row) -> float | None:
    """Of the row's share; None where nothing is stated."""
    if row["model"] != MADE or row.get("quick"):
        return None
    return next((value for below, value in SHARE_MIN if row["rho"] < below), None)


def _row_misses(row: harness.Row) -> list[str]:
    found = {one.side: one for one in shares(row)}
    peer, peer_s = best_peer(row)
    missed = []
    for name in OURS:
        one = found[name]
        ratio, least = peer_s / one.step_s, wanted(row)
        if ratio < PEER_MIN:
            missed.append(f"{where(row)}, {name}: {peer} ÷ scant {ratio:.3f} < {PEER_MIN}")
        if name == AUTO and least is not None and one.share[1] < least:
            missed.append(
                f"{where(row)}, {name}: share of a free step {one.share[1]:.3f} < {least}"
            )
    return missed


def gate(rows: Rows, labs: Sequence[Place]) -> list[str]:
    """What the stated figures miss; `labs` should all have rows."""
    missed = [f"{where(row)}: {row['error']}" for row in rows if "error" in row]
    own = good(rows, "replay")
    for row in own:
        missed += _row_misses(row)
    told = {place(row) for row in own}
    return missed + [f"{', '.join(map(str, lab))}: no row" for lab in labs if lab not in told]


def table(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Share with its spread first; of each row every side."""
    head = ["compute", "model", "ranks", "network", "ρ", "side"]
    head += ["share of a free step (quartiles)", "ms a step", "ms waited", "MB sent by a rank"]
    head += ["plan of scant.wrap"]
    lines = []
    for row in good(rows, "replay"):
        for one in shares(row):
            side = row["sides"][one.side]
            low, middle, high = one.share
            line = [row["compute"], row["model"], str(row["ranks"]), row["network"]]
            line += [f"{row['rho']:.2f}", one.side, f"{middle:.3f} ({low:.3f}–{high:.3f})"]
            waited = side.get("waited_s")
            line += [f"{1e3 * one.step_s:,.1f}", "–" if waited is None else f"{1e3 * waited:,.1f}"]
            line += [f"{side['wire_bytes_per_rank'] / 1e6:,.2f}"]
            line.append(side.get("said", {}).get("plan") or "")
            lines.append(line)
    return head, lines


def sentences(rows: Rows) -> list[str]:
    """Each network in one line."""
    said = []
    for row in good(rows, "replay"):
        peer, peer_s = best_peer(row)
        own = {one.side: one for one in shares(row) if one.ours}
        told = ", ".join(f"{name} {one.share[1]:.3f}" for name, one in own.items())
        faster = peer_s / min(one.step_s for one in own.values())
        said.append(
            f"Compute replayed, {where(row)}, ρ {row['rho']:.2f}: share of a free network's step: "
            f"{told}; the fastest peer ({peer}) takes {faster:.2f} times as long a step. "
            f"Steps without communication differ by {spread(row):.1%} between quartiles."
        )
    return said


def spread(row: harness.Row) -> float:
    """How noisy the machine was: of steps without communication, between quartiles."""
    low, middle, high = row["sides"][ALONE]["seconds"]
    return float(high - low) / float(middle)
