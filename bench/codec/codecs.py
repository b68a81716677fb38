"""Codecs: time against a memcpy of the same array, bytes counted, memory and energy kept.

    ./dev bench codecs --quick
    ./dev bench codecs --gate

Gradients are synthetic (Gaussian) and captured from a training of the demo's model. Blocks of
copies and of encoder steps alternate A B B A; the ratio is the codec's time ÷ the memcpy's.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import ctypes
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import codec_hook
import codec_memory
import codec_quality
import codec_report
import harness
from captured import capture

from scant import codec

SETTLE_STEPS = 40  # until thresholds are predicted well
RECORDS = 8  # that are added up

# name: density, values, residual, the stated limit of the ratio (None: none is stated)
ENCODINGS: dict[str, tuple[float, str, str, float | None]] = {
    "1% bf16, f32 residual": (0.01, "bf16", "f32", 2.0),
    "1% q4, f32 residual": (0.01, "q4", "f32", 2.0),
    "1% bf16, i8 residual": (0.01, "bf16", "i8", 2.0),
    "q4, f32 residual": (1.0, "q4", "f32", 2.0),
    "q2, f32 residual": (1.0, "q2", "f32", 2.0),
    "q8, f32 residual": (1.0, "q8", "f32", 2.2),
    "q4, i8 residual": (1.0, "q4", "i8", 2.0),
    "q2, i8 residual": (1.0, "q2", "i8", 2.0),
    "q8, i8 residual": (1.0, "q8", "i8", 2.0),
    "q3, f32 residual": (1.0, "q3", "f32", None),
    "q1, f32 residual": (1.0, "q1", "f32", None),
    "1% bf16, bf16 residual": (0.01, "bf16", "bf16", None),
    "0.1% bf16, f32 residual": (0.001, "bf16", "f32", None),
    "10% q4, f32 residual": (0.1, "q4", "f32", None),
}
# density, values: bytes an entry at most, as stated
SIZES: dict[tuple[float, str], float] = {
    (0.01, "bf16"): 4.1,
    (0.01, "q4"): 2.1,
    (1.0, "q4"): 0.54,
    (1.0, "q2"): 0.29,
}

DEFAULTS: harness.Defaults = {
    "elements": (1 << 24, 1 << 18),
    "repeats": (6, 1),
    "threads": ([1, 2], [1]),
    "parts": (["speed", "memory", "quality", "hook"], ["speed", "memory", "quality", "hook"]),
    "capture_step": (60, 2),
    "capture_steps": (12, 2),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument

    def words(name: str, text: str) -> str:
        return f"{text} {harness.default_text(DEFAULTS, name)}"

    add("--quick", action="store_true", help="a short run, to see that everything works")
    add("--elements", type=int, metavar="N", help=words("elements", "of the array"))
    add("--repeats", type=int, metavar="N", help=words("repeats", "of the A B B A pattern"))
    add("--threads", type=int, nargs="+", metavar="N", help=words("threads", "numbers of threads"))
    add("--parts", nargs="+", choices=DEFAULTS["parts"][0], help=words("parts", "which"))
    text = words("capture_step", "of the training, whose gradients are captured")
    add("--capture-step", type=int, metavar="N", help=text)
    text = words("capture_steps", "that are captured")
    add("--capture-steps", type=int, metavar="N", help=text)
    add("--gate", action="store_true", help="fail when a stated figure is missed")
    add("--out", default="out/bench", help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    harness.apply_defaults(arguments, DEFAULTS)
    return arguments


class Copier:
    """memcpy of one array to another by so many threads, each a part of its own."""

    def __init__(self, source: np.ndarray[Any, Any], threads: int) -> None:
        self.source, self.target = source, np.zeros_like(source)
        self.threads = threads
        self.pool = concurrent.futures.ThreadPoolExecutor(threads)
        self.part = source.nbytes // threads

    def _copy(self, index: int) -> None:
        at = index * self.part
        ctypes.memmove(self.target.ctypes.data + at, self.source.ctypes.data + at, self.part)

    def __call__(self) -> None:
        if self.threads == 1:
            self._copy(0)
        else:
            list(self.pool.map(self._copy, range(self.threads)))


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def interleave(
    baseline: Callable[[], object], candidate: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Blocks of two calls each, A B B A."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side in (0, 1, 1, 0):
            call = candidate if side else baseline
            times[side].append((seconds(call) + seconds(call)) / 2)
    return times


def ratio_row(base: Sequence[float], own: Sequence[float]) -> harness.Row:
    return {
        "ratio": harness.quantiles(harness.ratios(own, base)),
        "seconds": harness.quantiles(own),
        "memcpy_seconds": harness.quantiles(base),
        "samples": list(own),
        "memcpy_samples": list(base),
    }


class Gradients:
    """A gradient a step, none like the one before: views that begin elsewhere in a longer array."""

    def __init__(self, base: np.ndarray[Any, Any], elements: int, places: Sequence[int]) -> None:
        self.base, self.elements, self.places = base, elements, places
        self.turn = 0

    def next(self) -> np.ndarray[Any, Any]:
        self.turn += 1
        at = self.places[self.turn % len(self.places)]
        return self.base[at : at + self.elements]


def synthetic(elements: int) -> Gradients:
    """Independent from step to step: 997 places, a cache line apart at least."""
    draw = np.random.default_rng(1)
    more = elements // 4
    base = draw.standard_normal(elements + more, dtype=np.float32)
    places = draw.integers(0, more // 16, 997) * 16
    return Gradients(base, elements, [int(place) for place in places])


def tiled(elements: int, first: int, steps: int) -> Gradients:
    """Captured gradients of consecutive steps, one behind the other.

    Places lie whole models apart, so an element is always of the same parameter, of another step.
    """
    found = capture(first, steps)
    model = found.flat(0).numel()
    flat = torch.cat([found.flat(i) for i in range(steps)]).numpy()
    base = np.resize(flat, elements + steps * model)
    return Gradients(base, elements, [place * model for place in range(steps)])


def shape_of(elements: int) -> tuple[int, int]:
    rows = 1 << (elements.bit_length() // 2)
    return (rows, elements // rows)


def encode_case(
    name: str, gradients: Gradients, source: str, threads: int, arguments: argparse.Namespace
) -> tuple[harness.Row, list[codec.Record]]:
    """One encoder beside a memcpy; its row and its last records."""
    density, values, residual, limit = ENCODINGS[name]
    shape = shape_of(arguments.elements)
    encoder = codec.Encoder(
        shape, density=density, values=values, residual=residual, threads=threads
    )
    records: list[codec.Record] = []

    def step() -> None:
        records.append(encoder.encode(gradients.next().reshape(shape)))
        del records[:-RECORDS]

    for _ in range(SETTLE_STEPS if density < 1 else RECORDS):
        step()
    copy = Copier(gradients.next(), threads)
    copy()
    base, own = interleave(copy, step, arguments.repeats)
    report = records[-1].report
    assert report is not None
    row = {
        "case": "encode",
        "encoding": name,
        "gradients": source,
        "threads": threads,
        "elements": arguments.elements,
        "limit": limit,
        "bytes_per_entry": report.bytes / max(report.entries, 1),
        "bytes_per_entry_max": SIZES.get((density, values)),
        "entries": report.entries,
        "wanted": density * arguments.elements,
        "energy_kept": 1 - report.energy_left / report.energy,
    }
    return row | ratio_row(base, own) | harness.machine(), records


def decode_case(
    name: str,
    made: Sequence[codec.Record],
    source: str,
    threads: int,
    arguments: argparse.Namespace,
) -> harness.Row:
    """Eight records into one average: the bytes that must move, at memcpy's rate, ÷ the time."""
    out = np.empty(arguments.elements, np.float32)
    copy = Copier(out, threads)
    records = [codec.Record(bytes(record)) for record in made]
    expected = codec.accumulate(records).reshape(-1)

    def add() -> None:
        codec.accumulate(records, out, threads=threads)

    add()
    copy()
    assert np.array_equal(out, expected)
    base, own = interleave(copy, add, arguments.repeats)
    moved = sum(record.nbytes for record in records) + out.nbytes
    share = [moved / (2 * out.nbytes) * b / a for a, b in zip(own, base, strict=True)]
    row = {
        "case": "decode",
        "encoding": name,
        "gradients": source,
        "threads": threads,
        "elements": arguments.elements,
        "records": RECORDS,
        "share_of_memory_limit": harness.quantiles(share),
    }
    return row | ratio_row(base, own) | harness.machine()


