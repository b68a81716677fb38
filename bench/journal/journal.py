"""What it costs to keep a training's state: scant.Journal beside torch.save and torch's dcp.

    ./dev bench journal --quick
    ./dev bench journal --networks loopback 1gbit --plans q4 plain

The demo's model on four ranks. Each way to keep the state trains a copy of its own, in blocks of
steps that alternate A B B A with blocks of a copy whose state nobody keeps. The ratio is its step
time ÷ the time without. What it writes beside training is waited for between blocks; what was
written must come back equal to the bit. Journals and checkpoints lie on one disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness

KINDS = ("journal", "torch.save", "dcp.save", "dcp.async_save")
NONE = "none"
PATIENCE_S = 7200
# The stated figures, of the journal as users get it, on the demo's model.
OVERHEAD_MAX, STALL_P99_MAX_S = 0.02, 0.005
ALLOCATOR_BYTES = 8 << 20  # by which resident memory may differ from what was asked for

DEFAULTS: harness.Defaults = {
    "ranks": ([4], [2]),
    "networks": (["loopback"], ["loopback"]),
    "plans": (["q4", "plain", "ddp"], ["q4"]),
    "kinds": (list(KINDS), list(KINDS)),
    "every": ([1, 10, 50], [1]),
    "unsynced": ([1, 4, 16], [1, 16]),
    "steps": (50, 2),
    "repeats": (2, 1),
    "settle": (40, 2),
}
IN_WORKER = ("quick", "steps", "repeats", "settle", "seed", "base_every")


def add_options(parser: argparse.ArgumentParser) -> harness.Options:
    options = harness.Options(parser, DEFAULTS)
    options.add_ranks()
    options.add_networks(list(harness.NETWORKS))
    text = "of scant.torch.wrap, or ddp: DistributedDataParallel on gloo"
    options.add("--plans", text, nargs="+", metavar="PLAN")
    options.add("--kinds", f"of {', '.join(KINDS)}", nargs="+", choices=KINDS, metavar="KIND")
    text = "steps from checkpoint to checkpoint of the peers"
    options.add("--every", text, type=int, nargs="+", metavar="N")
    text = "of the journal: steps that a power cut may take"
    options.add("--unsynced", text, type=int, nargs="+", metavar="N")
    text = "steps from base to base of the journal (default: %(default)s)"
    parser.add_argument("--base-every", default="auto", metavar="N", help=text)
    options.add("--steps", "of one block", type=int, metavar="N")
    options.add("--repeats", "of the A B B A pattern", type=int, metavar="N")
    options.add("--settle", "steps of each way before it is timed", type=int, metavar="N")
    text = "of weights and samples (default: %(default)s)"
    parser.add_argument("--seed", type=int, default=1, metavar="N", help=text)
    text = "where states are kept while it runs (default: the folder of --out)"
    parser.add_argument("--disk", metavar="FOLDER", help=text)
    return options


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options = add_options(parser)
    arguments = options.parse("rows and table", ("steps", "repeats", "every", "unsynced"))
    if arguments.base_every != "auto":
        if not arguments.base_every.isdecimal() or int(arguments.base_every) < 1:
            parser.error(f"--base-every: auto or a number of steps, not {arguments.base_every}")
        arguments.base_every = int(arguments.base_every)
    if arguments.steps % math.lcm(*arguments.every) != 0:
        parser.error(f"--steps: {arguments.steps} is no multiple of each of --every")
    if min(arguments.ranks) < 2:
        parser.error("--ranks: a gradient needs at least 2 to travel")
    return arguments


# ---- rows -----------------------------------------------------------------------------------


def high(values: Sequence[float]) -> list[float]:
    """Median, 99th percentile, largest."""
    ordered = sorted(values)
    place = min(len(ordered) - 1, math.ceil(0.99 * len(ordered)) - 1)
    return [statistics.median(ordered), ordered[place], ordered[-1]]


def kept_figures(spec: harness.Row, ranks: Sequence[harness.Row]) -> harness.Row:
    """Bytes and lost steps, as the way's own numbers tell them."""
    figures = [one["figures"] for one in ranks]
    if spec["kind"] != "journal":
        every, step_s = spec["every"], statistics.median(ranks[0]["step_s"][NONE])
        # One is written at a time: the next one waits for it.
        beside = min(every, math.ceil(max(one.get("write_s", 0.0) for one in figures) / step_s))
        return {
            "bytes_per_step": figures[0]["checkpoint_bytes"] / every,
            "state_bytes": figures[0]["checkpoint_bytes"],
            "lost_max": every + beside,  # while one is written only the one before counts
            "lost_mean": (every - 1) / 2 + beside,
        }
    lead, before = figures[0], ranks[0]["before"]
    base = sum(one["base_bytes"] for one in figures)
    logged = lead["bytes"] / lead["entries"] if lead["entries"] else 0.0
    lost = lead["base_interval"] if spec["log"] == "never" else 0
    return {
        "bytes_per_step": logged + base / lead["base_interval"],
        "log_bytes_per_step": logged,
        "state_bytes": base,
        "base_interval": lead["base_interval"],
        "base_work_s": max(one["base_work_s"] for one in figures),
        "base_s": lead["base_s"],
        "bases_timed": lead["bases"] - before["bases"],
        "as_is": lead["as_is"],
        "holes": lead["holes"],
        "memory_bytes_max": [one["memory_bytes_max"] for one in figures],
        "lost_max": lost,
        "lost_mean": lost / 2,
    }


