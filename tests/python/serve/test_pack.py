"""Models go into a packed file and come out as they were; what cannot is refused in one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import model_folders
import numpy
import pytest

import scant
from scant import _scant, cli
from scant.serve import config, gguf_model, gguf_values, names, packing, sources, unpacking
from scant.serve.description import Flags, Position, RopeScaling
from scant.serve.gguf_values import Type


def pack(source: Path, file: Path, wanted: str = "keep", sparsity: float = 0.0) -> Path:
    packing.pack_as(sources.open_source(source), file, wanted, sparsity)
    return file


def to_hf(file: Path, out: Path, values: str = "f32", shard_bytes: int = 10**9) -> Path:
    unpacking.to_hf(unpacking.Model(file), out, values, True, shard_bytes)
    return out


def to_gguf(file: Path, out: Path, values: str = "f32", tokenizer: bool = True) -> Path:
    unpacking.to_gguf(unpacking.Model(file), out, values, tokenizer)
    return out


# ---- round trips -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", model_folders.CONFIGS)
@pytest.mark.parametrize(("dtype", "shards"), [("BF16", 1), ("F32", 3), ("F16", 1)])
def test_a_folder_comes_back_equal(name: str, dtype: str, shards: int, tmp_path: Path) -> None:
    folder = model_folders.folder(tmp_path / "model", name, dtype, shards)
    file = pack(folder, tmp_path / "model.scp")
    back = to_hf(file, tmp_path / "back", shard_bytes=30_000 if shards > 1 else 10**9)
    assert model_folders.read_folder(back) == model_folders.read_folder(folder)
    for text in folder.glob("*.json"):
        if "index" not in text.name:
            assert (back / text.name).read_bytes() == text.read_bytes()
    assert len(list(back.glob("*.safetensors"))) > (1 if shards > 1 else 0)
    if shards > 1:
        index = json.loads((back / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == model_folders.read_folder(folder).keys()
    # And what was unpacked packs to the same bytes, where it lies in the same order.
    if shards == 1:
        again = pack(back, tmp_path / "again.scp")
        assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", model_folders.CONFIGS)
def test_a_folder_goes_to_gguf_and_back(name: str, tmp_path: Path) -> None:
    folder = model_folders.folder(tmp_path / "model", name, "BF16")
    through = to_gguf(pack(folder, tmp_path / "a.scp"), tmp_path / "a.gguf")
    back = to_hf(pack(through, tmp_path / "b.scp"), tmp_path / "back")
    before, after = model_folders.read_folder(folder), model_folders.read_folder(back)
    assert before.keys() == after.keys()
    for key, (_, shape, data) in before.items():
        kind, new_shape, new_data = after[key]
        assert new_shape == shape
        if kind == "F32":  # vectors: llama.cpp wants them so
            wide = numpy.frombuffer(data, numpy.uint16).astype(numpy.uint32) << 16
            data = wide.tobytes()
        assert new_data == data, key
    described = json.loads((back / "config.json").read_text())
    kept = model_folders.CONFIGS[name]
    for key in kept.keys() & described.keys() - {"rms_norm_eps", "layer_norm_epsilon"}:
        assert described[key] == kept[key], key
    assert config.from_config(described, {}, False).norm_epsilon == pytest.approx(1e-5)


def test_rows_of_heads_are_turned_for_gguf(tmp_path: Path) -> None:
    folder = model_folders.folder(tmp_path / "model", "llama", "F32")
    file = to_gguf(pack(folder, tmp_path / "a.scp"), tmp_path / "a.gguf")
    weights = model_folders.weights("llama", "F32")["model.layers.0.self_attn.q_proj.weight"]
    heads = weights.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)  # as llama.cpp permutes
    source = sources.open_source(file)
    found = next(one for one in source.tensors if one.name == "blk.0.attn_q.weight")
    assert source.rows(found, 0, 64).tobytes() == heads.tobytes()


def test_gguf_comes_back_to_the_byte(tmp_path: Path) -> None:
    given = model_folders.gguf(tmp_path / "a.gguf")
    back = to_gguf(pack(given, tmp_path / "a.scp"), tmp_path / "b.gguf")
    assert back.read_bytes() == given.read_bytes()
    kinds = {kind for _, kind, *_ in _scant.PackedFile(str(tmp_path / "a.scp")).tensors()}
    assert kinds == {"Q4_0", "Q4_1", "Q8_0", "f16", "f32"}


def test_tensors_lie_in_the_order_of_use(tmp_path: Path) -> None:
    file = pack(model_folders.gguf(tmp_path / "a.gguf"), tmp_path / "a.scp")
    opened = _scant.PackedFile(str(file))
    order = list(names.expected(model_folders.describe("llama")))
    assert [name for name, *_ in opened.tensors()] == order
    assert opened.runs() == [1, 9, 9, 2]


def test_the_same_source_gives_the_same_bytes_and_its_hash(tmp_path: Path) -> None:
    import hashlib

    given = model_folders.gguf(tmp_path / "a.gguf")
    one = pack(given, tmp_path / "a.scp", "q4", 0.5).read_bytes()
    assert pack(given, tmp_path / "b.scp", "q4", 0.5).read_bytes() == one
    model = unpacking.Model(tmp_path / "a.scp")
    digest = hashlib.sha256(given.read_bytes()).hexdigest()
    assert model.note("file") == f"a.gguf {given.stat().st_size} sha256 {digest}"
    assert model.note("options") == "as q4 sparsity 0.5"
    assert model.template() == model_folders.TEMPLATE


# ---- kinds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "sparsity", "kind", "most"),
    [
        ("bf16", 0.0, "bf16 tiles", 1e-5),
        ("q8", 0.0, "q8", 2e-4),
        ("q4", 0.0, "q4", 0.012),
        ("q3", 0.0, "q3", 0.05),
        ("q2", 0.0, "q2", 0.16),
        ("bf16", 0.5, "sparse bf16", 0.2),
        ("q8", 0.25, "sparse q8", 0.05),
        ("q4", 0.5, "sparse q4", 0.2),
    ],
)
def test_matrices_become_what_was_asked(
    wanted: str, sparsity: float, kind: str, most: float, tmp_path: Path
) -> None:
    folder = model_folders.folder(tmp_path / "model", "llama", "F32")
    file = pack(folder, tmp_path / "a.scp", wanted, sparsity)
    whole = "bf16 tiles" if wanted == "bf16" else "q8"
    for name, found, dims, _, _, kept in _scant.PackedFile(str(file)).tensors():
        if len(dims) == 1:
            assert found == "f32"
        elif name in ("token_embd.weight", "output.weight"):
            assert found == whole
        else:
            assert found == kind
            row = round((1 - sparsity) * dims[1])
            assert kept == (row * dims[0] if sparsity else 0)
    before = model_folders.read_folder(folder)
    after = model_folders.read_folder(to_hf(file, tmp_path / "back"))
    for key, (_, shape, data) in before.items():
        values = numpy.frombuffer(data, numpy.float32)
        dtype, new_shape, new_data = after[key]
        assert new_shape == shape
        if len(shape) == 1:
            assert new_data == data
            continue
        assert dtype == ("BF16" if wanted == "bf16" else "F32")
        if dtype == "BF16":
            wide = numpy.frombuffer(new_data, numpy.uint16).astype(numpy.uint32) << 16
            found_values = wide.view(numpy.float32)
        else:
            found_values = numpy.frombuffer(new_data, numpy.float32)
        lost = float(((values - found_values) ** 2).sum() / (values**2).sum())
        assert lost <= most, key
        if sparsity and "embed" not in key and "lm_head" not in key:
            zeros = (found_values.reshape(shape) == 0).sum(axis=1)
            assert (zeros >= shape[1] - round((1 - sparsity) * shape[1])).all()


def test_bf16_tiles_lose_nothing(tmp_path: Path) -> None:
    folder = model_folders.folder(tmp_path / "model", "qwen2", "BF16")
    back = to_hf(pack(folder, tmp_path / "a.scp", "bf16"), tmp_path / "back")
    assert model_folders.read_folder(back) == model_folders.read_folder(folder)


# ---- descriptions ------------------------------------------------------------------------------


def test_descriptions_say_what_a_config_says() -> None:
    llama = model_folders.describe("llama_biases")
    assert llama.rope_scaling == RopeScaling.LLAMA3
    assert (llama.rope_factor, llama.rope_low, llama.rope_high) == (8, 1, 4)
    assert llama.eos == (2, 3)
    assert Flags.QKV_BIAS | Flags.OUTPUT_BIAS | Flags.FFN_BIAS in llama.flags
    assert model_folders.describe("mistral").window == 64
    assert model_folders.describe("qwen2").flags & (Flags.QKV_BIAS | Flags.OUTPUT_BIAS) == (
        Flags.QKV_BIAS
    )
    assert Flags.QK_NORM in model_folders.describe("qwen3").flags
    gpt2 = model_folders.describe("gpt2")
    assert (gpt2.position, gpt2.ffn, gpt2.rope_size) == (Position.LEARNED, 256, 0)
    newer = dict(model_folders.CONFIGS["llama"])
    del newer["rope_theta"]
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    assert config.from_config(newer, {"eos_token_id": 7}, True).rope_base == 5e5
    assert config.from_config(newer, {"eos_token_id": 7}, True).eos == (7,)


@pytest.mark.parametrize("name", model_folders.CONFIGS)
def test_descriptions_survive_the_packed_file_and_gguf(name: str, tmp_path: Path) -> None:
    folder = model_folders.folder(tmp_path / "model", name)
    file = pack(folder, tmp_path / "a.scp")
    described = unpacking.Model(file).description
    assert described == model_folders.describe(name)
    values = gguf_values.decode_all(_scant.GgufFile(str(to_gguf(file, tmp_path / "g"))).pairs())
    assert values["tokenizer.ggml.merges"] == ["a b"]
    assert values["tokenizer.chat_template"] == model_folders.TEMPLATE
    assert len(values["tokenizer.ggml.tokens"]) == described.vocabulary


def test_llama3_divides_frequencies_as_published() -> None:
    found = numpy.frombuffer(
        gguf_model.rope_factors(model_folders.describe("llama_biases")), numpy.float32
    )
    assert len(found) == 8  # of a head of 16
    assert found[0] == 1 and found[-1] == pytest.approx(1.0, abs=8)
    waves = 2 * numpy.pi * 10000.0 ** (numpy.arange(8) / 8)
    assert (found[waves < 8192 / 4] == 1).all()
    assert (found[waves > 8192] == 8).all()
    between = found[(waves >= 8192 / 4) & (waves <= 8192)]
    assert ((between > 1) & (between < 8)).all()


# ---- refusals ----------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main([str(one) for one in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_sources_that_cannot_be_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_folders.folder(tmp_path / "model")
    out = tmp_path / "a.scp"
    settings = folder / "config.json"
    kept = settings.read_text()
    for text, says in (
        ("{", "config.json"),
        ("[]", "not a JSON object"),
        ('{"model_type": "bert"}', "models of type 'bert' cannot be packed; known: llama"),
        (kept.replace('"hidden_size": 64', '"hidden_size": "64"'), "hidden_size is '64'"),
        (kept.replace('"vocab_size": 128', '"vocab_size": 129'), "'token_embd.weight' is 128 × 64"),
        (kept.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'), "'blk.2.attn_norm"),
        ("[" * 100_000, "config.json"),
        (kept.replace("10000.0", "1e400"), "rope_theta is out of range"),
        (kept.replace("10000.0", "NaN"), "rope_theta is out of range"),
        (kept.replace("10000.0", "1" + "0" * 400), "rope_theta is out of range"),
        (kept.replace('"bos_token_id": 1', '"bos_token_id": -1'), "description"),
    ):
        settings.write_text(text)
        assert says in refused(capsys, "pack", folder, out)
        assert not out.exists()
    settings.write_text(kept)
    assert "sparse kind" in refused(capsys, "pack", folder, out, "--as", "q3", "--sparsity", ".5")
    assert "sparsity is 1.0" in refused(capsys, "pack", folder, out, "--as", "q4", "--sparsity", 1)
    assert "No such file" in refused(capsys, "pack", tmp_path / "nothing", out)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("key", "row", "says"),
    [
        ("general.architecture", (Type.TEXT, "bert"), "architecture 'bert' cannot be packed"),
        ("general.architecture", (Type.ARRAY, [1], Type.U8), "architecture [1] cannot be packed"),
        ("llama.block_count", (Type.TEXT, "2"), "llama.block_count is '2', not a number"),
        ("llama.block_count", (Type.U32, 2**31 - 1), "the description has layers of 2147483647"),
        ("llama.block_count", (Type.U32, 3), "'blk.2.attn_norm.weight' is missing"),
        ("llama.attention.head_count", (Type.F32, 4.5), "head_count is 4.5, not a count"),
        ("llama.attention.head_count_kv", (Type.U32, 3), "heads that are no multiple of kv_heads"),
        ("llama.rope.freq_base", (Type.F32, float("nan")), "a rope_base out of range"),
        ("llama.rope.scaling.type", (Type.TEXT, "yarn"), "rope scaling 'yarn' is not supported"),
        ("tokenizer.ggml.eos_token_id", (Type.TEXT, "x"), "eos_token_id is 'x', not a token"),
        ("tokenizer.ggml.bos_token_id", (Type.U32, 128), "a bos outside of the vocabulary"),
    ],
)
def test_gguf_values_that_are_none(
    key: str, row: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = model_folders.gguf(tmp_path / "a.gguf", changes={key: row})
    said = refused(capsys, "pack", given, tmp_path / "a.scp")
    assert says in said
    assert [one.name for one in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize(
    ("key", "row", "says"),
    [
        ("tokenizer.ggml.pre", (Type.TEXT, "mpt"), "pre-tokenizer 'mpt' cannot become"),
        ("tokenizer.ggml.model", (Type.TEXT, "llama"), "a tokenizer 'llama'"),
        ("tokenizer.ggml.tokens", (Type.ARRAY, [1, 2], Type.U8), "are no texts"),
        ("tokenizer.ggml.token_type", (Type.ARRAY, [1], Type.I32), "not as many rows"),
    ],
)
def test_vocabularies_that_no_folder_can_hold(
    key: str, row: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = model_folders.gguf(tmp_path / "a.gguf", changes={key: row})
    file = pack(given, tmp_path / "a.scp")
    assert says in refused(capsys, "unpack", file, tmp_path / "back", "--to", "hf")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.gguf", "a.scp"]
    words = ["unpack", str(file), str(tmp_path / "back"), "--to", "hf", "--no-tokenizer"]
    assert cli.main(words) == 0
    names_ = sorted(one.name for one in (tmp_path / "back").iterdir())
    assert names_ == ["config.json", "model.safetensors"]


def test_an_index_cannot_lead_out_of_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folders.folder(tmp_path / "model", shards=2)
    index = folder / "model.safetensors.index.json"
    kept = json.loads(index.read_text())["weight_map"]
    first, second = sorted(set(kept.values()))
    name = next(one for one in kept if kept[one] == first)
    for weights, says in (
        (kept | {name: "../other.safetensors"}, "is no name of a file in the folder"),
        (kept | {name: "/etc/passwd"}, "is no name of a file in the folder"),
        (kept | {name: second}, "the index says that tensor"),
        (kept | {"more": second}, "'more' is in no file"),
        ({}, "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weights}))
        assert says in refused(capsys, "pack", folder, tmp_path / "a.scp")


def test_values_that_have_no_code_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folders.folder(tmp_path / "model", dtype="F32")
    tensors = model_folders.weights("llama", "F32")
    tensors["model.layers.1.mlp.up_proj.weight"][17, 5] = numpy.nan
    model_folders.write_safetensors(folder / "model.safetensors", tensors, "F32")
    out = tmp_path / "a.scp"
    said = refused(capsys, "pack", folder, out, "--as", "q4")
    assert "tensor 'blk.1.ffn_up.weight': row 17, column 5 is NaN" in said
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model"]
    assert cli.main(["pack", str(folder), str(out)]) == 0  # kept to the bit
    back = to_hf(out, tmp_path / "back")
    assert model_folders.read_folder(back) == model_folders.read_folder(folder)


def test_what_another_format_cannot_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folders.folder(tmp_path / "model")
    (folder / "tokenizer.json").write_text(
        json.dumps(model_folders.tokenizer({"type": "Metaspace"}))
    )
    file = pack(folder, tmp_path / "a.scp")
    out = tmp_path / "a.gguf"
    assert "--no-tokenizer" in refused(capsys, "unpack", file, out, "--to", "gguf")
    assert not out.exists()
    assert cli.main(["unpack", str(file), str(out), "--to", "gguf", "--no-tokenizer"]) == 0
    values = gguf_values.decode_all(_scant.GgufFile(str(out)).pairs())
    assert values["tokenizer.ggml.model"] == "no_vocab"
    capsys.readouterr()
    assert "exists" in refused(capsys, "unpack", file, out, "--to", "gguf")
    assert "exists; --replace" in refused(capsys, "pack", folder, file)
    assert cli.main(["pack", str(folder), str(file), "--replace"]) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "tokenizer.json: RecursionError"),
        ("{}", "tokenizer.json: KeyError('model')"),
        ('{"model": 3}', "tokenizer.json"),
        ('{"model": {"type": "Unigram"}}', "a model 'Unigram' cannot go to GGUF"),
        ('{"model": {"type": "BPE", "vocab": {"a": 999}, "merges": []}}', "token 999 of a"),
        ('{"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}', "TypeError"),
        ('{"model": {"type": "BPE", "vocab": {"\\ud800": 1}, "merges": []}}', "surrogates"),
    ],
)
def test_tokenizers_that_are_none(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folders.folder(tmp_path / "model")
    (folder / "tokenizer.json").write_text(text)
    file = pack(folder, tmp_path / "a.scp")
    assert says in refused(capsys, "unpack", file, tmp_path / "a.gguf", "--to", "gguf")
    back = to_hf(file, tmp_path / "back")  # where it came from it goes back as it was
    assert (back / "tokenizer.json").read_text() == text


# ---- ls ----------------------------------------------------------------------------------------


def test_ls_says_what_is_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_folders.folder(tmp_path / "model")
    file = pack(folder, tmp_path / "a.scp", "q4")
    assert cli.main(["ls", str(file), "--tensors", "--verify"]) == 0
    said = capsys.readouterr().out
    assert "llama: 2 layers of 64, 4 heads of 16 (2 of keys and values)" in said
    assert "tokenizer" in said and "config.json" in said
    assert "blk.1.ffn_down.weight         q4" in said
    assert said.rstrip().endswith("whole: every page has its checksum")
    assert cli.main(["ls", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {one["name"]: one for one in found["tensors"]}
    assert rows["blk.0.ffn_up.weight"] == {
        "name": "blk.0.ffn_up.weight", "kind": "q4", "dims": [96, 64],
        "bytes": 64 + 6 * (64 + 512), "kept": 0,
    }  # fmt: skip
    given = model_folders.gguf(tmp_path / "a.gguf")
    assert cli.main(["ls", str(given)]) == 0
    assert "21 tensors" in capsys.readouterr().out
    assert "no checksums" in refused(capsys, "ls", given, "--verify")


def test_damage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pack(model_folders.folder(tmp_path / "model"), tmp_path / "a.scp")
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[2 * 65536 + 100] ^= 1
    file.write_bytes(damaged)
    assert cli.main(["ls", str(file), "--verify"]) == 1
    said = capsys.readouterr().out
    assert "the checksum of page 2 does not fit; tensor 'blk.0.attn_norm.weight'" in said
    file.write_bytes(whole[:-1])
    assert "cut off" in refused(capsys, "ls", file)
    newer = bytearray(whole)
    newer[4] = 9
    file.write_bytes(newer)
    assert "version 9" in refused(capsys, "ls", file)
    with pytest.raises(scant.Unsupported, match="upgrade scant"):
        unpacking.Model(file)
    file.write_bytes(struct.pack("<I", 0x46554747) + b"\0" * 10)
    assert "GGUF" in refused(capsys, "ls", file)
