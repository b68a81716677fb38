"""What rows of train.py say: time to a loss, share of the limit, never worse, predictions.

The target is the loss that plain training has after four fifths of its steps. A side's time to it
is its steps to it, from a recorded training, times its step time; the planner's own training is
timed as a whole.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import harness

from scant.report.losses import steps_to, target_loss

Rows = Sequence[harness.Row]
Place = tuple[str, int, str]  # model, ranks, network

KEPT_TOLERANCE = 0.002  # two plans that keep so nearly the same are of one fidelity
SIMULATED_RANKS = 4  # in bench/codec/convergence.py
UNSHAPED = "none"
OURS = ("auto", "auto, step in forward")
SEED_NOISE = 2.0  # standard deviations of plain's seeds

# The stated figures by ρ as measured, below which bound they hold: the wanted ρ are 0.5, 5 and 20.
SHARE_MIN = ((2.0, 0.92), (10.0, 0.88), (math.inf, 0.75))
PEER_MIN = ((2.0, 1.1), (math.inf, 1.3))
PEER_MIN_UNSHAPED = 1.0
NOISE_RHO_MAX = 10.0
WORSE_MEDIAN_MAX, WORSE_MAX = 1.03, 1.10
PREDICTION_MAX = 0.10
BUDGET_MAX = 0.01  # that bytes sent may be off what the plan asks for
SEEDS_MIN, BUCKETS_MIN, POWERSGD_MIN = 3, 2, 3  # fewer say nothing: chance, peers not tuned


def where(row: harness.Row) -> str:
    return f"{row['model']}, {row['ranks']} ranks, {row['network']}"


def place(row: harness.Row) -> Place:
    return row["model"], row["ranks"], row["network"]


def good(rows: Rows, case: str) -> list[harness.Row]:
    return [row for row in rows if row["case"] == case and "error" not in row]


# ---- curves ---------------------------------------------------------------------------------


def mean_of(lists: Sequence[Sequence[float]]) -> list[float]:
    """Element by element, as far as all go."""
    return [statistics.fmean(of) for of in zip(*lists, strict=False)]


class Curves:
    """Recorded trainings, by what was trained: of several with one seed the last counts."""

    def __init__(self, rows: Rows) -> None:
        self._rows: dict[tuple[str, int, bool, str], dict[int, harness.Row]] = {}
        for row in rows:
            if "error" in row or row["case"] not in ("training", "convergence"):
                continue
            ranks = row["ranks"] if row["case"] == "training" else SIMULATED_RANKS
            key = (harness.model_of(row), ranks, bool(row.get("quick")), row["configuration"])
            self._rows.setdefault(key, {})[row["seed"]] = row

    def of(self, like: harness.Row, name: str) -> dict[int, harness.Row]:
        """Trainings by seed of this name, of the model and ranks of `like`. An fp16 that was not
        trained is as good as f32."""
        for one in (name, "f32") if name == "fp16" else (name,):
            key = (like["model"], like["ranks"], bool(like.get("quick")), one)
            if key in self._rows:
                return self._rows[key]
        return {}

    def loss(self, like: harness.Row, name: str, seeds: Sequence[int]) -> list[float] | None:
        """Mean loss over those of these seeds that were trained."""
        return None if (known := self.known(like, name, seeds)) is None else known[1]

    def known(
        self, like: harness.Row, name: str, seeds: Sequence[int]
    ) -> tuple[list[int], list[float]] | None:
        """Those of these seeds that were trained, and their mean loss."""
        rows = self.of(like, name)
        found = [seed for seed in seeds if seed in rows]
        return (found, mean_of([rows[seed]["loss"] for seed in found])) if found else None


# ---- time to the target ---------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    """One model, number of ranks and network: the planner's training beside all others."""

    row: harness.Row  # of step times; without "sides" when they were not measured
    ours: str  # of OURS
    seeds: list[int]
    target: float
    limit_s: float  # plain's steps to the target, each without communication
    plain_steps: int
    auto_steps: int | None  # None: not reached
    auto_s: float | None
    peers: dict[str, float | None]  # seconds to the target; None: not reached
    unknown: list[str]  # peers whose loss against steps nobody recorded
    short: list[str]  # peers of which it was recorded with fewer seeds
    final: float  # held-out loss
    plain_final: list[float]  # of each seed, after as many steps; empty: not recorded there
    at_s: list[float]
    loss: list[float]

    @property
    def share(self) -> float | None:
        return self.limit_s / self.auto_s if self.auto_s else None

    @property
    def best_peer(self) -> str | None:
        reached = {name: one for name, one in self.peers.items() if one is not None}
        return min(reached, key=lambda name: reached[name]) if reached else None

    @property
    def peer_ratio(self) -> float | None:
        """Above 1 scant is faster; None where either did not reach the target."""
        seconds = self.peers[self.best_peer] if self.best_peer else None
        return seconds / self.auto_s if seconds and self.auto_s else None

    @property
    def no_peer(self) -> bool:
        """This side reaches the target and none of the peers does, all of them being known."""
        known = bool(self.peers) and not self.unknown
        return known and self.best_peer is None and self.auto_s is not None


