"""``./dev demo``: one training, some ways to average its gradients, on links of 100 Mbit/s."""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import pathlib
import statistics
import sys
from collections.abc import Sequence

from scant.demo import tuning
from scant.demo.summary import WARM_UP_STEPS, Demo, build_page, headline, table
from scant.demo.training import train
from scant.errors import reason
from scant.lab import Lab, LabError, LinkOptions, UsageError
from scant.lab.units import format_rate, parse_rate
from scant.report.text import render

# Name -> the script's options, before those of tuning.
WAYS = {
    "gloo": ["--backend", "gloo"],
    "gloo fp16": ["--backend", "gloo", "--average", "fp16"],
    "PowerSGD": ["--backend", "gloo"],
    "scant": ["--backend", "scant"],
    "scant.wrap": ["--backend", "scant", "--average", "wrap"],
}
WORKLOAD = "a character transformer of 3.2 million parameters, AdamW"
RUN_LOG = "run.jsonl"
# Exact f32 on scant takes as long as on gloo where the link is the limit: only when asked for.
SHOWN = ("gloo", "gloo fp16", "PowerSGD", "scant.wrap")
STEPS = 40
PATIENCE = 1.5  # times the first way's steps, for the others to come to its loss


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument(
        "--rate", default="100mbit", help="of each host's link; 'none' for no limit"
    )
    text = f"that the first way takes; the others stop at the loss it reached ({STEPS})"
    steps = os.environ.get("SCANT_DEMO_STEPS", str(STEPS))
    parser.add_argument("--steps", type=int, default=steps, help=text)
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(SHOWN), metavar="WAY",
        help=f"any of {', '.join(WAYS)} (all but scant); the others are compared with the first",
    )  # fmt: skip
    text = f"keep torch's bucket size, and PowerSGD at rank {tuning.RANK_UNTUNED}"
    parser.add_argument("--no-tuning", dest="tuning", action="store_false", help=text)
    parser.add_argument("--out", default="out/demo", help="folder for the report (out/demo)")
    parser.add_argument("--script", default="examples/char_transformer.py")
    return parser.parse_args(argv)


def open_lab(arguments: argparse.Namespace) -> tuple[Lab, str]:
    limit = None if arguments.rate == "none" else parse_rate(arguments.rate)
    link = LinkOptions(rate_bits_per_second=limit)
    speed = "links without a limit" if limit is None else f"links of {format_rate(limit)}"
    try:
        return Lab(arguments.ranks, link), f"{arguments.ranks} hosts in network namespaces, {speed}"
    except LabError as error:
        print(
            f"no lab ({error});\non loopback now: only scant is slowed, so compare nothing",
            file=sys.stderr,
        )
        return Lab(arguments.ranks, link, mode="loopback"), f"{arguments.ranks} ranks on loopback"


def prepare(folder: pathlib.Path) -> None:
    """The folder exists and takes a file, before minutes of training depend on it."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".probe"
    probe.write_bytes(b"x" * 65536)
    probe.unlink()


def step_seconds(
    lab: Lab, script: str, folder: pathlib.Path, name: str, options: Sequence[str]
) -> float:
    """The median step of a short training with these options."""
    steps = WARM_UP_STEPS + tuning.TIMED_STEPS
    return statistics.median(train(lab, name, [script, *options], steps, folder).step_s)


def tune(lab: Lab, arguments: argparse.Namespace, folder: pathlib.Path, demo: Demo) -> None:
    """Tries the sizes that the chosen ways leave open."""
    demo.untuned = tuning.why_not(arguments.tuning, arguments.steps)
    if demo.untuned:
        print(f"no tuning: {demo.untuned}", file=sys.stderr)
        return
    measure = functools.partial(step_seconds, lab, arguments.script, folder)
    if not {"gloo", "gloo fp16"}.isdisjoint(arguments.ways):
        demo.bucket = tuning.tune_bucket(measure)
    if "PowerSGD" in arguments.ways:
        demo.rank = tuning.tune_rank(measure)
    for found in demo.tunings:
        print(found.sentence(), file=sys.stderr)


def options_of(way: str, demo: Demo, folder: pathlib.Path) -> tuple[list[str], str]:
    """The script's options, and the size among them in words."""
    options, size = list(WAYS[way]), "–"
    if way == "PowerSGD":
        rank = demo.rank.chosen if demo.rank else tuning.RANK_UNTUNED
        options, size = options + tuning.rank_options(rank), f"rank {rank}"
    elif way in tuning.IN_BUCKETS:
        size = "torch's"
        if demo.bucket:
            size = f"{demo.bucket.chosen} MB"
            options += tuning.bucket_options(demo.bucket.chosen)
    else:
        options += ["--run-log", str(folder / RUN_LOG)]
    return options, size


def train_all(lab: Lab, arguments: argparse.Namespace, folder: pathlib.Path, demo: Demo) -> None:
    for way in arguments.ways:
        options, size = options_of(way, demo, folder)
        until = demo.target if demo.runs else None
        steps = arguments.steps if until is None else math.ceil(PATIENCE * arguments.steps)
        run = train(lab, way, [arguments.script, *options], steps, folder, until)
        run.size = size
        demo.runs.append(run)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = parse(argv)
    folder = pathlib.Path(arguments.out)
    demo = Demo()
    try:
        prepare(folder)
        lab, where = open_lab(arguments)
        with lab:
            demo.setting = f"{where}; {WORKLOAD}"
            limit = lab.links[0].up
            if lab.isolated and limit:
                demo.limit_mb_per_s = limit / 8e6
            print(demo.setting, file=sys.stderr)
            tune(lab, arguments, folder, demo)
            train_all(lab, arguments, folder, demo)
        (folder / "demo.json").write_text(json.dumps(demo.to_json()))
        build_page(demo).write(folder / "report.html")
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; finished runs: {len(demo.runs)} of {len(arguments.ways)}, "
            f"their steps are in {folder}/",
            file=sys.stderr,
        )
        return 130
    except OSError as error:
        print(f"demo: {error.filename or folder}: {reason(error)}", file=sys.stderr)
        return 1
    except (LabError, UsageError, RuntimeError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(render(*table(demo)))
    print(headline(demo))
    print(f"report: {folder / 'report.html'}")
    if "scant.wrap" in arguments.ways:
        print(f"what scant.wrap chose, and why: scant explain {folder / RUN_LOG}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
