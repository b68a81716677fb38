"""Packing where memory and disk are short, and where files mean harm."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import model_folders
import pytest

from scant.errors import Corrupt
from scant.journal import tensor_files
from scant.serve import names

SEED = 20261130
MEBIBYTE = 1 << 20

# Prints its peak in KiB. What it imports is counted in each run.
PROGRAM = """
import resource, sys
from scant import cli
from scant.serve import packing, sources, unpacking
status = cli.main(sys.argv[2:]) if len(sys.argv) > 2 else 0
if status == 0:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""
LIMITED = """
import resource, signal, sys
from scant import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(cli.main(sys.argv[2:]))
"""


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


def peak_bytes(*arguments: object) -> int:
    done = run(PROGRAM, "", *arguments)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1]) * 1024


def wide_folder(path: Path) -> Path:
    """200 MB of zeros as bf16, of which the disk holds none: its largest matrix has 67 MB."""
    settings = model_folders.CONFIGS["llama"] | {
        "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16,
        "intermediate_size": 4096, "vocab_size": 32768,
    }  # fmt: skip
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings))
    from scant.serve import config

    description = config.from_config(settings, {}, False)
    head = tensor_files.head(
        [
            (names.to_hf(description.family, name, "model."), "BF16", dims)
            for name, dims in names.expected(description).items()
        ]
    )
    size = sum(
        2 * dims[0] * (dims[1] if len(dims) == 2 else 1)
        for dims in names.expected(description).values()
    )
    with (path / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    return path


def test_only_some_rows_are_in_memory(tmp_path: Path) -> None:
    folder = wide_folder(tmp_path / "model")
    assert (folder / "model.safetensors").stat().st_size > 190 * MEBIBYTE
    nothing = peak_bytes()
    room = 40 * MEBIBYTE  # less than the largest matrix, and far less than a layer
    file, gguf, back = tmp_path / "a.scp", tmp_path / "a.gguf", tmp_path / "back"
    for wanted in ("keep", "q4", "bf16"):
        used = peak_bytes("pack", folder, file, "--as", wanted, "--replace")
        assert used - nothing < room, wanted
    no = ("--no-tokenizer", "--values", "bf16")
    assert peak_bytes("unpack", file, gguf, "--to", "gguf", *no) - nothing < room
    assert peak_bytes("unpack", file, back, "--to", "hf", *no) - nothing < room
    assert peak_bytes("pack", gguf, file, "--as", "q8", "--replace") - nothing < room


@pytest.mark.parametrize("to", ["packed", "gguf", "hf"])
def test_a_full_disk_is_named_and_leaves_nothing(to: str, tmp_path: Path) -> None:
    given = model_folders.gguf(tmp_path / "a.gguf", ("f16",))
    file, out = tmp_path / "a.scp", tmp_path / "out"
    assert run(LIMITED, 10**9, "pack", given, file).returncode == 0
    before = sorted(tmp_path.iterdir())
    if to == "packed":
        done = run(LIMITED, 100_000, "pack", given, out)
    else:
        done = run(LIMITED, 100_000, "unpack", file, out, "--to", to)
    assert done.returncode == 2, done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "File too large" in done.stderr
    assert sorted(tmp_path.iterdir()) == before
    if to == "packed":  # and what was there stays
        assert run(LIMITED, 100_000, "pack", given, file, "--replace").returncode == 2
        assert run(LIMITED, 10**9, "ls", file, "--verify").returncode == 0


# ---- safetensors that mean harm ----------------------------------------------------------------


def image(table: object, room: int = 64) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + bytes(room)


def row(dtype: object = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a safetensors file"),
        (b"1234567", "not a safetensors file"),
        (struct.pack("<Q", 2**63) + b"{}", "longer than the file"),
        (struct.pack("<Q", 100) + b"{}", "longer than the file"),
        (image(b"{"), "not a safetensors file"),
        (image(b"\xff\xfe"), "not a safetensors file"),
        (image([1]), "the head is no table"),
        (image(b"[" * 100_000), "not a safetensors file"),
        (image({"w": 3}), "not a safetensors file"),
        (image({"w": row(offsets=(0, 15))}), "as many bytes as its shape"),
        (image({"w": row(offsets=(48, 65))}), "lies outside the file"),
        (image({"w": row(offsets=(16, 0))}), "lies outside the file"),
        (image({"w": row(offsets=(-16, 0))}), "no counts"),
        (image({"w": row(offsets=(0, 1e400))}), "no counts"),
        (image({"w": row(offsets=(False, True), dtype="U8", shape=())}), "no counts"),
        (image({"w": row(shape=(2**40, 2**40, 0), offsets=(0, 0))}, 0), ""),
        (image({"w": row(shape=(-2, -2))}), "no counts"),
        (image({"w": row(dtype="F31")}), "F31"),
        (image({"w": row(), "v": row(offsets=(8, 24))}), "overlaps another tensor"),
        (image({"w": row(), "v": row()}), "overlaps another tensor"),
        (image(b'{"w": {}, "w": {}}'), "a name is there twice"),
    ],
)
def test_hostile_heads_are_refused(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    if not says:  # a tensor of no bytes is one
        assert list(tensor_files.places(path)) == ["w"]
        return
    with pytest.raises(Corrupt, match=says):
        tensor_files.places(path)


def test_changed_heads_are_refused_or_stay_within_the_file(tmp_path: Path) -> None:
    """Two thousand files that differ from a right one by some bytes, by a printed seed."""
    print("seed", SEED)
    draw = random.Random(SEED)
    table = {f"t{i}": row(offsets=(16 * i, 16 * i + 16)) for i in range(4)}
    right = image({"__metadata__": {"a": "b"}, **table}, 64)
    path = tmp_path / "model.safetensors"
    kept = 0
    for _ in range(2000):
        changed = bytearray(right)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(changed))
            how = draw.randrange(3)
            if how == 0:
                changed[at] = draw.randrange(256)
            elif how == 1:
                del changed[at : at + draw.randint(1, 8)]
            else:
                changed[at:at] = draw.choice([b"9", b"-", b"0", b",", b"[", b'"', b"e9", b"}"])
        path.write_bytes(changed)
        try:
            found = tensor_files.places(path)
        except Corrupt as error:
            assert str(path) in str(error)
            continue
        kept += 1
        for one in found.values():
            assert 0 <= one.at <= one.at + one.bytes <= len(changed)
        tensor_files.read(path)
    assert 50 < kept < 1950