def outcomes(rows: Rows, curves: Curves) -> tuple[list[Outcome], list[str]]:
    """With what could not be told, and why."""
    trainings: dict[tuple[Place, str], list[harness.Row]] = {}
    for row in good(rows, "training"):
        if row["configuration"] in OURS:
            trainings.setdefault((place(row), row["configuration"]), []).append(row)
    steps = {place(row): row for row in good(rows, "steps")}
    found, missing = [], []
    for (key, _), own in trainings.items():
        row = steps.get(key, own[0])
        plain = curves.of(row, "f32")
        own = [one for one in own if one["seed"] in plain]
        if not own:
            missing.append(f"{where(row)}: no recorded training of f32 with this seed")
            continue
        found.append(outcome(row, own, plain, curves))
    return found, missing


def plain_and_target(
    plain: dict[int, harness.Row], seeds: Sequence[int], steps: int
) -> tuple[list[float], float]:
    """Plain's mean loss over these seeds, and the target that follows from it."""
    loss = mean_of([plain[seed]["loss"] for seed in seeds])[:steps]
    return loss, target_loss(loss)


def outcome(row: harness.Row, own: Rows, plain: dict[int, harness.Row], curves: Curves) -> Outcome:
    seeds = [one["seed"] for one in own]
    loss, at_s = mean_of([one["loss"] for one in own]), mean_of([one["at_s"] for one in own])
    plain_loss, target = plain_and_target(plain, seeds, len(loss))
    plain_steps = steps_to(plain_loss, target)
    assert plain_steps is not None
    auto_steps = steps_to(loss, target)
    peers: dict[str, float | None] = {}
    unknown, short = [], []
    for name, kind in row.get("kinds", {}).items():
        if kind != "peer":
            continue
        recorded = curves.known(row, row["curves"][name], seeds)
        if recorded is None:
            unknown.append(name)
            continue
        known, of_peer = recorded
        if len(known) < len(seeds):
            short.append(name)
        _, its_target = plain_and_target(plain, known, len(loss))  # of the same seeds
        steps = steps_to(of_peer, its_target)
        peers[name] = steps * row["sides"][name]["seconds"][1] if steps else None
    alone_s = statistics.fmean(second for one in own for second in one["alone_s"])
    return Outcome(
        row=row,
        ours=own[0]["configuration"],
        seeds=seeds,
        target=target,
        limit_s=plain_steps * alone_s,
        plain_steps=plain_steps,
        auto_steps=auto_steps,
        auto_s=at_s[auto_steps - 1] if auto_steps else None,
        peers=peers,
        unknown=unknown,
        short=short,
        final=statistics.fmean(one["held_out"][-1][2] for one in own),
        plain_final=[
            value
            for one in plain.values()
            for step, _, value in one["held_out"]
            if step == len(loss)
        ],
        at_s=at_s,
        loss=loss,
    )


# ---- never worse, and predictions -----------------------------------------------------------


@dataclasses.dataclass
class Worse:
    """The planner's step time beside the best plan given by hand of at least its fidelity."""

    row: harness.Row
    ours: str
    ratio: float
    pinned: str
    plan: str
    kept: float


def kept_of(name: str, side: dict[str, Any]) -> float | None:
    kept = side.get("said", {}).get("kept")
    return 1.0 if name == "plain" else kept


def never_worse(rows: Rows) -> list[Worse]:
    found = []
    sides = [(row, ours) for row in good(rows, "steps") for ours in OURS if ours in row["sides"]]
    for row, ours in sides:
        auto = row["sides"][ours]
        kept = kept_of(ours, auto)
        if kept is None:
            continue
        times = {}
        for name, side in row["sides"].items():
            own = kept_of(name, side) if row["kinds"][name] == "pinned" else None
            if own is not None and own >= kept - KEPT_TOLERANCE:
                times[name] = side["seconds"][1]
        if times:
            best = min(times, key=lambda name: times[name])
            ratio = auto["seconds"][1] / times[best]
            found.append(Worse(row, ours, ratio, best, auto["said"]["plan"], kept))
    return found


def prediction_errors(rows: Rows) -> list[tuple[str, float]]:
    """(where and which side, predicted ÷ measured − 1), of periods that were predicted."""
    found = []
    for row in good(rows, "steps"):
        for name, side in row["sides"].items():
            said = side.get("said", {})
            if said.get("predicted_s") and said.get("step_s"):
                error = said["predicted_s"] / said["step_s"] - 1
                found.append((f"{where(row)}, {name}", error))
    return found


