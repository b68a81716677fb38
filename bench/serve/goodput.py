"""The highest rate of a real trace's requests that a server answers in time, beside llama-server's.

    ./dev bench goodput --trace azure_llm_2023_conv.csv

The trace is stretched until p99 of the time to the first token is at most 2 s, and p99 of the time
per token after it 200 ms, with no request lost. The bound is found by halving: each try is a server
of its own and a run of `scant replay` over the same requests. Both sides read one GGUF file of
SmolLM2-135M, have as many threads, as large a context and as much memory for keys and values, and
get prompts of token numbers, so that no tokenizer makes them of other lengths. llama-server's slots
and batch are chosen first, by what each of `--slots` and `--batch` keeps up with at the same
speed. Sides alternate A B B A.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness
import peer_llama
import perplexity

from scant import _scant
from scant.serve.replay.figures import LATE_MAX_S, quantile

PEER, OURS = "llama-server", "scant"
TTFT_MAX_S, TPOT_MAX_S = 2.0, 0.2
GOAL = 1.3  # ours ÷ the peer, at least
STARTS_S = 120.0  # in which a server must answer
TRIES_LATE = 3  # of a run whose sends were late
SPAN_MIN_S = 10.0  # in which requests come: faster it is no rate, but one burst

DEFAULTS: harness.Defaults = {
    "requests": (150, 12),
    "steps": (4, 1),
    "repeats": (1, 1),
    "threads": (2, 2),
    "prompt_max": (1024, 64),
    "answer_max": (256, 8),
    "slots": ([16, 32], [16]),
    "batch": ([256, 2048], [2048]),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options = harness.Options(parser, DEFAULTS)
    options.add("--requests", "of the trace that are sent", type=int, metavar="N")
    options.add("--steps", "halvings of the bound, once it is enclosed", type=int, metavar="N")
    options.add("--repeats", "of the A B B A pattern", type=int, metavar="N")
    options.add("--threads", "of both sides", type=int, metavar="N")
    options.add("--prompt-max", "longer prompts are cut", type=int, metavar="N")
    options.add("--answer-max", "longer answers are cut", type=int, metavar="N")
    options.add("--slots", "of llama-server, to choose from", type=int, nargs="+", metavar="N")
    options.add("--batch", "of llama-server, to choose from", type=int, nargs="+", metavar="N")
    add = parser.add_argument
    text = "Azure's or another trace that `scant replay` reads; without one it is synthetic"
    add("--trace", default="synthetic", metavar="FILE", help=text)
    text = "first row of the trace that is sent, in seconds (default: %(default)s)"
    add("--from", dest="from_s", type=float, default=0.0, metavar="S", help=text)
    text = "where the search begins, as a share of the trace's speed (default: %(default)s)"
    add("--speed", type=float, default=0.1, metavar="X", help=text)
    text = "tokens whose keys and values have room (default: %(default)s)"
    add("--kv-tokens", type=int, default=32768, metavar="N", help=text)
    text = "where the model is kept (default: %(default)s)"
    add("--models", default="out/models", metavar="FOLDER", help=text)
    return options.parse("rows and table", ("requests", "steps", "repeats", "threads"))


# ---- servers ----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ours(model: pathlib.Path, port: int, arguments: argparse.Namespace) -> list[str]:
    from scant.serve import Model, kv_page_bytes

    pages = math.ceil(arguments.kv_tokens / 16)
    room = pages * kv_page_bytes(Model(model).description, "bf16")
    return [
        sys.executable, "-m", "scant.cli", "serve", str(model), "--port", str(port),
        "--threads", str(arguments.threads), "--kv-bytes", str(room),
    ]  # fmt: skip


def peers(
    model: pathlib.Path, port: int, arguments: argparse.Namespace, slots: int, batch: int
) -> list[str]:
    """One pool of keys and values for all slots, as ours has it; f16 is as large as bf16."""
    folder = peer_llama.build(more=[peer_llama.SERVER]).folder
    return [
        str(folder / peer_llama.SERVER), "-m", str(model), "--port", str(port),
        "-t", str(arguments.threads), "-tb", str(arguments.threads),
        "-c", str(arguments.kv_tokens), "--kv-unified", "-np", str(slots), "--cont-batching",
        "-b", str(batch), "-ub", str(min(batch, 512)), "-fa", "on", "--no-webui",
        "--cache-ram", "0",
    ]  # fmt: skip


@contextlib.contextmanager
def running(command: Sequence[str], port: int, log: pathlib.Path) -> Iterator[int]:
    """From the first answer of /health to the process's end; gives its number."""
    with log.open("a") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        try:
            end = time.monotonic() + STARTS_S
            while not healthy(port):
                if server.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"goodput: {command[0]} does not answer; see {log}")
                time.sleep(0.1)
            yield server.pid
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


