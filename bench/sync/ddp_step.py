"""A training step of the demo's model with DistributedDataParallel: scant against gloo.

    ./dev bench ddp_step --quick
    ./dev bench ddp_step --ranks 4 --networks 1gbit 100mbit

Every rank holds the model of examples/char_transformer.py twice, from the same weights and fed the
same samples; only the process group differs. Both must give the same losses before anything is
timed. Blocks of steps alternate A B B A. The ratio is scant's time ÷ gloo's: below 1 scant is
faster.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness

BACKENDS = ("gloo", "scant")
# The two add gradients in different orders, and AdamW's first steps magnify rounding.
LOSS_TOLERANCE = 1e-3
WARM_UP = 3  # steps; DDP settles its buckets in the first two
RATIO_MAX = 1.0  # the stated figure
BATCH, BLOCK = 8, 64  # the example's own
PATIENCE_S = 1800


DEFAULTS: harness.Defaults = {
    "ranks": ([4], [2]),
    "networks": (list(harness.NETWORKS), ["loopback"]),
    "steps": (10, 2),
    "repeats": (4, 1),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options = harness.Options(parser, DEFAULTS)
    options.add_ranks()
    options.add_networks(list(harness.NETWORKS))
    options.add("--steps", "of one block", type=int, metavar="N")
    options.add("--repeats", "of the A B B A pattern", type=int, metavar="N")
    text = "of weights and samples (default: %(default)s)"
    parser.add_argument("--seed", type=int, default=1, metavar="N", help=text)
    arguments = options.parse("rows and table", ("steps", "repeats"))
    if min(arguments.ranks) < 2:
        parser.error("--ranks: a gradient needs at least 2 to travel")
    return arguments


# ---- one rank -------------------------------------------------------------------------------


class Training:
    """The example's training on one process group."""

    def __init__(self, example: Any, group: Any, seed: int) -> None:
        import torch
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        torch.manual_seed(seed)
        self._example = example
        self._group = group
        self._text = example.load_text()
        self._draw = torch.Generator().manual_seed(seed * 1000 + dist.get_rank())
        model = example.CharTransformer(block=BLOCK)
        self._model = DistributedDataParallel(model, process_group=group)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-3)
        self.losses: list[float] = []

    def step(self) -> None:
        """One step and, as in the example, the mean loss of all ranks."""
        import torch.distributed as dist

        window = self._example.sample(self._text, self._draw, BATCH, BLOCK)
        mean = self._example.train_step(self._model, self._optimizer, window).clone()
        dist.all_reduce(mean, group=self._group)
        self.losses.append(float(mean) / dist.get_world_size())


def difference(trainings: dict[str, Training]) -> float:
    """The largest relative difference between the losses of the same step."""
    pairs = zip(*(training.losses for training in trainings.values()), strict=True)
    return float(max(abs(a - b) / abs(a) for a, b in pairs))


def measure(plan: dict[str, Any], groups: dict[str, Any]) -> dict[str, Any]:
    """This rank's blocks; every rank runs the same ones."""
    import torch.distributed as dist

    example = harness.load_example()
    trainings = {name: Training(example, groups[name], plan["seed"]) for name in BACKENDS}
    for training in trainings.values():
        for _ in range(WARM_UP):
            training.step()
    # The losses are means over all ranks, the same on each: all ranks decide alike.
    if not difference(trainings) <= LOSS_TOLERANCE:
        losses = {name: training.losses for name, training in trainings.items()}
        return {"error": f"losses differ: {losses}"}
    samples: dict[str, list[harness.Sample]] = {name: [] for name in BACKENDS}
    for name in harness.palindrome(BACKENDS) * plan["repeats"]:
        barrier = functools.partial(dist.barrier, group=groups[name])
        barrier()
        samples[name].append(harness.block(trainings[name].step, plan["steps"], barrier))
    return {
        "samples": samples,
        "loss": {name: training.losses[-1] for name, training in trainings.items()},
        "loss_difference": difference(trainings),
    }


