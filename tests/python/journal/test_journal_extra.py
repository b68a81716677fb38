"""What goes on beside a model under scant.Journal: schedulers of all kinds, and how optimizers that
frameworks wrap are found.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.optim import lr_scheduler  # noqa: E402

import scant  # noqa: E402

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 8, 8, 12]),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [5]
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
}


class Run:
    """Trains a line; ``every``: steps to a scheduler's step."""

    def __init__(self, make: Callable[[Any], Any], every: int = 1, tensor_lr: bool = False) -> None:
        torch.manual_seed(1)
        self.model = torch.nn.Linear(4, 2)
        lr: Any = torch.tensor(0.1) if tensor_lr else 0.1
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr, momentum=0.9)
        self.scheduler = make(self.optimizer)
        self.every = every
        self.losses: list[float] = []

    def attach(self, path: Path, **more: Any) -> scant.Journal:
        options = {"base_every": 6, "log": "always", **more}
        return scant.Journal(path, **options).attach(
            self.model, self.optimizer, extra={"scheduler": self.scheduler}, cursor=lambda: "here"
        )

    def train(self, first: int, last: int) -> None:
        plateau = isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau)
        for step in range(first, last):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            self.model(x).square().mean().backward()
            self.optimizer.step()
            if (step + 1) % self.every == 0:
                self.scheduler.step(*([1.0] if plateau else []))

    def state(self) -> Any:
        group = {k: v for k, v in self.optimizer.param_groups[0].items() if k != "params"}
        weight = [one.detach().clone() for one in self.model.parameters()]
        return weight, group, dict(vars(self.scheduler))


def assert_goes_on(make: Callable[[Any], Any], stop: int, every: int, path: Path) -> None:
    whole = Run(make, every)
    whole.train(0, 20)
    first = Run(make, every)
    with first.attach(path) as journal:
        journal.restore()
        first.train(0, stop)
    again = Run(make, every)
    with warnings.catch_warnings(), again.attach(path) as journal:
        warnings.simplefilter("error")
        restored = journal.restore()
        assert restored is not None and restored.step == stop
        assert restored.cursor == "here"
        again.train(stop, 20)
    (one, group, scheduler), (other, group2, scheduler2) = whole.state(), again.state()
    assert group == group2
    assert all(map(torch.equal, one, other))
    for name in ("last_epoch", "milestones", "_last_lr"):
        assert scheduler.get(name) == scheduler2.get(name), name
        assert type(scheduler.get(name)) is type(scheduler2.get(name)), name


@pytest.mark.parametrize("stop", [1, 2, 6, 7, 8, 11, 17])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_each_step(name: str, stop: int, tmp_path: Path) -> None:
    assert_goes_on(SCHEDULERS[name], stop, 1, tmp_path / "j")


@pytest.mark.parametrize("stop", [2, 3, 4, 7, 8, 14, 16])
@pytest.mark.parametrize("name", ["MultiStepLR", "StepLR", "LambdaLR"])
def test_a_scheduler_of_each_epoch(name: str, stop: int, tmp_path: Path) -> None:
    """Of five steps; the stops lie within epochs, also where the log begins or ends near one."""
    assert_goes_on(SCHEDULERS[name], stop, 5, tmp_path / "j")


@pytest.mark.parametrize("stop", [7, 9])
def test_a_scheduler_that_looks_at_the_loss(stop: int, tmp_path: Path) -> None:
    """Within its epochs of five steps."""
    assert_goes_on(lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0), stop, 5, tmp_path / "j")


def test_a_learning_rate_that_is_a_tensor(tmp_path: Path) -> None:
    first = Run(SCHEDULERS["StepLR"], tensor_lr=True)
    with first.attach(tmp_path / "j") as journal:
        journal.restore()
        first.train(0, 9)
    again = Run(SCHEDULERS["StepLR"], tensor_lr=True)
    with again.attach(tmp_path / "j") as journal:
        journal.restore()
        assert torch.equal(first.optimizer.param_groups[0]["lr"],
                           again.optimizer.param_groups[0]["lr"])  # fmt: skip


class Wrapping(torch.optim.Optimizer):
    """As accelerate does it: no Optimizer.__init__, and the inner one steps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)


def test_the_inner_optimizer_is_watched(tmp_path: Path) -> None:
    run = Run(SCHEDULERS["StepLR"])
    outer = Wrapping(run.optimizer)
    journal = scant.Journal(tmp_path / "j", log="always").attach(run.model, outer)
    with journal:
        journal.restore()
        for _ in range(3):
            run.model(torch.ones(1, 4)).sum().backward()
            outer.step()
        assert journal.step == 3 and journal.stats()["entries"] == 3


def test_an_error_within_a_closure_is_no_step(tmp_path: Path) -> None:
    run = Run(SCHEDULERS["StepLR"])

    def fails() -> Any:
        run.model(torch.ones(1, 4))
        raise KeyError("no more data")

    def closure() -> Any:
        loss = run.model(torch.ones(1, 4)).sum()
        loss.backward()
        return loss

    with run.attach(tmp_path / "j") as journal:
        journal.restore()
        run.optimizer.step(closure)
        with pytest.raises(KeyError):
            run.optimizer.step(fails)
        run.optimizer.step(closure)
        assert journal.step == 2 and journal.stats()["entries"] == 2


def test_what_the_log_lacks_is_said(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model[1].parameters(), 0.1)
    with pytest.warns(RuntimeWarning, match=r"2 trained parameters that the optimizer lacks"):
        scant.Journal(tmp_path / "j").attach(model, optimizer).close()
    model.register_buffer("large", torch.zeros(1 << 19))
    model[0].requires_grad_(False)
    with pytest.warns(RuntimeWarning, match=r"buffers of more than 1 MB in all \('large'\)"):
        scant.Journal(tmp_path / "k").attach(model, optimizer).close()


def test_restore_may_come_after_a_step_that_was_refused(tmp_path: Path) -> None:
    first = Run(SCHEDULERS["StepLR"])
    with first.attach(tmp_path / "j") as journal:
        journal.restore()
        first.train(0, 3)
    again = Run(SCHEDULERS["StepLR"])
    with again.attach(tmp_path / "j") as journal:
        with pytest.raises(scant.InvalidArgument, match="call restore"):
            again.train(0, 1)
        assert journal.restore() is not None
        again.train(3, 5)
        assert journal.step == 5
