"""SCANT_KERNELS: another set of kernels than the best, by name; only sums of bf16 depend on it."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from model_folders import VOCABULARY, folder

import scant
from scant import cli
from scant.serve import Decoder, Model, Piece, kernels, packing, sources


def packed(place: Path) -> Path:
    file = place / "model.scp"
    source = sources.open_source(folder(place / "model", "llama_biases", "F32"))
    packing.pack_as(source, file, "q4", 0.0)
    return file


def test_the_best_is_in_use_unless_the_variable_says_else() -> None:
    known = kernels.known()
    assert known[-1] == "reference"
    assert kernels.chosen({}) == kernels.chosen({"SCANT_KERNELS": ""}) == known[0]
    assert [kernels.chosen({"SCANT_KERNELS": name}) for name in known] == known
    with pytest.raises(scant.InvalidArgument) as caught:
        kernels.chosen({"SCANT_KERNELS": "foo"})
    assert str(caught.value) == f"SCANT_KERNELS=foo: this CPU has {', '.join(known)}"


def test_logits_are_the_same_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(packed(tmp_path))
    tokens = numpy.random.default_rng(1).integers(4, VOCABULARY, 40).tolist()
    found = []
    for name in kernels.known():
        monkeypatch.setenv("SCANT_KERNELS", name)
        decoder = Decoder(model, pages=3)
        found.append(decoder.run([Piece(tokens, 0, [0, 2, 1], len(tokens))]))
    for logits in found:
        assert numpy.array_equal(logits, found[0])


@pytest.mark.parametrize("command", [["serve"], ["run", "hello"], ["chat"]])
def test_a_name_that_this_cpu_lacks_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    file = packed(tmp_path)
    monkeypatch.setenv("SCANT_KERNELS", "foo")
    name, *rest = command
    assert cli.main([name, str(file), *rest]) == 2
    said = capsys.readouterr().err
    assert said == f"scant {name}: SCANT_KERNELS=foo: this CPU has {', '.join(kernels.known())}\n"


def test_env_says_which_are_in_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCANT_KERNELS", "reference")
    cli.main(["env"])
    assert "kernels of serving: reference of " in capsys.readouterr().out
    monkeypatch.setenv("SCANT_KERNELS", "foo")
    assert cli.main(["env"]) == 1
    assert "kernels of serving: SCANT_KERNELS=foo: this CPU has " in capsys.readouterr().out