def to_row(found: harness.Row, row: harness.Row, arguments: argparse.Namespace) -> harness.Row:
    """All ranks' numbers of one way."""
    spec, ranks = found["spec"], found["by_rank"]
    name = spec["name"]
    row = {"case": "journal", **row, **spec, "seed": arguments.seed, "quick": arguments.quick}
    sides = {one: harness.of_all_ranks([rank["samples"][one] for rank in ranks])
             for one in (NONE, name)}  # fmt: skip
    stalls = [max(of) for of in zip(*(one["stall_s"] for one in ranks), strict=True)]
    others = [max(of) for of in zip(*(one["stall_s"] for one in ranks[1:]), strict=True)]
    recovery = [one["recovery"] for one in ranks]
    kept = kept_figures(spec, ranks)
    step_s = sides[NONE]["seconds"][1]
    seconds = max(one["seconds"] for one in recovery)
    row |= {
        "ratio": harness.quantiles(harness.ratios(sides[name]["samples"], sides[NONE]["samples"])),
        "steps_per_block": arguments.steps,
        "without": sides[NONE],
        "with": sides[name],
        "step_s": {one: harness.quantiles(ranks[0]["step_s"][one]) for one in (NONE, name)},
        "stall_s": high(stalls),
        "stall_lead_s": high(ranks[0]["stall_s"]),
        "stall_others_s": high(others),
        **kept,
        "written_bytes_per_step": sum(one["written_bytes"] for one in ranks) / len(stalls),
        "rss_bytes": [one["rss_bytes"] for one in ranks],
        "lost": max(one["lost"] for one in recovery),
        "recovery_s": seconds,
        "replayed": recovery[0]["replayed"],
        "recovery_to_last_step_s": seconds + kept["lost_mean"] * step_s,
    }
    # Bases alone hold an older step, as they should.
    if row["lost"] == 0 and not all(one["same"] for one in recovery):
        row["error"] = "what was restored differs from what was kept"
    if row["lost"] > 0 and row["log"] != "never":
        row["error"] = f"{row['lost']} steps are missing in what was restored"
    return row | harness.machine()


def run_lab(
    network: str, ranks: int, arguments: argparse.Namespace, recorder: harness.Recorder
) -> None:
    """All plans and ways on one network with so many ranks: a row each."""
    from journal_sides import specs

    wanted = specs(arguments.kinds, arguments.every, arguments.unsynced)
    place = pathlib.Path(arguments.disk or arguments.out)
    for plan in arguments.plans:
        row = {"network": network, "ranks": ranks, "plan": plan}
        with tempfile.TemporaryDirectory(prefix="journal-", dir=place) as folder:
            given = {name: getattr(arguments, name) for name in IN_WORKER} | {
                "plan": plan,
                "specs": [dataclasses.asdict(one) for one in wanted],
                "disk": str(pathlib.Path(folder).resolve()),
            }
            with harness.open_lab(network, ranks) as lab:
                found, codes = harness.run_workers(lab, __file__, given, PATIENCE_S)
        for one in found:
            recorder.add(to_row(one, row, arguments))
        if any(codes):
            recorder.add({"case": "journal", **row, "name": "", "error": f"exit codes {codes}"})


# ---- table and gate -------------------------------------------------------------------------


def _ms(seconds: Sequence[float]) -> str:
    return " / ".join(f"{1e3 * one:.2f}" for one in seconds)


def _mb(count: float) -> str:
    return f"{count / 1e6:.2f}"