# ---- a try ------------------------------------------------------------------------------------

Commands = Callable[[int], list[str]]  # a server's command for a port


def attempt(commands: Commands, speed: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of one run at this speed. One whose sends were late is made again; in the end it
    counts as one that does not hold."""
    one: dict[str, Any] = {}
    for _ in range(TRIES_LATE):
        with tempfile.TemporaryDirectory() as folder:
            rows = replayed(commands, speed, arguments, pathlib.Path(folder) / "rows.jsonl")
        late = quantile([one["late_s"] for one in rows if one["late_s"] is not None], 0.99)
        one = summed(rows, speed) | {"late_p99_s": late}
        if late is not None and late <= LATE_MAX_S:
            return one
        print(f"goodput: sends were late by {late} s: not valid", file=sys.stderr)
    return one | {"holds": False}


def replayed(
    commands: Commands, speed: float, arguments: argparse.Namespace, file: pathlib.Path
) -> list[dict[str, Any]]:
    port = free_port()
    with running(commands(port), port, pathlib.Path(arguments.out) / "goodput-servers.log") as pid:
        command = [
            sys.executable, "-m", "scant.cli", "replay", arguments.trace,
            "--url", f"http://127.0.0.1:{port}", "--endpoint", "completions",
            "--token-ids", str(arguments.vocabulary), "--speed", repr(speed),
            "--limit", str(arguments.requests), "--prompt-max", str(arguments.prompt_max),
            "--answer-max", str(arguments.answer_max), "--out", str(file), "--pid", str(pid),
        ]  # fmt: skip
        if arguments.trace != "synthetic":
            command += ["--from", repr(arguments.from_s)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode not in (0, 1):
        raise SystemExit(f"goodput: replay failed: {done.stderr.decode()}")
    return [json.loads(line) for line in file.read_text().splitlines()]


def summed(rows: Sequence[dict[str, Any]], speed: float) -> dict[str, Any]:
    whole = [one for one in rows if one["error"] is None]
    ttft = quantile([one["ttft_s"] for one in whole], 0.99)
    tpot = quantile([one["tpot_s"] for one in whole if one["tpot_s"] is not None], 0.99)
    good = [
        one for one in whole
        if one["ttft_s"] <= TTFT_MAX_S and (one["tpot_s"] or 0.0) <= TPOT_MAX_S
    ]  # fmt: skip
    span = span_of(rows)
    holds = len(whole) == len(rows) and (ttft or 0) <= TTFT_MAX_S and (tpot or 0) <= TPOT_MAX_S
    return {
        "speed": speed,
        "span_s": span,
        "rate": (len(rows) - 1) / span if span > 0 else 0.0,  # requests a second that were sent
        "ttft_p99_s": ttft,
        "tpot_p99_s": tpot,
        "requests": len(rows),
        "whole": len(whole),
        "good_rate": len(good) / max(one["end_s"] for one in rows),
        "tokens_s": sum(one["answer_tokens"] for one in whole) / max(one["end_s"] for one in rows),
        "holds": holds,
    }


def span_of(rows: Sequence[dict[str, Any]]) -> float:
    return float(max(one["at_s"] for one in rows) - min(one["at_s"] for one in rows))


def search(
    side: str, commands: Commands, begin: float, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The fastest try that holds: doubles or halves until it is enclosed, then halves the rest."""
    tries: list[dict[str, Any]] = []

    def holds(speed: float) -> bool:
        tries.append(attempt(commands, speed, arguments))
        one = tries[-1]
        print(
            f"goodput: {side} at {one['rate']:.3f} requests/s: TTFT {one['ttft_p99_s']} s, "
            f"TPOT {one['tpot_p99_s']} s: {'holds' if one['holds'] else 'does not hold'}",
            file=sys.stderr,
        )
        return bool(one["holds"])

    low, high = bound(holds, begin, arguments.steps, lambda: tries[-1]["span_s"] / 2 >= SPAN_MIN_S)
    best = [one for one in tries if one["holds"] and one["speed"] == low]
    return {
        "rate": best[0]["rate"] if best else 0.0,
        "speed": low,
        "above": high,  # a speed that does not hold; none was tried where it is null
        "good_rate_max": max(one["good_rate"] for one in tries),
        "tries": tries,
    }


def bound(
    holds: Callable[[float], bool], begin: float, steps: int, may_double: Callable[[], bool]
) -> tuple[float, float | None]:
    """A speed that holds, 0 if none does, and a higher one that does not."""
    low, high = 0.0, None
    speed = begin
    while (low == 0.0 or high is None) and speed >= begin / 64:
        if holds(speed):
            low, speed = speed, speed * 2
            if high is None and not may_double():
                break
        else:
            high, speed = speed, speed / 2
    for _ in range(steps if low > 0.0 and high is not None else 0):
        assert high is not None
        speed = math.sqrt(low * high)
        if holds(speed):
            low = speed
        else:
            high = speed
    return low, high


# ---- rows -------------------------------------------------------------------------------------


def tuned(model: pathlib.Path, arguments: argparse.Namespace) -> tuple[int, int]:
    """llama-server's slots and batch with the most good answers a second at the first speed."""
    chosen = [(slots, batch) for slots in arguments.slots for batch in arguments.batch]
    if len(chosen) == 1:
        return chosen[0]
    found = []
    for slots, batch in chosen:

        def start(port: int, slots: int = slots, batch: int = batch) -> list[str]:
            return peers(model, port, arguments, slots, batch)

        one = attempt(start, arguments.speed, arguments)
        found.append((one["good_rate"], -(one["ttft_p99_s"] or math.inf), slots, batch))
        print(f"goodput: {PEER} with -np {slots} -ub {batch}: {one}", file=sys.stderr)
    *_, slots, batch = max(found)
    return slots, batch


def measure(arguments: argparse.Namespace) -> harness.Row:
    folder = pathlib.Path(arguments.models)
    folder.mkdir(parents=True, exist_ok=True)
    model = perplexity.fetch(folder)
    slots, batch = tuned(model, arguments)
    sides: dict[str, Commands] = {
        PEER: lambda port: peers(model, port, arguments, slots, batch),
        OURS: lambda port: ours(model, port, arguments),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    begin = dict.fromkeys(sides, arguments.speed)
    for _ in range(arguments.repeats):
        for name in harness.palindrome(list(sides)):
            one = search(name, sides[name], begin[name], arguments)
            begin[name] = one["speed"] or arguments.speed
            found[name].append(one)
    rates = {name: [one["rate"] for one in all_of] for name, all_of in found.items()}
    row: harness.Row = {
        "case": "goodput", "trace": pathlib.PurePath(arguments.trace).name,
        "from_s": arguments.from_s, "requests": arguments.requests, "threads": arguments.threads,
        "prompt_max": arguments.prompt_max, "answer_max": arguments.answer_max,
        "kv_tokens": arguments.kv_tokens, "slots": slots, "batch": batch,
        "ttft_max_s": TTFT_MAX_S, "tpot_max_s": TPOT_MAX_S, "quick": arguments.quick,
        "searches": found,
    }  # fmt: skip
    row["sides"] = {
        name: {
            "rate": harness.quantiles(values),
            "ratio": harness.quantiles(harness.ratios(values, rates[PEER]) or [math.nan]),
        }
        for name, values in rates.items()
    }
    return row | harness.machine()


def table(rows: Sequence[harness.Row]) -> str:
    head = ["trace", "side", "÷ llama-server (quartiles)", "requests/s that hold", "tokens/s then"]
    lines = []
    for row in rows:
        for name, side in row["sides"].items():
            low, middle, top = side["ratio"]
            best = [
                one["tokens_s"]
                for found in row["searches"][name]
                for one in found["tries"]
                if one["holds"] and one["speed"] == found["speed"]
            ]
            lines.append([
                row["trace"], name,
                "1" if name == PEER else f"{middle:.2f} ({low:.2f}–{top:.2f})",
                f"{side['rate'][1]:.3f}", f"{max(best):.0f}" if best else "–",
            ])  # fmt: skip
    return harness.markdown(head, lines)


def gate(rows: Sequence[harness.Row]) -> list[str]:
    """Stated figures that are missed, and rows that are not there."""
    if not rows:
        return ["no row"]
    ratio = rows[0]["sides"][OURS]["ratio"][1]
    return [] if ratio >= GOAL else [f"goodput: {ratio:.2f} of {PEER}'s, wanted {GOAL}"]


def main() -> int:
    """Returns the exit status."""
    arguments = parse()
    if arguments.trace != "synthetic" and not pathlib.Path(arguments.trace).exists():
        raise SystemExit(f"goodput: {arguments.trace}: no such file; without --trace it is made up")
    pathlib.Path(arguments.out).mkdir(parents=True, exist_ok=True)
    arguments.vocabulary = vocabulary(pathlib.Path(arguments.models))

    def run(recorder: harness.Recorder) -> None:
        recorder.add(measure(arguments))

    return harness.record("goodput", arguments, run, lambda rows, _: table(rows), gate)


def vocabulary(folder: pathlib.Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    file = _scant.GgufFile(str(perplexity.fetch(folder)))
    return next(int(dims[0]) for name, _, dims, *_ in file.tensors() if name == "token_embd.weight")


if __name__ == "__main__":
    sys.exit(main())
