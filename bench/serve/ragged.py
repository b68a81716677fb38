"""Tokens a second of ragged steps beside padded batches, on one engine and the same lengths.

    ./dev bench ragged --quick
    ./dev bench ragged --trace azure_llm_2023_conv.csv --requests 200

A request is a prompt and so many tokens of an answer. Three ways serve the same requests with the
same decoder and as many at a time:

- `ragged`: a step has one token of each answer, and tokens of prompts up to `--step`; who is done
  makes room at once. Nothing is padded.
- `padded`: batches in the order of arrival. Prompts are filled up to the batch's longest; the batch
  ends when its longest answer does, and until then all of its rows are computed.
- `aligned`: the same over requests in the order of their lengths, cut into batches by dynamic
  programming over costs that were measured for this decoder: what length-aligned batching does.
  It is told the lengths of the answers, too, which a server would not know.

Sides alternate A B C C B A. Useful tokens are those of the requests; all ways have the same.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness

SIDES = RAGGED, PADDED, ALIGNED = "ragged", "padded", "aligned"
KINDS = ("Q4_0", "Q8_0", "bf16")
PAGE = 16
PAD = 0
# Prompts and answers of Azure's trace of conversations, 2023 (CC-BY): every 484th row by length.
AZURE = (
    (42, 142), (181, 91), (194, 170), (203, 207), (213, 76), (309, 18), (375, 82), (383, 81),
    (390, 104), (395, 79), (398, 94), (401, 128), (405, 104), (410, 100), (420, 99), (448, 86),
    (877, 101), (966, 404), (996, 451), (1013, 402), (1027, 392), (1040, 392), (1052, 97),
    (1064, 428), (1077, 376), (1090, 405), (1104, 393), (1120, 409), (1140, 403), (1168, 427),
    (1223, 438), (1313, 198), (1335, 41), (1644, 163), (2088, 54), (2530, 35), (3536, 144),
    (4079, 32), (4087, 39), (4123, 48),
)  # fmt: skip

DEFAULTS: harness.Defaults = {
    "kinds": (["Q8_0", "bf16"], ["Q8_0"]),
    "threads": ([1, 2], [2]),
    "requests": (40, 8),
    "shrink": (1, 8),
    "together": (16, 4),
    "repeats": (3, 1),
}
GOAL = 1.0  # ragged ÷ the better one of the others, at least

Request = tuple[int, int]  # tokens of the prompt, and of the answer
Step = list[Any]  # pieces


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options = harness.Options(parser, DEFAULTS)
    options.add("--kinds", f"of {', '.join(KINDS)}", nargs="+", choices=KINDS, metavar="KIND")
    options.add("--threads", "numbers of threads", type=int, nargs="+", metavar="N")
    options.add("--requests", "of the trace, evenly from all of it", type=int, metavar="N")
    options.add("--shrink", "divides all lengths", type=int, metavar="N")
    options.add("--together", "requests at a time", type=int, metavar="N")
    options.add("--repeats", "of the A B C C B A pattern", type=int, metavar="N")
    parser.add_argument("--step", type=int, default=512, metavar="N", help="tokens of a step")
    text = "lengths from this trace (default: 40 rows of Azure's conversations)"
    parser.add_argument("--trace", type=pathlib.Path, metavar="FILE", help=text)
    text = "where models are written (default: %(default)s)"
    parser.add_argument("--models", default="out/models", metavar="FOLDER", help=text)
    at_least_1 = ("threads", "requests", "shrink", "together", "repeats")
    arguments = options.parse("rows and table", at_least_1)
    if arguments.step < arguments.together:
        parser.error("--step: less than a token for each request")
    return arguments


def lengths(arguments: argparse.Namespace) -> list[Request]:
    """In an order of arrival that is a function of the lengths alone."""
    rows: Sequence[Request] = AZURE
    if arguments.trace is not None:
        from scant import traces

        rows = [(one.prompt_tokens, one.answer_tokens) for one in traces.Trace(arguments.trace)]
    count = min(arguments.requests, len(rows))
    picked = [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]
    numpy.random.default_rng(1).shuffle(picked)
    most = _shape().context
    found = []
    for prompt, answer in picked:
        prompt = max(1, min(prompt // arguments.shrink, most // 2))
        found.append((prompt, max(1, min(answer // arguments.shrink, most // 2))))
    return found


def _shape() -> Any:
    """A small model of the llama family, whose weights lie in a cache."""
    import dataclasses

    import weights

    return dataclasses.replace(
        weights.LLAMA_1B, layers=4, width=512, heads=8, kv_heads=4, head_size=64, ffn=1536,
        vocabulary=4096, context=16384, bos=1, eos=(2,),
    )  # fmt: skip


# ---- three ways -------------------------------------------------------------------------------


class Serving:
    """A decoder, and pages for as many requests as run together."""

    def __init__(self, model: pathlib.Path, threads: int, requests: Sequence[Request],
                 together: int, step: int) -> None:  # fmt: skip
        from scant.serve import Decoder, Model, Piece

        self.piece = Piece
        self.requests, self.together, self.step_tokens = requests, together, step
        longest = max(prompt for prompt, _ in requests) + max(answer for _, answer in requests)
        self.pages_each = longest // PAGE + 1
        pages = self.pages_each * together
        self.decoder = Decoder(Model(model), kv="bf16", pages=pages, threads=threads)
        draw = numpy.random.default_rng(2)
        self.text = draw.integers(3, 4096, longest + 1).tolist()

    def pages(self, slot: int) -> range:
        return range(slot * self.pages_each, (slot + 1) * self.pages_each)

    def part(self, slot: int, first: int, count: int, outputs: int) -> Any:
        return self.piece(self.text[first : first + count], first, self.pages(slot), outputs)

    def ragged(self) -> None:
        """Each request alone decides how many of its tokens run."""
        waiting = list(reversed(range(len(self.requests))))
        running: dict[int, list[int]] = {}  # by slot: request, tokens done
        while waiting or running:
            for slot in range(self.together):
                if slot not in running and waiting:
                    running[slot] = [waiting.pop(), 0]
            pieces, left = [], self.step_tokens
            answering = sum(done >= self.requests[one][0] for one, done in running.values())
            left -= answering
            for slot, state in list(running.items()):
                (prompt, answer), done = self.requests[state[0]], state[1]
                count = 1 if done >= prompt else min(prompt - done, left)
                if count == 0:
                    continue
                left -= count if done < prompt else 0
                last = done + count >= prompt
                pieces.append(self.part(slot, done, count, int(last)))
                state[1] += count
                if state[1] == prompt + answer - 1:
                    del running[slot]
            self.decoder.run(pieces)

    def batch(self, requests: Sequence[Request]) -> None:
        """All rows run as long as the longest."""
        prompt = max(one for one, _ in requests)
        answer = max(one for _, one in requests)
        for step in _cut(len(requests), prompt, self.step_tokens):
            self.decoder.run([
                self.part(slot, first, count, int(first + count == prompt))
                for slot, first, count in step
            ])  # fmt: skip
        for i in range(answer - 1):
            self.decoder.run([self.part(slot, prompt + i, 1, 1) for slot in range(len(requests))])

    def padded(self) -> None:
        for first in range(0, len(self.requests), self.together):
            self.batch(self.requests[first : first + self.together])

    def aligned(self, cuts: Sequence[Sequence[Request]]) -> None:
        for one in cuts:
            self.batch(one)


def _cut(rows: int, length: int, most: int) -> Iterator[list[tuple[int, int, int]]]:
    """(row, first token, tokens): a padded batch of prompts in steps of at most so many tokens."""
    step: list[tuple[int, int, int]] = []
    left = most
    for row in range(rows):
        first = 0
        while first < length:
            count = min(length - first, left)
            step.append((row, first, count))
            first, left = first + count, left - count
            if left == 0:
                yield step
                step, left = [], most
    if step:
        yield step


def align(serving: Serving) -> list[list[Request]]:
    """Batches of similar length: best[i] = min over j of best[j - 1] + cost of j to i as one.

    The cost of a batch is by rows and by lengths of prompt and answer, from a table that is
    measured here: seconds of prompts by their length, of answers' steps by their number.
    """
    ordered = sorted(serving.requests)
    by_length = _profile(serving, [16, 64, 256, 1024, max(one for one, _ in ordered)])
    by_rows = {rows: _timed(functools.partial(_answers, serving, rows)) for rows in
               sorted({1, 2, 4, 8, 16, serving.together}) if rows <= serving.together}  # fmt: skip

    def cost(batch: Sequence[Request]) -> float:
        prompt, answer = (max(one[k] for one in batch) for k in (0, 1))
        of_prompt = numpy.interp(prompt, list(by_length), list(by_length.values()))
        of_step = numpy.interp(len(batch), list(by_rows), list(by_rows.values()))
        return float(len(batch) * of_prompt + answer * of_step)

    best: list[float] = [0.0]
    begins: list[int] = []
    for i in range(1, len(ordered) + 1):
        options = [
            (best[j] + cost(ordered[j:i]), j) for j in range(max(0, i - serving.together), i)
        ]
        least, begin = min(options)
        best.append(least)
        begins.append(begin)
    cuts = []
    end = len(ordered)
    while end > 0:
        cuts.append(ordered[begins[end - 1] : end])
        end = begins[end - 1]
    return cuts[::-1]


def _timed(call: Callable[[], None]) -> float:
    call()
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)


def _profile(serving: Serving, wanted: Sequence[int]) -> dict[int, float]:
    def prompt(length: int) -> None:
        for step in _cut(1, length, serving.step_tokens):
            serving.decoder.run([serving.part(*one, 0) for one in step])

    longest = max(one for one, _ in serving.requests)
    return {one: _timed(functools.partial(prompt, one)) for one in sorted(set(wanted))
            if one <= longest}  # fmt: skip


def _answers(serving: Serving, rows: int) -> None:
    at = sum(prompt for prompt, _ in serving.requests) // len(serving.requests)
    serving.decoder.run([serving.part(slot, at, 1, 1) for slot in range(rows)])


# ---- rows -------------------------------------------------------------------------------------


def measure(kind: str, threads: int, arguments: argparse.Namespace) -> harness.Row:
    import weights

    folder = pathlib.Path(arguments.models)
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / f"ragged-{kind}.gguf"
    weights.write(model, kind, _shape())
    requests = lengths(arguments)
    serving = Serving(model, threads, requests, arguments.together, arguments.step)
    cuts = align(serving)
    sides: dict[str, Callable[[], None]] = {
        RAGGED: serving.ragged,
        PADDED: serving.padded,
        ALIGNED: lambda: serving.aligned(cuts),
    }
    useful = sum(prompt + answer - 1 for prompt, answer in requests)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    work: dict[str, int] = {}
    for _ in range(arguments.repeats):
        for name in harness.palindrome(list(sides)):
            before = serving.decoder.work()
            began = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - began)
            after = serving.decoder.work()
            work[name] = sum(after[one] - before[one] for one in ("products", "attention"))
            if name == RAGGED:
                needed = sum(after[one] - before[one] for one in ("products", "seen"))
    row: harness.Row = {"kind": kind, "threads": threads, "quick": arguments.quick}
    row |= {"requests": len(requests), "tokens": useful, "batches": len(cuts), "samples": seconds}
    row["trace"] = "Azure, 40 rows" if arguments.trace is None else arguments.trace.name
    row["sides"] = {
        name: {
            "tokens_s": harness.quantiles([useful / one for one in values]),
            "ratio": harness.quantiles(harness.ratios(seconds[PADDED], values)),
            "work": work[name] / needed,
        }
        for name, values in seconds.items()
    }
    return row | harness.machine()


def table(rows: Sequence[harness.Row]) -> str:
    head = ["weights", "threads", "way", "÷ padded (quartiles)", "tokens/s", "work ÷ useful work"]
    lines = []
    for row in rows:
        for name, side in row["sides"].items():
            low, middle, top = side["ratio"]
            lines.append([
                row["kind"], str(row["threads"]), name,
                "1" if name == PADDED else f"{middle:.2f} ({low:.2f}–{top:.2f})",
                f"{side['tokens_s'][1]:.0f}", f"{side['work']:.3f}",
            ])  # fmt: skip
    return harness.markdown(head, lines)


def gate(rows: Sequence[harness.Row], wanted: Sequence[tuple[str, int]]) -> list[str]:
    """Stated figures that are missed, and rows that are not there."""
    found = {(row["kind"], row["threads"]): row["sides"] for row in rows}
    missed = [f"{', '.join(map(str, key))}: no row" for key in wanted if key not in found]
    for (kind, threads), sides in found.items():
        speed = {name: side["tokens_s"][1] for name, side in sides.items()}
        if speed[RAGGED] < GOAL * max(speed[PADDED], speed[ALIGNED]):
            missed.append(f"{kind}, {threads} threads: ragged is slower than batches")
        if sides[RAGGED]["work"] > 1.05:
            missed.append(f"{kind}, {threads} threads: {sides[RAGGED]['work']:.3f} of useful work")
    return missed


def main() -> int:
    """Returns the exit status."""
    arguments = parse()
    wanted = [(kind, threads) for kind in arguments.kinds for threads in arguments.threads]

    def run(recorder: harness.Recorder) -> None:
        for kind, threads in wanted:
            print(f"ragged: {kind}, {threads} threads", file=sys.stderr)
            recorder.add(measure(kind, threads, arguments))

    return harness.record(
        "ragged", arguments, run, lambda rows, _: table(rows), lambda rows: gate(rows, wanted)
    )


if __name__ == "__main__":
    sys.exit(main())
