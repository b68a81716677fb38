"""All that was measured, as documents: docs/measured.md and the README's table, from bench/results.

    python bench/measured.py            # writes both
    python bench/measured.py --check    # fails where they are not what the rows say

Every table is the benchmark's own; no figure is typed by hand.
"""

from __future__ import annotations

import argparse
import difflib
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

sys.path.extend(
    str(pathlib.Path(__file__).parent / name) for name in ("codec", "journal", "serve", "sync")
)

import codec_report
import collectives
import convergence_goals
import convergence_report
import ddp_step
import fewer
import harness
import journal_faults
import perplexity
import ragged
import train_figures
import train_report
from train_figures import Curves, Outcome, Rows

import journal
import serve
from scant.lab.units import format_rate

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
DOCUMENT = ROOT / "docs" / "measured.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- figures: begin, by bench/measured.py -->", "<!-- figures: end -->"
FAMILIES = {"DDP, ": "DDP on gloo", "fp16, ": "its fp16 hook", "PowerSGD ": "PowerSGD, best rank"}
RANKS = 4  # of the README's rows


class Report(NamedTuple):
    """How the rows of one benchmark are told."""

    title: str
    says: str
    tables: Callable[[Rows], str]
    missed: Callable[[Rows], list[str]]
    picture: str = ""


def by_name(name: str) -> Rows:
    """Rows of all machines."""
    paths = sorted(RESULTS.glob(f"*/{name}.jsonl"))
    return harness.read_rows(paths)


def all_curves() -> Curves:
    return Curves([*by_name("convergence"), *by_name("train")])


def train_tables(rows: Rows) -> str:
    with tempfile.TemporaryDirectory() as folder:
        recorded = [*by_name("convergence"), *by_name("train")]
        return train_report.write(rows, recorded, pathlib.Path(folder))


def convergence_tables(rows: Rows) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return convergence_report.write(rows, pathlib.Path(folder))


def convergence_missed(rows: Rows) -> list[str]:
    """Goals missed by the rows of all machines together: the loss hardly depends on the machine.

    They are listed once, under rows that have points with a rank."""
    trained = [row for row in rows if row["case"] == "convergence"]
    ranked = any(row["options"]["kind"] == "factors" for row in trained)
    return convergence_goals.missed(by_name("convergence")) if ranked else []


REPORTS = {
    "train": Report(
        "Training on slow links",
        "`scant.torch.wrap` beside DistributedDataParallel on gloo, its fp16 and PowerSGD hooks.",
        train_tables,
        lambda rows: train_figures.gate(rows, all_curves(), ()),
        "![Seconds to one loss beside a free network, by way of averaging and link](train.svg)",
    ),
    "convergence": Report(
        "What few bytes do to the loss",
        "Models after 250 steps with every kind of exchange, error feedback throughout.",
        convergence_tables,
        convergence_missed,
        "![Held-out loss over bytes an element, by family of exchanges](convergence.svg)",
    ),
    "collectives": Report(
        "Collectives",
        "Time of one operation: gloo and Open MPI beside Scant; above 1 Scant is faster.",
        lambda rows: harness.markdown(*collectives.table(rows)),
        collectives.gate,
        "![Time of one all-reduce over its size, by library and link](all_reduce.svg)",
    ),
    "ddp_step": Report(
        "A step of DistributedDataParallel",
        "The same training with gloo and with Scant as the backend; below 1 Scant is faster.",
        ddp_step.table,
        lambda rows: ddp_step.gate(rows, len(rows)),
    ),
    "codecs": Report(
        "Codecs",
        "One step of an encoder beside a memcpy of the same array.",
        codec_report.report,
        codec_report.gate,
    ),
    "journal": Report(
        "Checkpoints",
        "A training with a way to keep its state beside the same training without.",
        journal.table,
        lambda rows: journal.gate(rows, ()),
    ),
    "journal_faults": Report(
        "Crashes",
        "Trainings that were killed, or whose disk failed, and what came back.",
        journal_faults.table,
        lambda rows: journal_faults.gate(rows, len(rows)),
    ),
    "serve": Report(
        "Tokens a second",
        "Decoding and prefill beside llama.cpp, built for the same machine; above 1 Scant is "
        "faster.",
        serve.table,
        lambda rows: serve.gate(rows, ()),
    ),
    "ragged": Report(
        "Ragged steps",
        "The same requests on one decoder, without padding and in batches; above 1 is faster.",
        ragged.table,
        lambda rows: ragged.gate(rows, ()),
    ),
    "fewer": Report(
        "Fewer bytes",
        "What fewer bytes cost a model, on text that was not used before.",
        fewer.table,
        fewer.gate,
    ),
    "perplexity": Report(
        "Perplexity",
        "A real small model beside llama.cpp, on the same text.",
        perplexity.table,
        lambda rows: perplexity.gate(rows, ()),
    ),
}


