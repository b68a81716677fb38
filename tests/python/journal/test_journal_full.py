"""scant.Journal where nothing more can be written: RLIMIT_FSIZE stands for a disk that is full."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

PROGRAM = """
import resource, sys, warnings
import torch
import scant

path, on_error, base_every = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.manual_seed(1)


def made():
    model = torch.nn.Linear(64, 64)
    # It stays as it is: each base has it, no step's record does.
    model.table = torch.nn.Parameter(torch.zeros(100_000), requires_grad=False)
    return model


model = made()
optimizer = torch.optim.Adam(model.parameters(), 0.01)
journal = scant.Journal(path, base_every=base_every, log="always", on_error=on_error)
journal.attach(model, optimizer)
journal.restore()


def step():
    optimizer.zero_grad()
    model(torch.randn(8, 64)).square().mean().backward()
    optimizer.step()


for _ in range(6):
    step()
journal.sync()
kept = [one.detach().clone() for one in model.parameters()]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
before = journal.step
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    try:
        for _ in range(14):
            step()
        print("went on to", journal.step)
    except scant.Error as error:
        print("raised", type(error).__name__, error)
    texts = [str(one.message) for one in seen if "journal" in str(one.message)]
    print("warned", len(texts), *texts)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
try:
    journal.close()
except scant.Error as error:
    print("close raised", error)
other = made()
found = scant.Journal.load(path, other, torch.optim.Adam(other.parameters(), 0.01))
print("found", found.step, "of", before)
if found.step == before:
    print("equal", all(map(torch.equal, kept, other.parameters())))
"""


def run(path: Path, on_error: str, base_every: int, limit: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), on_error, str(base_every), str(limit)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("base_every", [100, 4])
def test_raise_names_the_file_and_the_older_state_is_there(base_every: int, tmp_path: Path) -> None:
    text = run(tmp_path / "j", "raise", base_every, 20_000)
    assert "raised Io" in text and str(tmp_path / "j") in text, text
    assert "File too large" in text, text
    assert "found 6 of 6\nequal True" in text, text


def test_warn_trains_on(tmp_path: Path) -> None:
    text = run(tmp_path / "j", "warn", 100, 20_000)
    assert "went on to 20" in text and "warned 1 " in text, text
    assert "nothing is kept from step" in text and "close raised" not in text, text
    assert "found 6 of 6\nequal True" in text, text


def test_a_base_that_does_not_fit(tmp_path: Path) -> None:
    """All steps of the log fit (240,000 bytes), the model's file of a base does not."""
    text = run(tmp_path / "j", "raise", 2, 300_000)
    assert "raised Io" in text and "base-" in text, text