def work(plan: dict[str, Any]) -> None:
    """A rank: measures and gives its numbers to rank 0."""
    import torch.distributed as dist
    from worker import hand_in, join

    groups = join()
    hand_in(plan, {}, measure(plan, groups), groups)
    dist.destroy_process_group()


# ---- the run --------------------------------------------------------------------------------


def to_row(found: Sequence[dict[str, Any]], row: harness.Row) -> harness.Row:
    """All ranks' numbers as one row: the slowest rank's time, the CPU and wire bytes of all."""
    errors = [one["error"] for one in found if "error" in one]
    if errors:
        return {**row, "error": errors[0]}
    for name in BACKENDS:
        row[name] = harness.of_all_ranks([one["samples"][name] for one in found])
    seconds = [row[name]["samples"] for name in ("scant", "gloo")]
    row["ratio"] = harness.quantiles(harness.ratios(*seconds))
    cpu = row["gloo"]["cpu_s"]
    row["cpu_ratio"] = row["scant"]["cpu_s"] / cpu if cpu else None
    row["loss"] = found[0]["loss"]
    row["loss_difference"] = found[0]["loss_difference"]
    return {**row, **harness.machine()}


def run_network(network: str, ranks: int, arguments: argparse.Namespace) -> harness.Row:
    """One row: this network with so many ranks."""
    row: harness.Row = {
        "case": "ddp_step",
        "ranks": ranks,
        "network": network,
        "ratio_of": "seconds and cpu: scant's ÷ gloo's",
        "steps_per_block": arguments.steps,
        "seed": arguments.seed,
    }
    plan = {name: getattr(arguments, name) for name in ("steps", "repeats", "seed")}
    with harness.open_lab(network, ranks) as lab:
        found, codes = harness.run_workers(lab, __file__, plan, PATIENCE_S)
    if any(codes) or not found:
        return {**row, "error": f"exit codes {codes}"}
    return to_row(found[0]["by_rank"], row)


def table(rows: Sequence[harness.Row]) -> str:
    """Ratios first; a row that scant loses says so."""
    head = ["network", "ranks", "step time scant ÷ gloo (quartiles)", "CPU scant ÷ gloo"]
    head += ["gloo ms", "scant ms", "MB sent by a rank, gloo", "scant", "loss gloo", "scant", ""]
    lines = []
    for row in rows:
        line = [row["network"], str(row["ranks"])]
        if "error" in row:
            lines.append([*line, *["–"] * (len(head) - 3), row["error"]])
            continue
        low, middle, high = row["ratio"]
        line.append(f"{middle:.3f} ({low:.3f}–{high:.3f})")
        line.append("–" if row["cpu_ratio"] is None else f"{row['cpu_ratio']:.2f}")
        line += [f"{1e3 * row[name]['seconds'][1]:,.1f}" for name in BACKENDS]
        for name in BACKENDS:
            sent = row[name]["wire_bytes_per_rank"] / 1e6
            line.append("–" if row["network"] == "loopback" else f"{sent:.2f}")
        line += [f"{row['loss'][name]:.4f}" for name in BACKENDS]
        lines.append([*line, "loses" if middle > RATIO_MAX else ""])
    return harness.markdown(head, lines)


def gate(rows: Sequence[harness.Row], wanted: int) -> list[str]:
    """What the stated figure misses."""
    missed = []
    for row in rows:
        where = f"{row['network']} {row['ranks']} ranks"
        if "error" in row:
            missed.append(f"{where}: {row['error']}")
        elif row["ratio"][1] > RATIO_MAX:
            missed.append(f"{where}: {row['ratio'][1]:.3f} > {RATIO_MAX}")
    if len(rows) < wanted:
        missed.append(f"{len(rows)} rows of {wanted}")
    return missed


def main() -> int:
    """Returns the exit status."""
    arguments = parse()
    if arguments.worker:
        work(json.loads(arguments.worker))
        harness.leave()
    wanted = len(arguments.networks) * len(arguments.ranks)
    return harness.run_cases(
        "ddp_step",
        arguments,
        lambda network, ranks, recorder: recorder.add(run_network(network, ranks, arguments)),
        lambda rows, _: table(rows),
        lambda rows: gate(rows, wanted),
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
