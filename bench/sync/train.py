"""Data-parallel training on links of several rates: scant.torch.wrap beside DDP, fp16 and PowerSGD.

    ./dev bench train --quick
    ./dev bench train --ranks 4 --models transformer --networks none 1gbit 100mbit 25mbit
    ./dev bench train --compute replay

For each model, network and number of ranks, in one lab: the step time of every side, in blocks that
alternate; then whole trainings by --train, each with its own clock. How many steps a side needs to
the target loss does not depend on the network and comes from recorded trainings (--curves).
With --compute replay step times alone: computing waits as long as a recorded one took.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness
import replay_figures
import train_figures
import train_report
from train_figures import UNSHAPED
from train_replay import MADE
from train_sides import ALONE, PLANS, of_curve, specs
from train_tasks import TASKS

RESULTS = pathlib.Path(__file__).parents[1] / "results"
PARTS = ("steps", "training")
PATIENCE_S = 7200  # for one lab

DEFAULTS: harness.Defaults = {
    "models": (list(TASKS), ["transformer"]),
    "ranks": ([4, 8], [2]),
    "networks": ([UNSHAPED, "1gbit", "100mbit", "25mbit"], ["1gbit"]),
    "parts": (list(PARTS), list(PARTS)),
    "train": (["auto"], ["auto"]),
    "seeds": ([1], [1]),
    "train_steps": (250, 12),
    "buckets_mb": ([1, 5, 25], [25]),
    "powersgd": ([1, 2, 4, 8, 16], [1]),
    "plans": (list(PLANS), ["plain", "q4"]),
    "steps": (10, 2),
    "block_s": (4.0, 0.1),
    "repeats": (2, 1),
    "warm_up_steps": (64, 8),
    "warm_up_s": (150.0, 2.0),
}
# With --compute replay, where they differ.
REPLAYED: harness.Defaults = {
    "models": ([MADE], [MADE]),
    "ranks": ([4], [2]),
    "networks": ([UNSHAPED, "1gbit", "100mbit", "25mbit"], ["1gbit"]),
    "parts": (["steps"], ["steps"]),
    "buckets_mb": ([25], [25]),
    "powersgd": ([16, 4], [1]),
    "plans": ([], []),
    "steps": (5, 2),
    "block_s": (2.0, 0.1),
}
IN_WORKER = ("compute", "quick", "parts", "train", "seeds", "train_steps", "buckets_mb",
             "powersgd", "plans", "steps", "block_s", "repeats", "warm_up_steps",
             "warm_up_s")  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument

    def words(name: str, text: str) -> str:
        return f"{text} {harness.default_text(DEFAULTS, name)}".replace("%", "%%")

    add("--quick", action="store_true", help="a short run, to see that everything works")
    add("--compute", choices=("real", "replay"), default="real",
        help="replay: backward waits as long as a recorded one took, and hands out recorded "
        "gradients; step times alone (default: %(default)s)")  # fmt: skip
    add("--models", nargs="+", choices=[*TASKS, MADE], metavar="NAME",
        help=words("models", f"of {', '.join(TASKS)}")
        + f"; {MADE} too (and alone, unless named) with --compute replay")  # fmt: skip
    add("--ranks", type=int, nargs="+", metavar="N", help=words("ranks", "numbers of ranks"))
    add("--networks", nargs="+", metavar="RATE",
        help=words("networks", "rates of the lab's links"))  # fmt: skip
    add("--parts", nargs="+", choices=PARTS, metavar="PART",
        help=words("parts", f"of {', '.join(PARTS)}"))  # fmt: skip
    add("--train", nargs="+", metavar="NAME",
        help=words("train", "whole trainings: auto, f32, fp16, PowerSGD N, a plan"))  # fmt: skip
    add("--seeds", type=int, nargs="+", metavar="N", help=words("seeds", "of weights and samples"))
    add("--train-steps", type=int, metavar="N", help=words("train_steps", "of a whole training"))
    add("--buckets-mb", type=int, nargs="+", metavar="MB",
        help=words("buckets_mb", "buckets of DDP, f32 and fp16; the best counts"))  # fmt: skip
    add("--powersgd", type=int, nargs="+", metavar="RANK",
        help=words("powersgd", "ranks of PowerSGD; the best counts"))  # fmt: skip
    add("--plans", nargs="+", choices=PLANS, metavar="PLAN",
        help=words("plans", "plans given by hand"))  # fmt: skip
    add("--steps", type=int, metavar="N", help=words("steps", "of one block, at most"))
    add("--block-s", type=float, metavar="S", help=words("block_s", "seconds of a block, about"))
    add("--repeats", type=int, metavar="N", help=words("repeats", "of the pattern of blocks"))
    add("--warm-up-steps", type=int, metavar="N",
        help=words("warm_up_steps", "of each side of scant, at most"))  # fmt: skip
    add("--warm-up-s", type=float, metavar="S", help=words("warm_up_s", "the same, in seconds"))
    add("--curves", nargs="*", type=pathlib.Path, default=[], metavar="JSONL",
        help="more rows of loss against steps than bench/results has")  # fmt: skip
    add("--report", nargs="+", type=pathlib.Path, metavar="JSONL",
        help="nothing is measured: table and page of the rows in these files")  # fmt: skip
    add("--out", default="out/bench", metavar="FOLDER", help="(default: %(default)s)")
    add("--gate", action="store_true", help="fail when a stated figure is missed")
    add("--worker", help=argparse.SUPPRESS)


def parse() -> argparse.Namespace:
    from scant.lab import UsageError
    from scant.lab.units import parse_rate

    lead = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=lead)
    add_options(parser)
    arguments = parser.parse_args()
    replayed = arguments.compute == "replay"
    harness.apply_defaults(arguments, DEFAULTS | (REPLAYED if replayed else {}))
    if replayed and arguments.parts != ["steps"]:
        parser.error("--compute replay: it learns nothing, so it has --parts steps alone")
    if MADE in arguments.models and not replayed:
        parser.error(f"--models {MADE}: it is nothing to train; add --compute replay")
    for name in ("steps", "repeats", "train_steps", "buckets_mb", "powersgd"):
        value = getattr(arguments, name)
        if min(value if isinstance(value, list) else [value]) < 1:
            parser.error(f"--{name.replace('_', '-')}: {value} is below 1")
    if min(arguments.ranks) < 2:
        parser.error("--ranks: a gradient needs at least 2 to travel")
    try:
        for name in arguments.train:
            of_curve(name)
        for network in arguments.networks:
            if network != UNSHAPED:
                parse_rate(network, "--networks")
    except (ValueError, UsageError) as error:
        parser.error(str(error))
    return arguments


# ---- rows -----------------------------------------------------------------------------------


def summed(pairs: Sequence[Sequence[int]]) -> list[int]:
    """Place by place."""
    return [sum(of) for of in zip(*pairs, strict=True)]


def side_row(name: str, ranks: Sequence[dict[str, Any]], alone_s: float) -> harness.Row:
    """One side's blocks of all ranks; exposed_s: beyond a step without communication."""
    row = harness.of_all_ranks([one["samples"][name] for one in ranks])
    row["steps_per_block"] = ranks[0]["steps_per_block"][name]
    row["exposed_s"] = row["seconds"][1] - alone_s
    if name in ranks[0]["waits"]:
        waits = [one["waits"][name] for one in ranks]
        row |= {**waits[0], "waited_s": max(one["waited_s"] for one in waits)}
        row["said"] = ranks[0]["said"][name]
        row["silent"] = summed([one["silent"][name] for one in ranks])
    return row