# ---- what was sent ---------------------------------------------------------------------------


def silent_share(row: harness.Row) -> float | None:
    """Of a side or a training: parts that had something to send and sent nothing, as a share of
    all that had, over all steps; None where nobody counted or nothing was encoded."""
    silent, counted = row.get("silent") or (0, 0)
    return silent / counted if counted else None


def _sent_misses(rows: Rows) -> list[str]:
    told = [
        (f"{where(row)}, {name}", side, side.get("said", {}).get("sent_to_budget"))
        for row in good(rows, "steps")
        for name, side in row["sides"].items()
    ]
    told += [
        (f"{where(row)}, training {row['configuration']}", row, row.get("sent_to_budget"))
        for row in good(rows, "training")
    ]
    missed = []
    for name, row, ratio in told:
        if silent_share(row):
            missed.append(f"{name}: {row['silent'][0]} times a tensor's part sent nothing")
        if ratio is not None and abs(ratio - 1) > BUDGET_MAX:
            missed.append(f"{name}: bytes sent ÷ budget {ratio:.3f}, off by more than {BUDGET_MAX}")
    return missed


# ---- the stated figures ---------------------------------------------------------------------


def wanted(bounds: Sequence[tuple[float, float]], rho: float) -> float:
    return next(value for below, value in bounds if rho < below)


def _tuning_misses(name: str, one: Outcome) -> list[str]:
    """Too few seeds, or peers that were not given the choice that their users have."""
    missed = []
    if len(one.seeds) < SEEDS_MIN:
        missed.append(f"{name}: {len(one.seeds)} of {SEEDS_MIN} seeds")
    for family, least in (("DDP, ", BUCKETS_MIN), ("PowerSGD ", POWERSGD_MIN)):
        count = sum(peer.startswith(family) for peer in one.row["kinds"])
        if count < least:
            missed.append(f"{name}: {count} of {least} {family.strip(', ')} sides")
    return missed


def _outcome_misses(one: Outcome) -> list[str]:
    name, rho, missed = f"{where(one.row)}, {one.ours}", one.row.get("rho"), []
    if rho is None:
        return [f"{name}: step times were not measured"]
    missed += _tuning_misses(name, one)
    if one.share is None:
        missed.append(f"{name}: the target loss {one.target:.3f} was not reached")
    elif one.share < wanted(SHARE_MIN, rho):
        missed.append(f"{name}: share of the limit {one.share:.3f} < {wanted(SHARE_MIN, rho)}")
    least = PEER_MIN_UNSHAPED if one.row["network"] == UNSHAPED else wanted(PEER_MIN, rho)
    if one.peer_ratio is not None and one.peer_ratio < least:
        missed.append(f"{name}: {one.best_peer} ÷ scant {one.peer_ratio:.3f} < {least}")
    missed += [f"{name}: no recorded training for {peer}" for peer in one.unknown]
    missed += [f"{name}: {peer} was trained with fewer seeds" for peer in one.short]
    if rho < NOISE_RHO_MAX and len(one.plain_final) > 1:
        noise = SEED_NOISE * statistics.stdev(one.plain_final)
        most = statistics.fmean(one.plain_final) + noise
        if one.final > most:
            missed.append(f"{name}: held-out loss {one.final:.3f} > {most:.3f}, plain's with noise")
    return missed


def _worse_misses(all_of_them: Sequence[Worse]) -> list[str]:
    if not all_of_them:
        return ["never worse: no row"]
    missed = []
    middle = statistics.median(one.ratio for one in all_of_them)
    if middle > WORSE_MEDIAN_MAX:
        missed.append(f"never worse: median {middle:.3f} > {WORSE_MEDIAN_MAX}")
    for one in all_of_them:
        if one.ratio > WORSE_MAX:
            name = f"{where(one.row)}: {one.ours} ÷ {one.pinned}"
            missed.append(f"{name} {one.ratio:.3f} > {WORSE_MAX}")
    return missed


def gate(rows: Rows, curves: Curves, labs: Sequence[Place]) -> list[str]:
    """What the stated figures miss; `labs` should all have rows."""
    missed = [f"{where(row)}: {row['error']}" for row in rows if "error" in row]
    found, unknown = outcomes(rows, curves)
    missed += unknown
    for one in found:
        missed += _outcome_misses(one)
    told = {place(one.row) for one in found}
    missed += [f"{', '.join(map(str, lab))}: no row" for lab in labs if lab not in told]
    missed += _sent_misses(rows)
    missed += _worse_misses(never_worse(rows))
    errors = [abs(error) for _, error in prediction_errors(rows)]
    if not errors or statistics.median(errors) > PREDICTION_MAX:
        shown = f"{statistics.median(errors):.3f} > {PREDICTION_MAX}" if errors else "no row"
        missed.append(f"prediction: median error {shown}")
    return missed
