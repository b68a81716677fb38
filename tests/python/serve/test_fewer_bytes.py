"""A budget of bytes is kept to the byte, shared out by what is lost, and told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import model_folders
import numpy
import pytest

import scant
from scant import cli
from scant.serve import calibration, choosing, fewer_bytes, packing, sources, unpacking
from scant.serve.decoding import Decoder, Model, Piece
from scant.serve.sources import Source

pytest.importorskip("tokenizers", reason="tokenizers is not installed")

WIDE = model_folders.CONFIGS["llama"] | {
    "hidden_size": 192, "intermediate_size": 320, "num_hidden_layers": 3,
    "tie_word_embeddings": True,
}  # fmt: skip
GATE = "blk.1.ffn_gate.weight"


@pytest.fixture(scope="module", autouse=True)
def wide() -> Iterator[None]:
    """Matrices large enough that pages do not hide their bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model_folders.CONFIGS, "wide", WIDE)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folders.folder(tmp_path_factory.mktemp("wide") / "model", "wide", "F32")


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "kept.scp"
    packing.pack_as(sources.open_source(folder), path, "keep")
    return path


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return sources.open_source(folder)


@pytest.fixture(scope="module")
def pieces() -> list[list[int]]:
    draw = numpy.random.default_rng(3)
    return [draw.integers(0, 128, 70).tolist() for _ in range(3)]


@pytest.fixture(scope="module")
def curves(source: Source, file: Path, pieces: list[list[int]]) -> list[choosing.Curve]:
    sums = calibration.activations(Model(file), pieces, 2)
    return choosing.curves_of(source, sums, 2)


def values_of(path: Path, name: str) -> numpy.ndarray:
    """A tensor's values as f32."""
    model = unpacking.Model(path)
    (tensor,) = [one for one in model.tensors if one.name == name]
    values = numpy.empty(tensor.dims, numpy.float32)
    model.file.read(tensor.index, 0, tensor.rows, "f32", values.ctypes.data, values.nbytes)
    return values


# ---- what goes through a model -----------------------------------------------------------------


def test_inputs_are_summed(file: Path, pieces: list[list[int]]) -> None:
    """The first layer reads the normed embedding; the first product can be made by hand."""
    sums = calibration.activations(Model(file), pieces, 2)
    x = values_of(file, "token_embd.weight").astype(numpy.float64)[numpy.concatenate(pieces)]
    normed = x / numpy.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)
    normed *= values_of(file, "blk.0.attn_norm.weight")
    for name in ("attn_q", "attn_k", "attn_v"):
        one = sums[f"blk.0.{name}.weight"]
        assert one.tokens == len(x)
        numpy.testing.assert_allclose(one.inputs, (normed**2).sum(axis=0), rtol=1e-5)
    assert sums["blk.0.attn_output.weight"].stream > sums["blk.0.attn_output.weight"].added > 0
    assert sums["blk.0.attn_q.weight"].stream == 0
    assert set(sums) == {one.name for one in unpacking.Model(file).tensors if len(one.dims) == 2}


def test_sums_do_not_depend_on_threads(file: Path, pieces: list[list[int]]) -> None:
    one, two = (calibration.activations(Model(file), pieces, threads) for threads in (1, 2))
    assert all(one[name].inputs.tobytes() == two[name].inputs.tobytes() for name in one)


def test_matrices_of_another_form_take_part(
    file: Path, source: Source, pieces: list[list[int]], tmp_path: Path
) -> None:
    packing.pack_as(source, tmp_path / "q4.scp", "q4")
    other = Model(tmp_path / "q4.scp")
    names = [one.name for one in unpacking.Model(file).tensors if len(one.dims) == 2]
    mixed, whole = Decoder(Model(file), pages=8), Decoder(other, pages=8)
    piece = [Piece(pieces[0], 0, range(5), 4)]
    plain = mixed.run(piece)
    mixed.substitute(names, other)
    assert mixed.run(piece).tobytes() == whole.run(piece).tobytes() != plain.tobytes()
    mixed.substitute([], other)
    assert mixed.run(piece).tobytes() == plain.tobytes()
    with pytest.raises(scant.InvalidArgument, match="not in both"):
        mixed.substitute(["blk.9.attn_q.weight"], other)