def origin(path: pathlib.Path, rows: Rows) -> str:
    """Where and when, and of which commits."""

    def each(name: str) -> list[str]:
        return sorted({str(row[name]) for row in rows if row.get(name)})

    days = sorted({at[:10] for at in each("at")})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    file = path.relative_to(ROOT).as_posix()
    return (
        f"{len(rows)} rows of [{path.parent.name}](../{file}): {', '.join(each('cpu'))}, Linux "
        f"{', '.join(each('kernel'))}, {when}, commits {', '.join(each('commit'))}."
    )


def section(name: str) -> list[str]:
    report = REPORTS[name]
    parts = [f"## {report.title}", f"{report.says} `./dev bench {name}` makes such rows."]
    parts += [report.picture] if report.picture else []
    for path in sorted(RESULTS.glob(f"*/{name}.jsonl")):
        rows = harness.read_rows([path])
        parts += [origin(path, rows), report.tables(rows)]
        missed = report.missed(rows)
        if missed:
            parts.append("Goals that these rows miss:")
            parts.append("\n".join(f"- {line}" for line in missed))
    return parts


def document() -> str:
    known = {path.stem for path in RESULTS.glob("*/*.jsonl")}
    if unknown := sorted(known - set(REPORTS)):
        text = f"no report for {', '.join(unknown)}; there are: {', '.join(REPORTS)}"
        raise SystemExit(f"measured: {text}")
    parts = [
        "# What is measured",
        "`bench/measured.py` writes this page from the rows in [bench/results](../bench/results); "
        "do not edit it. [benchmarks.md](benchmarks.md) says how rows are made and read. Tables "
        "give ratios first, as the median and its quartiles, and hold the cases that Scant loses. "
        "Under them stand the goals that were missed.",
    ]
    for name in REPORTS:
        if name in known:
            parts += section(name)
    return "\n\n".join(parts) + "\n"


# ---- the README's table ---------------------------------------------------------------------


def family_ratio(one: Outcome, family: str) -> float | None:
    """Time to the target: the fastest of a family ÷ scant.wrap."""
    times = [s for name, s in one.peers.items() if name.startswith(family) and s is not None]
    return min(times) / one.auto_s if times and one.auto_s else None


def of_each_seed(one: Outcome, rows: Rows, curves: Curves) -> list[Outcome]:
    """Each seed's training beside the peers' of that seed alone."""
    plain = curves.of(one.row, "f32")
    own = [
        row
        for row in train_figures.good(rows, "training")
        if train_figures.place(row) == train_figures.place(one.row)
        and row["configuration"] == one.ours
        and row["seed"] in one.seeds
    ]
    return [train_figures.outcome(one.row, [row], plain, curves) for row in own]


def ratios(seeds: Sequence[Outcome], family: str) -> list[float]:
    return sorted(r for one in seeds if (r := family_ratio(one, family)) is not None)


def ratio_text(values: Sequence[float]) -> str:
    """The median, and the range where there is one."""
    if not values:
        return "–"
    spread = f" ({values[0]:.2f}–{values[-1]:.2f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.2f}{spread}"


def network_of(row: harness.Row) -> str:
    return "no limit" if row["rate"] is None else format_rate(row["rate"])


def shown_outcomes(found: Sequence[Outcome]) -> list[Outcome]:
    """Of each place the one of most seeds, reached before not."""
    best: dict[train_figures.Place, Outcome] = {}
    for one in found:
        key = train_figures.place(one.row)
        known = best.get(key)
        if one.row["ranks"] == RANKS and (
            known is None
            or (one.auto_s is not None, len(one.seeds))
            > (known.auto_s is not None, len(known.seeds))
        ):
            best[key] = one
    return list(best.values())