def topk_case(gradients: Gradients, arguments: argparse.Namespace) -> harness.Row:
    """torch.topk at 1 % with its residual update, one thread, beside the encoder."""
    torch.set_num_threads(1)
    shape = shape_of(arguments.elements)
    encoder = codec.Encoder(shape, density=0.01, values="bf16")
    for _ in range(SETTLE_STEPS):
        encoder.encode(gradients.next().reshape(shape))
    residual = torch.zeros(arguments.elements)
    count = arguments.elements // 100

    def topk() -> None:
        residual.add_(torch.from_numpy(gradients.next()))
        found = torch.topk(residual.abs(), count, sorted=False).indices
        residual[found].clone()
        residual[found] = 0

    def encode() -> None:
        encoder.encode(gradients.next().reshape(shape))

    topk()
    slow, fast = interleave(topk, encode, max(1, arguments.repeats // 3))
    row = {"case": "topk", "elements": arguments.elements, "threads": 1}
    return row | {
        "speedup": harness.quantiles(harness.ratios(slow, fast)),
        "topk_seconds": harness.quantiles(slow),
        "seconds": harness.quantiles(fast),
    } | harness.machine()  # fmt: skip


def probe_case(gradients: Gradients, arguments: argparse.Namespace) -> harness.Row:
    """A probe of all default points beside one encoder step."""
    shape = shape_of(arguments.elements)
    encoder = codec.Encoder(shape, values="q4")
    encoder.encode(gradients.next().reshape(shape))
    array = gradients.next().reshape(shape)
    codec.probe(array, encoder)
    full, own = interleave(
        lambda: encoder.encode(array), lambda: codec.probe(array, encoder), arguments.repeats
    )
    row = {"case": "probe", "elements": arguments.elements, "threads": 1}
    share = harness.quantiles(harness.ratios(own, full))
    return row | {"share_of_encode": share, "seconds": harness.quantiles(own)} | harness.machine()


def run_speed(arguments: argparse.Namespace, recorder: harness.Recorder) -> None:
    for source in ("gaussian", "captured"):
        gradients = (
            synthetic(arguments.elements)
            if source == "gaussian"
            else tiled(arguments.elements, arguments.capture_step, arguments.capture_steps)
        )
        for threads in arguments.threads:
            for name in ENCODINGS:
                print(f"codecs: {source}, {threads} threads, {name}", file=sys.stderr)
                row, records = encode_case(name, gradients, source, threads, arguments)
                recorder.add(row)
                if ENCODINGS[name][2] == "f32":
                    recorder.add(decode_case(name, records, source, threads, arguments))
        if source == "gaussian":
            recorder.add(topk_case(gradients, arguments))
            recorder.add(probe_case(gradients, arguments))


def main() -> int:
    """Command line."""
    arguments = parse()
    folder = pathlib.Path(arguments.out)
    recorder = harness.Recorder(folder / "codecs.jsonl")
    try:
        if "speed" in arguments.parts:
            run_speed(arguments, recorder)
        if "memory" in arguments.parts:
            codec_memory.run(arguments.quick, recorder)
        if "quality" in arguments.parts:
            codec_quality.run(arguments.capture_step, recorder)
        if "hook" in arguments.parts:
            codec_hook.run(arguments.quick, recorder)
    finally:
        recorder.close()
        text = codec_report.report(recorder.rows)
        (folder / "codecs.md").write_text(text + "\n")
        print(text)
    missed = codec_report.gate(recorder.rows) if arguments.gate else []
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
