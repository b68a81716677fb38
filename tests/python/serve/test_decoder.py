"""All families give the logits of a float64 reference, and of transformers where that is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import model_folders
import numpy
import pytest

import scant
from scant import serve
from scant.serve import packing, sources
from scant.serve.description import Position, RopeScaling

torch = pytest.importorskip("torch")

import reference_decoder  # noqa: E402

TOKENS = 90  # more than Mistral's window; GPT-2 has fewer positions


def packed(folder: Path, name: str, wanted: str = "keep") -> Path:
    source = model_folders.folder(folder / name, name, "F32")
    file = folder / f"{name}.scp"
    packing.pack_as(sources.open_source(source), file, wanted, 0.0)
    return file


def text(model: serve.Model, seed: int = 1) -> list[int]:
    count = min(TOKENS, model.description.context)
    random = numpy.random.default_rng(seed)
    return random.integers(0, model.description.vocabulary, count).tolist()


def run(model: serve.Model, tokens: list[int], kv: str = "f32") -> numpy.ndarray:
    decoder = serve.Decoder(model, pages=8, kv=kv, threads=2)
    return decoder.run([serve.Piece(tokens, 0, [6, 1, 3, 0, 7, 2], len(tokens))])


@pytest.mark.parametrize("name", model_folders.CONFIGS)
def test_logits_are_those_of_float64(name: str, tmp_path: Path) -> None:
    file = packed(tmp_path, name)
    model = serve.Model(file)
    tokens = text(model)
    want = reference_decoder.logits(
        model.description, reference_decoder.tensors_of(file), tokens
    ).numpy()
    assert abs(want).max() > 0.2  # so that 1e-5 says something
    assert abs(run(model, tokens) - want).max() < 1e-5
    assert abs(run(model, tokens, "bf16") - want).max() < 5e-3
    assert abs(run(model, tokens, "q8") - want).max() < 1e-2


@pytest.mark.parametrize("name", model_folders.CONFIGS)
def test_vectors_are_those_of_float64(name: str, tmp_path: Path) -> None:
    file = packed(tmp_path, name)
    model = serve.Model(file)
    tokens = text(model)
    tensors = reference_decoder.tensors_of(file)
    want = reference_decoder.vectors(model.description, tensors, tokens).numpy()
    decoder = serve.Decoder(model, pages=8, kv="f32", threads=2)
    pages = [6, 1, 3, 0, 7, 2]
    # Beside logits of another sequence, in two pieces; threads change nothing.
    other = serve.Piece(tokens[:5], 0, [4], 2)
    found = []
    logits = decoder.run([serve.Piece(tokens[:31], 0, pages, 31, vectors=True), other])
    found.append(decoder.vectors())
    assert logits.shape[0] == 2
    decoder.use_threads(1)
    assert (
        decoder.run([serve.Piece(tokens[31:], 31, pages, len(tokens) - 31, vectors=True)]).size == 0
    )
    found.append(decoder.vectors())
    assert abs(numpy.concatenate(found) - want).max() < 1e-5 * max(1, abs(want).max())
    assert (logits == decoder.run([other])).all()
    assert decoder.vectors().shape == (0, model.description.width)


@pytest.mark.parametrize("name", model_folders.CONFIGS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is for those who have it: pip install transformers"
    )
    model = serve.Model(packed(tmp_path, name))
    tokens = text(model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        want = theirs(torch.tensor([tokens])).logits[0].numpy()
    assert abs(run(model, tokens) - want).max() < 1e-4


def test_gguf_runs_without_packing(tmp_path: Path) -> None:
    file = model_folders.gguf(tmp_path / "a.gguf", kinds=("f32",))
    model = serve.Model(file)
    assert model.description.position == Position.ROPE_NEIGHBOURS
    tokens = text(model)
    tensors = reference_decoder.tensors_of(file)
    want = reference_decoder.logits(model.description, tensors, tokens).numpy()
    assert abs(run(model, tokens) - want).max() < 1e-5 * abs(want).max()
    packing.pack_as(sources.open_source(file), tmp_path / "a.scp", "keep", 0.0)
    assert run(serve.Model(tmp_path / "a.scp"), tokens).tobytes() == run(model, tokens).tobytes()


def test_frequencies_may_come_from_a_tensor(tmp_path: Path) -> None:
    from scant.serve import unpacking

    file = packed(tmp_path, "llama_biases")
    gguf = tmp_path / "a.gguf"
    unpacking.to_gguf(unpacking.Model(file), gguf, "f32", True)
    model = serve.Model(gguf)
    assert model.description.rope_scaling == RopeScaling.TENSOR
    tokens = text(model)
    # The same model: its rows of query and key have another order, its divisors are rounded.
    assert abs(run(model, tokens) - run(serve.Model(file), tokens)).max() < 1e-5


def test_calls_that_cannot_be(tmp_path: Path) -> None:
    model = serve.Model(packed(tmp_path, "llama"))
    decoder = serve.Decoder(model, pages=4)
    for piece, says in (
        (serve.Piece([128], 0, [0]), "there is no token 128"),
        (serve.Piece([1], 256, list(range(4))), "and the context is 256"),
        (serve.Piece([1], 16, [0]), "1 pages do not hold 17 positions"),
        (serve.Piece([1], 0, [4]), "there is no page 4 of 4"),
        (serve.Piece([1], 0, [0], 2), "more outputs than tokens"),
    ):
        with pytest.raises(scant.InvalidArgument, match=says):
            decoder.run([piece])
    with pytest.raises(scant.InvalidArgument, match="kept as 'q4'"):
        serve.Decoder(model, pages=4, kv="q4")
    with pytest.raises(scant.InvalidArgument, match="one thread"):
        serve.Decoder(model, pages=4, threads=0)
    with pytest.raises(scant.Resource):
        serve.Decoder(model, pages=2**32 - 1, kv="f32")
    with pytest.raises(scant.InvalidArgument, match="no page 9"):
        decoder.copy_page(0, 9)
    assert decoder.run([]).shape == (0, 128)
    assert decoder.work()["products"] == 0


def test_bytes_of_a_page(tmp_path: Path) -> None:
    d = model_folders.describe("mistral")
    heads = d.layers * d.kv_heads
    assert serve.kv_page_bytes(d, "f32") == heads * 128 * d.head_size
    assert serve.kv_page_bytes(d, "bf16") == heads * 64 * d.head_size
    assert serve.kv_page_bytes(d, "q8") == heads * (32 * d.head_size + 128)
    with pytest.raises(scant.InvalidArgument):
        serve.kv_page_bytes(d, "q2")
    twice = dataclasses.replace(d, layers=2 * d.layers)
    assert serve.kv_page_bytes(twice, "q8") == 2 * serve.kv_page_bytes(d, "q8")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"GG")
    with pytest.raises(scant.Corrupt):
        serve.Model(tmp_path / "short")
    with pytest.raises(OSError, match="nothing"):
        serve.Model(tmp_path / "nothing")
    given = model_folders.gguf(tmp_path / "a.gguf", changes={"llama.block_count": (4, 3)})
    with pytest.raises(scant.Corrupt, match=r"'blk\.2\.attn_norm\.weight' is missing"):
        serve.Model(given)