def steps_row(found: harness.Row, arguments: argparse.Namespace) -> harness.Row:
    ranks = found["by_rank"]
    wanted = specs(
        arguments.buckets_mb,
        arguments.powersgd,
        arguments.plans,
        backend=arguments.compute == "real",
    )
    alone = harness.of_all_ranks([one["samples"][ALONE] for one in ranks])["seconds"][1]
    dense = ranks[0]["dense_s"]
    return {
        "elements": ranks[0]["elements"],
        "dense_s": dense,
        "rho": min(dense.values()) / alone,
        "kinds": {one.name: one.kind for one in wanted},
        "curves": {one.name: one.curve for one in wanted},
        "sides": {one.name: side_row(one.name, ranks, alone) for one in wanted},
        "plans": ranks[0]["plans"],
    }


def training_row(found: harness.Row) -> harness.Row:
    """Losses: means over the ranks. Times: of the slowest. Bytes: of a rank. CPU: of all ranks."""
    ranks = found["by_rank"]
    sent = [
        statistics.mean(one["held_out"][i][1] for one in ranks)
        for i in range(len(ranks[0]["held_out"]))
    ]
    return {
        "configuration": found["configuration"],
        "steps": len(ranks[0]["loss"]),
        "loss": [statistics.mean(of) for of in zip(*(one["loss"] for one in ranks), strict=True)],
        "at_s": [max(of) for of in zip(*(one["at_s"] for one in ranks), strict=True)],
        "held_out": [
            (step, bytes_sent, loss)
            for (step, _, loss), bytes_sent in zip(ranks[0]["held_out"], sent, strict=True)
        ],
        "alone_s": ranks[0]["alone_s"],
        "cpu_s": sum(one["cpu_s"] for one in ranks),
        "same_parameters": ranks[0]["same_parameters"],
        "plans": ranks[0]["plans"],  # last step of a period, plan, its step time, the predicted
        "guard": ranks[0]["guard"],
        "silent": summed([one["silent"] for one in ranks]),
        "sent_to_budget": ranks[0]["sent_to_budget"],
    }


