"""scant.Journal in one process: what is kept, what comes back, what is refused."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import scant
from scant.journal import cli

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, centered=True),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.01),
}


class Net(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width)
        self.unused = nn.Linear(3, 3)
        self.last = nn.Linear(width, 2)

    def forward(self, x: Any) -> Any:
        return self.last(nn.functional.dropout(self.norm(self.first(x)).relu(), 0.1))


class Run:
    """A training whose data come from the random numbers of torch."""

    def __init__(self, optimizer: str = "AdamW", seed: int = 1, **options: Any) -> None:
        torch.manual_seed(seed)
        self.model = Net()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.99)
        self.taken = 0
        self.options = options

    def attach(self, path: Path, **more: Any) -> scant.Journal:
        given = {"base_every": 7, "log": "always", **self.options, **more}
        return scant.Journal(path, **given).attach(
            self.model,
            self.optimizer,
            cursor=lambda: self.taken,
            extra={"scheduler": self.scheduler},
        )

    def step(self, clip: float | None = None) -> None:
        x = torch.randn(16, 8)
        self.taken += 1
        loss = (self.model(x) - x[:, :2]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.scheduler.step()

    def state(self) -> dict[str, Any]:
        return {
            "model": copy.deepcopy(self.model.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
        }


def assert_same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    else:
        assert one == other, where


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fast_gives_parameters_and_optimizer_to_the_bit(optimizer: str, tmp_path: Path) -> None:
    first = Run(optimizer)
    with first.attach(tmp_path / "j") as journal:
        assert journal.restore() is None
        for _ in range(17):
            first.step()
    again = Run(optimizer, seed=2)
    with again.attach(tmp_path / "j") as journal:
        restored = journal.restore()
        assert restored is not None
        assert (restored.step, restored.base_step, restored.cursor) == (17, 14, 17)
        assert_same(first.state(), again.state())
        for _ in range(3):
            again.step()
        assert journal.step == 20
    third = Run(optimizer, seed=3)
    with third.attach(tmp_path / "j") as journal:
        restored = journal.restore()
        assert restored is not None and restored.step == 20
        assert_same(again.state(), third.state())


@pytest.mark.parametrize("stop", [3, 7, 16])
def test_exact_runs_end_as_the_uninterrupted_one(stop: int, tmp_path: Path) -> None:
    whole = Run()
    for _ in range(25):
        whole.step()
    first = Run()
    with first.attach(tmp_path / "j") as journal:
        journal.restore()
        for _ in range(stop):
            first.step()
    again = Run(seed=2)
    with again.attach(tmp_path / "j") as journal:
        restored = journal.restore("exact")
        assert restored is not None
        assert restored.step == stop // 7 * 7 and restored.cursor == restored.step
        again.taken = restored.cursor
        for _ in range(25 - restored.step):
            again.step()
        assert journal.step == 25
    assert_same(whole.state(), again.state())
    third = Run(seed=3)
    with third.attach(tmp_path / "j") as journal:
        restored = journal.restore()
        assert restored is not None and restored.step == 25
        assert_same(whole.state(), third.state())


@pytest.mark.parametrize("clip", [None, 0.05, 1e9])
def test_clipped_gradients(clip: float | None, tmp_path: Path) -> None:
    first = Run()
    with first.attach(tmp_path / "j", base_every=100) as journal:
        journal.restore()
        for _ in range(9):
            first.step(clip)
        assert journal.stats()["entries"] == 9
    again = Run(seed=2)
    with again.attach(tmp_path / "j") as journal:
        journal.restore()
        assert_same(first.state(), again.state())


def test_bases_alone(tmp_path: Path) -> None:
    first = Run(log="never")
    with first.attach(tmp_path / "j") as journal:
        journal.restore()
        for step in range(16):
            if step == 14:
                kept = first.state()
            first.step()
        assert journal.stats()["entries"] == 0
    again = Run(seed=2, log="never")
    with again.attach(tmp_path / "j") as journal:
        restored = journal.restore()
        assert restored is not None and restored.step == 14
        assert_same(kept["model"], again.state()["model"])


def test_a_newcomer_reads_beside_the_writer(tmp_path: Path) -> None:
    first = Run()
    with first.attach(tmp_path / "j") as journal:
        journal.restore()
        for _ in range(10):
            first.step()
        journal.sync()
        other = Run(seed=2)
        found = scant.Journal.load(
            tmp_path / "j", other.model, other.optimizer, {"scheduler": other.scheduler}
        )
        assert found.step == 10
        assert_same(first.state(), other.state())


def test_the_stock_package_reads_a_base(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    run = Run()
    with run.attach(tmp_path / "j") as journal:
        journal.restore()
        for _ in range(8):
            run.step()
    (base,) = sorted((tmp_path / "j").glob("base-*7"))
    model = safetensors.load_file(base / "model-0000.safetensors")
    assert set(model) == set(run.model.state_dict())
    optimizer = safetensors.load_file(base / "optimizer-0000.safetensors")
    assert {name.split(".")[1] for name in optimizer} == {
        "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq",
    }  # fmt: skip


# ---- refusals --------------------------------------------------------------------------------


def written(path: Path, steps: int = 10) -> Run:
    run = Run()
    with run.attach(path) as journal:
        journal.restore()
        for _ in range(steps):
            run.step()
    return run


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    run = Run()
    with run.attach(tmp_path / "j"), pytest.raises(scant.Refused, match=r"written by pid \d+"):
        Run().attach(tmp_path / "j")
    Run().attach(tmp_path / "j").close()


def test_another_model_job_or_version_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "j")
    other = Run()
    other.model = Net(width=33)
    other.optimizer = OPTIMIZERS["AdamW"](other.model.parameters())
    with pytest.raises(scant.Refused, match="another model"):
        other.attach(tmp_path / "j")
    with pytest.raises(scant.Refused, match="another job than 'b'"):
        Run().attach(tmp_path / "j", job="b")
    manifest = tmp_path / "j" / "MANIFEST"
    manifest.write_bytes(_versioned(manifest.read_text()))
    text = "MANIFEST is of version 2; this scant reads up to 1: upgrade scant"
    with pytest.raises(scant.Unsupported, match=text):
        Run().attach(tmp_path / "j")


def _versioned(text: str) -> bytes:
    from scant import _scant

    body = text.replace("scant-journal 1", "scant-journal 2").rsplit("crc32c", 1)[0].encode()
    array = bytearray(body)
    view = torch.frombuffer(array, dtype=torch.uint8)
    return body + f"crc32c {_scant.crc32c(view.data_ptr(), len(array), 0):08x}\n".encode()


def test_going_on_without_restore_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "j")
    run = Run()
    with run.attach(tmp_path / "j"), pytest.raises(scant.InvalidArgument, match="restore"):
        run.step()
    assert cli.main(["verify", str(tmp_path / "j")]) == 0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"base_every": 0}, "base_every"),
        ({"log": "sometimes"}, "log"),
        ({"unsynced_steps": 0}, "unsynced_steps"),
        ({"keep_bases": 0}, "keep_bases"),
        ({"staging_mb": 1}, "staging_mb"),
        ({"on_error": "ignore"}, "on_error"),
    ],
)
def test_options_out_of_bounds(options: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(scant.InvalidArgument, match=what):
        Run().attach(tmp_path / "j", **options)
    assert not (tmp_path / "j").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        Run().attach(tmp_path / "file")
    with pytest.raises(OSError, match="missing"):
        Run().attach(tmp_path / "missing" / "j")


def test_an_optimizer_that_writes_into_gradients(tmp_path: Path) -> None:
    class Old(torch.optim.SGD):
        """Adds weight decay to the gradient in place, as optimizers once did."""

        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for one in group["params"]:
                    if one.grad is not None:
                        one.grad.add_(one.detach(), alpha=0.1)
            return super().step(closure)

    run = Run()
    run.optimizer = Old(run.model.parameters(), 0.05)
    run.scheduler = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.99)
    with run.attach(tmp_path / "j") as journal:
        journal.restore()
        for _ in range(9):
            run.step()
        assert journal.stats()["entries"] == 9
    again = Run(seed=2)
    again.optimizer = Old(again.model.parameters(), 0.05)
    again.scheduler = torch.optim.lr_scheduler.ExponentialLR(again.optimizer, 0.99)
    with again.attach(tmp_path / "j") as journal:
        journal.restore()
        assert_same(run.state(), again.state())


# ---- damage ----------------------------------------------------------------------------------


def test_every_file_damaged_in_turn_leaves_an_older_state_or_says_so(tmp_path: Path) -> None:
    run = written(tmp_path / "j", 17)
    whole = run.state()
    numbers = random.Random(5)
    for path in sorted((tmp_path / "j").rglob("*")):
        if not path.is_file() or path.name == "LOCK" or path.stat().st_size == 0:
            continue
        copy_ = tmp_path / "damaged"
        shutil.copytree(tmp_path / "j", copy_)
        target = copy_ / path.relative_to(tmp_path / "j")
        content = bytearray(target.read_bytes())
        bit = numbers.randrange(8 * len(content))
        content[bit // 8] ^= 1 << (bit % 8)
        target.write_bytes(content)
        where = f"bit {bit} of {target.name}"
        assert cli.main(["verify", str(copy_)]) == 1, where
        again = Run(seed=2)
        try:
            restored = scant.Journal.load(copy_, again.model, again.optimizer)
        except scant.Error as error:
            pytest.fail(f"{where}: {error}")
        assert restored.step <= 17, where
        if restored.step == 17:
            assert_same(whole["optimizer"]["state"], again.state()["optimizer"]["state"], where)
        else:
            assert target.name.startswith("log-"), where
        shutil.rmtree(copy_)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "j", 17)
    assert cli.main(["ls", "--entries", str(tmp_path / "j")]) == 0
    text = capsys.readouterr().out
    assert "newest state: step 17 (base 14)" in text and "step 16" in text
    assert cli.main(["ls", "--json", str(tmp_path / "j")]) == 0
    assert json.loads(capsys.readouterr().out)["state"]["step"] == 17
    assert cli.main(["verify", str(tmp_path / "j")]) == 0
    assert "whole; step 17 can be restored" in capsys.readouterr().out
    assert cli.main(["export", str(tmp_path / "j"), str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2
    capsys.readouterr()
    assert cli.main(["diff", str(tmp_path / "j"), str(tmp_path / "j")]) == 0
    assert "equal to the bit" in capsys.readouterr().out
    assert cli.main(["diff", "--base", "7", str(tmp_path / "j"), str(tmp_path / "j")]) == 1
    assert "model first.weight" in capsys.readouterr().out
    assert cli.main(["ls", str(tmp_path / "nothing")]) == 2
    assert "cannot open" in capsys.readouterr().err


# ---- what must not be lost, or go by unseen -----------------------------------------------------


def test_a_replica_outlives_its_first_folder(tmp_path: Path) -> None:
    run = Run()
    with run.attach(tmp_path / "j", replica=tmp_path / "r") as journal:
        journal.restore()
        for _ in range(10):
            run.step()
    shutil.rmtree(tmp_path / "j")
    with pytest.raises(scant.Refused, match="restore from the replica"):
        Run(seed=2).attach(tmp_path / "j", replica=tmp_path / "r")
    again = Run(seed=3)
    with again.attach(tmp_path / "r", replica=tmp_path / "j2") as journal:
        restored = journal.restore()
        assert restored is not None and restored.step == 10
        assert_same(run.state(), again.state())
        again.step()
    third = Run(seed=4)
    assert scant.Journal.load(tmp_path / "j2", third.model, third.optimizer).step == 11


def test_an_exception_in_the_optimizers_step_ends_the_journal_in_order(tmp_path: Path) -> None:
    class Breaks(torch.optim.SGD):
        breaks = False

        def step(self, closure: Any = None) -> Any:
            if self.breaks:
                raise KeyboardInterrupt
            return super().step(closure)

    run = Run()
    run.optimizer = Breaks(run.model.parameters(), 0.05)
    run.scheduler = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.99)
    with pytest.raises(KeyboardInterrupt), run.attach(tmp_path / "j") as journal:
        journal.restore()
        for step in range(10):
            run.optimizer.breaks = step == 8
            run.step()
    other = Run(seed=2)
    other.optimizer = torch.optim.SGD(other.model.parameters(), 0.05)
    assert scant.Journal.load(tmp_path / "j", other.model, other.optimizer).step >= 8


def test_parameters_changed_elsewhere_are_noticed(tmp_path: Path) -> None:
    run = Run()
    with run.attach(tmp_path / "j", base_every=100) as journal:
        journal.restore()
        for _ in range(6):
            run.step()
            with torch.no_grad():
                run.model.last.weight.clamp_(-0.01, 0.01)
    again = Run(seed=2)
    journal = again.attach(tmp_path / "j")
    with journal, pytest.raises(scant.Corrupt, match="changed elsewhere"):
        journal.restore()
    third = Run(seed=2)
    with third.attach(tmp_path / "j") as journal:
        restored = journal.restore("exact")
        assert restored is not None and restored.step == 0