def table_row(row: harness.Row) -> list[str]:
    low, middle, top = row["ratio"]
    bound = max(row["memory_bytes_max"]) if "memory_bytes_max" in row else None
    lost = f"{row['lost_mean']:g} ({row['lost_max']})"
    return [
        f"{middle:.3f} ({low:.3f}–{top:.3f})",
        f"{100 * (middle - 1):+.1f}",
        f"{1e3 * row['without']['seconds'][1]:.1f}",
        f"{1e3 * row['with']['seconds'][1]:.1f}",
        _ms(row["stall_s"]),
        _mb(row["bytes_per_step"]),
        _mb(max(row["rss_bytes"])) + (f" of {_mb(bound)}" if bound is not None else ""),
        lost,
        f"{row['recovery_s']:.2f}",
        f"{row['recovery_to_last_step_s']:.2f}",
    ]


def table(rows: Sequence[harness.Row]) -> str:
    """Ratios first."""
    head = ["network", "ranks", "plan", "way", "step time ÷ without (quartiles)", "overhead %",
            "ms without", "ms with", "stall ms p50 / p99 / max", "MB a step",
            "more memory MB (of its bound)", "steps lost at a kill, mean (most)",
            "s to its last state", "s to the last step"]  # fmt: skip
    lines = []
    for row in rows:
        line = [row["network"], str(row["ranks"]), row["plan"], row["name"]]
        if "error" in row:
            line += [*["–"] * (len(head) - 5), row["error"]]
        else:
            line += table_row(row)
        lines.append(line)
    text = harness.markdown(head, lines)
    for row in rows:
        if row.get("kind") == "journal" and "error" not in row:
            text += (
                f"\n\n{row['network']}, {row['ranks']} ranks, {row['plan']}, {row['name']}: "
                f"{_mb(row['log_bytes_per_step'])} MB a step in the log, a base of "
                f"{_mb(row['state_bytes'])} MB each {row['base_interval']} steps "
                f"({row['base_work_s']:.2f} s of threads, {row['bases_timed']} while it was "
                f"timed); {row['replayed']} steps replayed"
            )
    return text


def missed_of(row: harness.Row) -> list[str]:
    """Of a row of the journal as users get it."""
    found = []
    if row["ratio"][1] - 1 > OVERHEAD_MAX:
        found.append(f"overhead {100 * (row['ratio'][1] - 1):.1f} % > {100 * OVERHEAD_MAX:g} %")
    if row["stall_s"][1] > STALL_P99_MAX_S:
        found.append(f"p99 stall {1e3 * row['stall_s'][1]:.2f} ms > {1e3 * STALL_P99_MAX_S:g} ms")
    for rank, (used, bound) in enumerate(
        zip(row["rss_bytes"], row["memory_bytes_max"], strict=True)
    ):
        if used > bound + ALLOCATOR_BYTES:
            found.append(f"rank {rank} took {_mb(used)} MB more, its bound is {_mb(bound)} MB")
    if row["holes"]:
        found.append(f"{row['holes']} steps are not in the log")
    return found


def gate(rows: Sequence[harness.Row], wanted: Sequence[tuple[Any, ...]]) -> list[str]:
    """What the stated figures miss, and rows that are not there."""
    missed = []
    there = {(row["network"], row["ranks"], row["plan"], row["name"]) for row in rows}
    for row in rows:
        where = f"{row['network']}, {row['ranks']} ranks, {row['plan']}, {row['name']}"
        if "error" in row:
            missed.append(f"{where}: {row['error']}")
        elif row["name"] == "journal":
            missed += [f"{where}: {text}" for text in missed_of(row)]
    missed += [f"{', '.join(map(str, one))}: no row" for one in wanted if one not in there]
    return missed


def main() -> int:
    """Returns the exit status."""
    arguments = parse()
    if arguments.worker:
        from journal_work import work

        work(json.loads(arguments.worker))
        harness.leave()
    from journal_sides import specs

    names = [one.name for one in specs(arguments.kinds, arguments.every, arguments.unsynced)]
    wanted = [
        (network, ranks, plan, name)
        for network in arguments.networks
        for ranks in arguments.ranks
        for plan in arguments.plans
        for name in names
    ]
    return harness.run_cases(
        "journal",
        arguments,
        lambda network, ranks, recorder: run_lab(network, ranks, arguments, recorder),
        lambda rows, _: table(rows),
        lambda rows: gate(rows, wanted),
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