def to_row(found: harness.Row, row: harness.Row, arguments: argparse.Namespace) -> harness.Row:
    row = {"case": found["case"], **row, "seed": found.get("seed", arguments.seeds[0])}
    errors = [one["error"] for one in found["by_rank"] if one.get("error")]
    if errors:
        return {**row, "error": errors[0]}
    own = training_row(found) if found["case"] == "training" else steps_row(found, arguments)
    row |= own | {"quick": arguments.quick}
    if found["case"] == "training" and not own["same_parameters"]:
        row["error"] = f"{own['configuration']}: parameters differ between the ranks"
    return row | harness.machine()


def run_lab(
    model: str, network: str, ranks: int, arguments: argparse.Namespace, recorder: harness.Recorder
) -> None:
    """All parts of one model on one network with so many ranks: a row each."""
    from scant.lab import Lab, LinkOptions
    from scant.lab.units import parse_rate

    rate = None if network == UNSHAPED else parse_rate(network)
    row: harness.Row = {"model": model, "ranks": ranks, "network": network, "rate": rate}
    row |= {"compute": "replayed"} if arguments.compute == "replay" else {}
    plan = {name: getattr(arguments, name) for name in IN_WORKER} | {"model": model}
    with Lab(ranks, LinkOptions(rate_bits_per_second=rate)) as lab:
        found, codes = harness.run_workers(lab, __file__, plan, PATIENCE_S)
    for one in found:
        recorder.add(to_row(one, row, arguments))
    if any(codes):
        recorder.add({"case": "lab", **row, "error": f"exit codes {codes}"})


# ---- the run --------------------------------------------------------------------------------


def known_curves(arguments: argparse.Namespace) -> list[harness.Row]:
    """Of bench/results and --curves; of a quick run's small models there are none."""
    if arguments.quick:
        return []
    paths = sorted(RESULTS.glob("*/convergence.jsonl")) + sorted(RESULTS.glob("*/train.jsonl"))
    return harness.read_rows([*paths, *arguments.curves])


def gate(
    rows: Sequence[harness.Row], curves: Sequence[harness.Row], arguments: argparse.Namespace
) -> list[str]:
    labs = list(itertools.product(arguments.models, arguments.ranks, arguments.networks))
    if arguments.compute == "replay":
        return replay_figures.gate(rows, labs)
    return train_figures.gate(rows, train_figures.Curves([*curves, *rows]), labs)


def main() -> int:
    """Returns the exit status."""
    arguments = parse()
    if arguments.worker:
        from train_work import work

        work(json.loads(arguments.worker))
        harness.leave()
    curves = known_curves(arguments)
    if arguments.report:
        rows = harness.read_rows(arguments.report)
        folder = pathlib.Path(arguments.out)
        folder.mkdir(parents=True, exist_ok=True)
        text = train_report.write(rows, curves, folder)
        (folder / "train.md").write_text(text + "\n")
        print(text)
        missed = gate(rows, curves, arguments) if arguments.gate else []
        print("".join(f"missed: {line}\n" for line in missed), end="", file=sys.stderr)
        return 1 if missed else 0

    def run_network(network: str, ranks: int, recorder: harness.Recorder) -> None:
        for model in arguments.models:
            run_lab(model, network, ranks, arguments, recorder)

    return harness.run_cases(
        "train",
        arguments,
        run_network,
        lambda rows, folder: train_report.write(rows, curves, folder),
        lambda rows: gate(rows, curves, arguments),
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