def where_it_loses(found: Sequence[Outcome], rows: Rows, curves: Curves) -> str:
    """Peers that were faster, and targets that were not reached, over all that was trained."""
    said = []
    for one in found:
        place = f"{one.row['model']}, {one.row['ranks']} ranks, {network_of(one.row)}"
        if one.auto_s is None:
            said.append(f"{place}, {one.ours}: the loss was not reached")
        seeds = of_each_seed(one, rows, curves)
        values = {word: ratios(seeds, family) for family, word in FAMILIES.items()}
        slower = [
            f"{word} {ratio_text(own)}"
            for word, own in values.items()
            if own and statistics.median(own) < 1
        ]
        if slower:
            said.append(f"{place}: {', '.join(slower)}")
    return "; ".join(said)


def journal_sentence() -> str:
    """What a checkpoint at every step costs."""
    own = [row for row in by_name("journal") if "error" not in row]
    costs = {
        name: statistics.median(row["ratio"][1] for row in own if row["name"] == name) - 1
        for name in ("journal", "torch.save each 1", "dcp.save each 1")
    }
    return (
        f"A state on disk at every step makes a step {costs['journal']:.1%} longer; `torch.save` "
        f"{costs['torch.save each 1']:.1%}, `torch.distributed.checkpoint` "
        f"{costs['dcp.save each 1']:.1%}."
    )


def collective_sentence() -> str:
    """What replacing gloo alone gives, and where it gives nothing."""
    rows = {
        (row["network"], row["bytes"]): row["gloo"]["ratio"][1]
        for row in by_name("collectives")
        if row["case"] == "all_reduce" and row["ranks"] == RANKS and "gloo" in row
    }
    return (
        f"An all-reduce of {RANKS} ranks is {rows['1gbit', 1 << 10]:.1f} times as fast as gloo's "
        f"for 1 KiB on 1 Gb/s and {rows['loopback', 64 << 20]:.1f} times for 64 MiB on one host; "
        f"a full link stays full: {rows['1gbit', 64 << 20]:.2f} for 64 MiB on 1 Gb/s."
    )


def readme_figures() -> str:
    rows, curves = by_name("train"), all_curves()
    found, _ = train_figures.outcomes(rows, curves)
    head = [f"model, {RANKS} ranks, link", "ρ", *FAMILIES.values(), "share of a free network"]
    lines = []
    for one in shown_outcomes(found):
        seeds = of_each_seed(one, rows, curves)
        name = f"{one.row['model']}, {network_of(one.row)}"
        if one.ours != train_figures.OURS[0]:
            name += ", `step_in_forward`"
        faster = [ratio_text(ratios(seeds, family)) for family in FAMILIES]
        share = "–" if one.share is None else f"{one.share:.2f}"
        lines.append([name, f"{one.row['rho']:.1f}", *faster, share])
    return "\n\n".join(
        [
            harness.markdown(head, lines),
            f"Where it loses: {where_it_loses(found, rows, curves)}.",
            journal_sentence(),
            collective_sentence(),
        ]
    )


def readme(text: str) -> str:
    """The README with its figures made anew."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"measured: README.md has no lines '{BEGIN}' and '{END}'")
    return f"{before}{BEGIN}\n\n{readme_figures()}\n\n{END}{after}"


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    text = "write nothing; fail where a document is not what the rows say"
    parser.add_argument("--check", action="store_true", help=text)
    check = parser.parse_args().check
    wanted = {DOCUMENT: document(), README: readme(README.read_text())}
    stale = False
    for path, text in wanted.items():
        there = path.read_text() if path.exists() else ""
        if there == text:
            continue
        if not check:
            path.write_text(text)
            continue
        stale = True
        name = path.relative_to(ROOT).as_posix()
        lines = difflib.unified_diff(there.splitlines(), text.splitlines(), name, "rows", n=0)
        print("\n".join([*lines][:20]))
    if stale:
        print("measured: run python bench/measured.py and commit what it wrote", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