# ---- masks -------------------------------------------------------------------------------------


def wanda(weights: numpy.ndarray, inputs: numpy.ndarray, kept: int) -> numpy.ndarray:
    """As published: of each row the largest |W| · ‖X‖, where X is a column of the inputs."""
    scores = numpy.abs(weights.astype(numpy.float64)) * numpy.sqrt(inputs)
    mask = numpy.zeros(weights.shape, bool)
    numpy.put_along_axis(mask, numpy.argsort(-scores, axis=1)[:, :kept], True, axis=1)
    return mask


@pytest.mark.parametrize("sparsity", [0.5, 0.3])
def test_masks_are_wandas(
    source: Source, file: Path, pieces: list[list[int]], tmp_path: Path, sparsity: float
) -> None:
    sums = calibration.activations(Model(file), pieces, 2)
    sparse = choosing.only_sparse(choosing.curves_of(source, sums, 2, sparsity))
    choices = {
        curve.tensor.name: next(
            one.choice for one in curve.points if one.choice.kind in ("sparse bf16", "q8")
        )
        for curve in sparse
    }
    packing.pack(source, tmp_path / "a.scp", choices, "wanda")
    for curve in sparse:
        name = curve.tensor.name
        if name in packing.WHOLE:
            continue
        kept = round((1 - sparsity) * curve.tensor.dims[1])
        want = wanda(values_of(file, name), sums[name].inputs, kept)
        found = values_of(tmp_path / "a.scp", name) != 0
        # Products of f32 and of f64 may order two that are almost equal differently.
        assert (found == want).mean() > 0.9995, name
        assert (found.sum(axis=1) == kept).all(), name
    plain = wanda(values_of(file, GATE), numpy.ones(192), round((1 - sparsity) * 192))
    assert (plain != wanda(values_of(file, GATE), sums[GATE].inputs, plain[0].sum())).mean() > 0.01


# ---- the choice --------------------------------------------------------------------------------


def test_errors_are_those_of_the_written_file(
    source: Source,
    file: Path,
    curves: list[choosing.Curve],
    pieces: list[list[int]],
    tmp_path: Path,
) -> None:
    inputs = calibration.activations(Model(file), pieces, 2)[GATE].inputs
    weights = values_of(file, GATE).astype(numpy.float64)
    (curve,) = [one for one in curves if one.tensor.name == GATE]
    assert len(curve.points) == 7
    for point in curve.points:
        path = tmp_path / f"{point.name}.scp"
        packing.pack(source, path, {GATE: point.choice}, "one")
        left = weights - values_of(path, GATE)
        want = (left**2 * inputs).sum() / (weights**2 * inputs).sum()
        assert point.error == pytest.approx(want, rel=1e-4, abs=1e-12), point.name


