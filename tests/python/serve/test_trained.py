"""What trains with Scant serves with Scant: the example's transformer, trained by ``wrap``."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scant import _scant, cli, serve

torch = pytest.importorskip("torch")

EXAMPLE = Path(__file__).parents[3] / "examples" / "char_transformer.py"

pytestmark = pytest.mark.skipif("sync" not in _scant.planes, reason="wrap needs the plane sync")


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("char_transformer", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _train(folder: Path, steps: int) -> list[float]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += ["--nproc-per-node", "2", "--"]  # what follows is not for torchrun
    words += [str(EXAMPLE), "--backend", "scant", "--average", "wrap", "--batch", "4"]
    words += ["--steps", str(steps), "--log", str(folder / "log"), "--save", str(folder / "model")]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_what_was_trained_is_served(tmp_path: Path) -> None:
    losses = _train(tmp_path, 12)
    file = tmp_path / "model.scp"
    assert cli.main(["pack", str(tmp_path / "model"), str(file)]) == 0
    model = serve.Model(file)
    # The loss of the served model on text that it has not seen, from logits alone.
    example = _example()
    block = model.description.context
    window = example.load_text()[-block - 1 :]
    decoder = serve.Decoder(model, pages=block // 16, kv="f32")
    pages = range(block // 16)
    logits = torch.from_numpy(decoder.run([serve.Piece(window[:-1].tolist(), 0, pages, block)]))
    loss = float(torch.nn.functional.cross_entropy(logits, window[1:]))
    assert len(losses) == 12 and loss < losses[0] - 0.5
    # And they are those of the trained module.
    theirs = example.CharTransformer()
    from scant.serve import names
    from scant.serve.description import Family

    served = {one: values.float() for one, values in _tensors(file).items()}
    state = theirs.state_dict()
    state["token.weight"] = served["token_embd.weight"]
    state["position"] = served["position_embd.weight"]
    state["head.weight"] = served["output.weight"]
    parts = {
        "norm1": "attn_norm", "qkv": "attn_qkv", "out": "attn_output", "norm2": "ffn_norm",
        "feed.0": "ffn_up", "feed.2": "ffn_down",
    }  # fmt: skip
    for last in ("weight", "bias"):
        state[f"norm.{last}"] = served[f"output_norm.{last}"]
        for i in range(model.description.layers):
            for ours, name in parts.items():
                state[f"blocks.{i}.{ours}.{last}"] = served[f"blk.{i}.{name}.{last}"]
    theirs.load_state_dict(state)
    with torch.no_grad():
        want = theirs(window[None, :-1])[0]
    assert float((logits - want).abs().max()) < 1e-4
    assert names.expected(model.description).keys() == served.keys()
    assert model.description.family == Family.GPT2


def _tensors(file: Path) -> dict[str, Any]:
    import reference_decoder

    return reference_decoder.tensors_of(file)