def test_budgets_are_kept_and_more_is_never_worse(
    source: Source, curves: list[choosing.Curve], tmp_path: Path
) -> None:
    whole = choosing.choose(source, curves, 10**9, "x").bytes
    before = float("inf")
    for budget in range(whole // 5, whole + 61_001, 61_001):
        chosen = choosing.choose(source, curves, budget, "x")
        assert chosen.bytes <= budget
        assert chosen.error <= before
        before = chosen.error
        if budget % 4 == 0:
            path = tmp_path / f"{budget}.scp"
            assert packing.pack(source, path, chosen.choices, "x") == chosen.bytes
    assert before == 0  # everything fits as it is


def test_pages_never_make_a_larger_file_lose_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(_: Any, sizes: dict[str, int], __: str) -> int:
        all_sizes = list(sizes.values())
        runs = (sum(all_sizes[i : i + 7]) for i in range(0, 40, 7))
        return 100_000 + sum(-(-run // 65_536) * 65_536 for run in runs)

    monkeypatch.setattr(choosing, "bytes_of", size)
    source = cast(Source, None)
    for seed in range(5):
        draw = numpy.random.default_rng(seed)
        curves = []
        for i in range(40):
            sizes = sorted(draw.integers(1_000, 400_000, 9).tolist(), reverse=True)
            errors = numpy.sort(draw.random(9) * draw.random() ** 4).tolist()
            points = tuple(
                choosing.Point(packing.Choice(f"kind {k}"), one, error)
                for k, (one, error) in enumerate(zip(sizes, errors, strict=True))
            )
            tensor = sources.SourceTensor(f"t{i}", "f32", (1, 1), i)
            curves.append(choosing.Curve(tensor, float(draw.random() ** 3), points))
        least = size(None, {c.tensor.name: min(p.bytes for p in c.points) for c in curves}, "")
        before = float("inf")
        for budget in [least, *sorted(draw.integers(least, 9_000_000, 60).tolist())]:
            chosen = choosing.choose(source, curves, budget, "")
            assert chosen.bytes <= budget
            assert chosen.error <= before * (1 + 1e-12), (seed, budget)
            before = chosen.error


def test_threads_read_a_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", 1024)
    source = sources.open_source(model_folders.folder(tmp_path / "model", "llama", "F32"))

    def read(tensor: sources.SourceTensor) -> bytes:
        return b"".join(rows.tobytes() for rows in source.chunks(tensor))

    want = [read(tensor) for tensor in source.tensors]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert list(pool.map(read, source.tensors)) == want


def test_a_budget_that_cannot_be(source: Source, curves: list[choosing.Curve]) -> None:
    with pytest.raises(
        scant.InvalidArgument, match=r"does not fit into 1\.00 kB.*has [\d,]+ bytes"
    ):
        choosing.choose(source, curves, 1000, "x")


def test_what_matters_more_gets_more(source: Source, curves: list[choosing.Curve]) -> None:
    budget = choosing.as_bits(source, curves, 3, 0.0, "x")
    groups = choosing.groups_of(curves)
    heavy = [100.0 if group[0].tensor.name == "blk.2.ffn_down.weight" else 1.0 for group in groups]
    weighed = choosing.with_weights(groups, heavy, "q3")
    chosen = choosing.choose(source, weighed, budget, "x")
    error = {
        curve.tensor.name: point.error for curve, point in zip(weighed, chosen.points, strict=True)
    }
    assert chosen.bytes <= budget
    assert error["blk.2.ffn_down.weight"] * 4 < error["blk.1.ffn_down.weight"]


# ---- the command -------------------------------------------------------------------------------


def run(folder: Path, out: Path, *options: str) -> int:
    return cli.main(["pack", str(folder), str(out), "--threads", "2", *options])


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, tmp_path / "a.scp", "--bytes", "1.2MB", "--verbose") == 0
    said = capsys.readouterr().out
    size = (tmp_path / "a.scp").stat().st_size
    assert size <= 1_200_000
    assert f"{size:,} bytes of 1,200,000 allowed" in said
    assert "a text that the model wrote" in said and "perplexity" in said and "nats" in said
    assert f"\n{GATE}" in said
    assert run(folder, tmp_path / "b.scp", "--bytes", "1.2MB", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == size and told["tensors"][GATE]["bytes"] > 0
    assert told["divergence"] > 0 and told["perplexity_before"] > 1
    assert (tmp_path / "a.scp").read_bytes() == (tmp_path / "b.scp").read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.scp", "b.scp"]


def test_files_of_the_reader_stay(folder: Path, tmp_path: Path) -> None:
    mine = {name: tmp_path / name for name in ("a.scp.whole", "a.scp.coarse", "a.whole")}
    for name, path in mine.items():
        path.write_text(name)
    assert cli.main(["pack", str(folder), str(tmp_path / "a.scp"), "--bits", "4"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.scp", *mine}
    assert all(path.read_text() == name for name, path in mine.items())


def test_bits_share_out_what_as_would_take(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packing.pack_as(sources.open_source(folder), tmp_path / "as.scp", "q4", 0.5)
    assert run(folder, tmp_path / "a.scp", "--bits", "4", "--sparsity", ".5", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    # The texts of the two provenances differ by some bytes.
    assert abs(told["budget"] - (tmp_path / "as.scp").stat().st_size) < 200
    kinds = {one["kind"] for name, one in told["tensors"].items() if name.startswith("blk")}
    assert kinds <= {"sparse bf16", "sparse q8", "sparse q4"}


def test_what_is_kept_loses_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, tmp_path / "a.scp", "--bytes", "1GB", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["divergence"] == 0 and told["same_first"] == 1
    assert told["perplexity"] == told["perplexity_before"]


def test_a_text_of_ones_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text("abba \u00e9 cab " * 2000)
    options = ("--bits", "4", "--calibrate", str(text))
    assert run(folder, tmp_path / "a.scp", *options) == 0
    assert f"the last fifth of {text}" in capsys.readouterr().out
    other = tmp_path / "other"
    other.write_text("bca " * 2000)
    assert run(folder, tmp_path / "b.scp", *options, "--held-out", str(other)) == 0
    assert f"on {other}, " in capsys.readouterr().out
    provenance = unpacking.Model(tmp_path / "a.scp").part("provenance")
    assert provenance is not None and b"options bits 4 sparsity 0 text " in provenance
    assert str(tmp_path).encode() not in provenance


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--bytes", "1MB", "--bits", "4"), "two budgets"),
        (("--bytes", "1MB", "--as", "q4"), "shares out"),
        (("--calibrate", "x"), "--calibrate needs --bytes or --bits"),
        (("--verbose",), "--verbose needs"),
        (("--bits", "3", "--sparsity", ".5"), "4, 8 or 16 bits"),
        (("--bits", "4", "--sparsity", "1"), "sparsity is 1"),
        (("--bytes", "20kB"), "does not fit into 20"),
        (("--bits", "4", "--calibrate", "/nowhere/text"), "/nowhere/text: No such file"),
    ],
)
def test_options_that_cannot_be(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    says: str,
) -> None:
    assert cli.main(["pack", str(folder), str(tmp_path / "a.scp"), *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("scant pack: ") and says in error
    assert not list(tmp_path.iterdir())


def test_short_texts_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short").write_text("ab")
    options = ("--bits", "4", "--calibrate", str(tmp_path / "short"))
    assert run(folder, tmp_path / "a.scp", *options) == 2
    assert "too short" in capsys.readouterr().err
    assert not (tmp_path / "a.scp").exists()


def test_texts_that_are_none_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9 " * 2000)
    with (tmp_path / "large").open("wb") as large:
        large.truncate((64 << 20) + 1)
    for name, says in (("latin", "byte 3 is not UTF-8"), ("large", "at most 67.1 MB")):
        options = ("--bits", "4", "--held-out", str(tmp_path / name))
        assert run(folder, tmp_path / "a.scp", *options) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"scant pack: {tmp_path / name}: ") and says in error
    assert sorted(one.name for one in tmp_path.iterdir()) == ["large", "latin"]


def test_a_comparison_that_fails_leaves_no_file(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.scp").write_bytes(b"what was there before")

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "compare", fails)
    with pytest.raises(KeyboardInterrupt):
        fewer_bytes.pack(source, tmp_path / "a.scp", fewer_bytes.Wanted(bits=4))
    assert [one.name for one in tmp_path.iterdir()] == ["a.scp"]
    assert (tmp_path / "a.scp").read_bytes() == b"what was there before"


def test_weights_that_are_no_numbers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = model_folders.weights("wide", "F32")
    name = "model.layers.1.mlp.gate_proj.weight"
    tensors[name][3, 5] = numpy.nan
    place = tmp_path / "nan"
    model_folders.folder(place, "wide", "F32")
    model_folders.write_safetensors(place / "model.safetensors", tensors, "F32")
    assert run(place, tmp_path / "a.scp", "--bits", "4") == 2
    error = capsys.readouterr().err
    assert f"tensor '{GATE}': row 3, column 5 is NaN" in error
    assert not (tmp_path / "a.scp").exists()
    assert [one.name for one in tmp_path.iterdir()] == ["nan"]


def test_a_terminated_command_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scant.cli", "pack", str(folder), str(tmp_path / "a.scp")]
    with subprocess.Popen([*words, "--bits", "4"], stderr=subprocess.PIPE, text=True) as command:
        assert command.stderr is not None
        for line in command.stderr:
            if "writing a text" in line:  # what lies beside FILE is there
                break
        assert list(tmp_path.iterdir())
        command.terminate()
    assert command.returncode == 143
    assert not list(tmp_path.iterdir())


def test_options_go_into_the_provenance_without_paths() -> None:
    wanted = fewer_bytes.Wanted(bytes=5, sparsity=0.5)
    assert wanted.options() == "bytes 5 sparsity 0.5 text own"
