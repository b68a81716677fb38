"""scant.Journal in trainings as they are: DDP, accumulation, scalers, half precision, frozen and
shared parameters, closures, the step in forward; hosts with disks of their own; a rank that fails.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from ranks import RANK, SIZE, raises, run_cases
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from wrapping import GLOO, Net, batch, loss_of, network, wrap

import scant
import scant.torch
from scant.errors import Error, InvalidArgument, Unsupported
from scant.journal import cli


def folder(name: str = "j") -> Path:
    """The same on all ranks."""
    paths = [tempfile.mkdtemp(prefix="scant-journal-") if RANK == 0 else ""]
    dist.broadcast_object_list(paths)
    return Path(paths[0]) / name


class Kept:
    """A model and its optimizer, to be restored in a second try and compared."""

    def __init__(self, model: nn.Module, optimizer: Any, **extra: Any) -> None:
        self.model, self.optimizer, self.extra = model, optimizer, extra

    def attach(self, path: Path, **more: Any) -> scant.Journal:
        given = {"base_every": 5, "log": "always", **more}
        return scant.Journal(path, **given).attach(self.model, self.optimizer, extra=self.extra)

    def bits(self) -> list[torch.Tensor]:
        module = self.model.module if hasattr(self.model, "module") else self.model
        state = self.optimizer.state_dict()["state"]
        values = [one for key in sorted(state) for _, one in sorted(state[key].items())]
        tensors = [*module.parameters(), *(one for one in values if torch.is_tensor(one))]
        return [one.detach().clone() for one in tensors]

    def close(self) -> None:
        if isinstance(self.model, scant.torch.Wrapped):
            self.model.close()


def assert_bits(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert len(one) == len(other)
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        assert torch.equal(a, b), i


def check(make: Any, step: Any, entries: int = 8, **options: Any) -> None:
    """Eight steps, and what a second start finds."""
    path = folder()
    first = make(1)
    with first.attach(path, **options) as journal:
        assert journal.restore() is None
        for number in range(8):
            step(first, number)
        logged = journal.stats()["entries"]
    kept = first.bits()
    states = {name: one.state_dict() for name, one in first.extra.items()}
    first.close()
    assert RANK != 0 or logged == entries, logged
    again = make(2)
    with again.attach(path, **options) as journal:
        restored = journal.restore()
        assert restored is not None
        assert (restored.step, restored.base_step) == (8, 5), restored
        assert_bits(kept, again.bits())
        assert states == {name: one.state_dict() for name, one in again.extra.items()}
    again.close()


def seeded(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Net(width=24)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], 0.01)


def plain_step(run: Kept, number: int) -> None:
    run.optimizer.zero_grad()
    loss_of(run.model, number).backward()
    run.optimizer.step()


def case_ddp_on_gloo() -> None:
    def make(seed: int) -> Kept:
        model = DistributedDataParallel(seeded(seed), process_group=GLOO)
        return Kept(model, adam(model))

    check(make, plain_step, log="always")
    check(make, plain_step, log="auto")  # eight steps are too few to judge it


def case_auto_stops_a_log_that_costs_too_much() -> None:
    model = DistributedDataParallel(seeded(1), process_group=GLOO)
    run = Kept(model, adam(model))
    with warnings.catch_warnings(record=True) as seen, run.attach(folder(), log="auto") as journal:
        warnings.simplefilter("always")
        journal.restore()
        journal._recorder._gaps._steps.append(1e-9)  # any cost is more than 2 % of this
        for number in range(40):
            plain_step(run, number)
            journal._recorder._gaps._steps.extend([1e-9] * 32)
        if RANK == 0:
            assert journal.stats()["logs"] is False
            assert sum("no log from step" in str(one.message) for one in seen) == 1
        assert journal.stats()["bases"] >= 6  # they go on


def case_gradients_that_add_up() -> None:
    def make(seed: int) -> Kept:
        model = wrap(seeded(seed), plan="q4")
        optimizer = adam(model)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 6])
        return Kept(model, optimizer, scheduler=scheduler)

    def step(run: Kept, number: int) -> None:
        run.optimizer.zero_grad()
        with run.model.no_sync():
            loss_of(run.model, 2 * number).backward()
        loss_of(run.model, 2 * number + 1).backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 0.5)
        run.optimizer.step()
        run.extra["scheduler"].step()

    check(make, step)


def case_a_scaler() -> None:
    def make(seed: int) -> Kept:
        model = wrap(seeded(seed))
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=4)
        return Kept(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), scaler=scaler)

    def step(run: Kept, number: int) -> None:
        run.optimizer.zero_grad()
        scaler = run.extra["scaler"]
        scaler.scale(loss_of(run.model, number)).backward()
        scaler.step(run.optimizer)
        scaler.update()

    check(make, step)


def case_half_precision() -> None:
    def make(seed: int) -> Kept:
        model = wrap(seeded(seed).bfloat16(), plan="q8")
        return Kept(model, adam(model))

    def step(run: Kept, number: int) -> None:
        x, y = batch(number)
        run.optimizer.zero_grad()
        F.cross_entropy(run.model(x.bfloat16()), y).backward()
        run.optimizer.step()

    check(make, step)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(16, 16)
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(16, 16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.frozen(self.second(self.first(x).relu()).relu()))


def case_frozen_shared_and_unused_parameters() -> None:
    def make(seed: int) -> Kept:
        torch.manual_seed(seed)
        model = wrap(Shared(), plan="q4")
        return Kept(model, torch.optim.AdamW(model.parameters(), 0.01))

    def alone(seed: int) -> Kept:
        torch.manual_seed(seed)
        model = DistributedDataParallel(Shared(), process_group=GLOO, find_unused_parameters=True)
        return Kept(model, torch.optim.AdamW(model.parameters(), 0.01))

    check(make, plain_step)
    check(alone, plain_step)


def case_unfrozen_later_is_refused_by_name() -> None:
    torch.manual_seed(1)
    module = Shared()
    model = DistributedDataParallel(module, process_group=GLOO, find_unused_parameters=True)
    run = Kept(model, torch.optim.AdamW(model.parameters(), 0.01))
    with raises(InvalidArgument, "'frozen.weight' has a gradient"), run.attach(folder()) as journal:
        journal.restore()
        plain_step(run, 0)
        module.frozen.requires_grad_(True)
        plain_step(run, 1)


def case_a_closure_that_is_called_once() -> None:
    def make(seed: int) -> Kept:
        model = wrap(seeded(seed), plan="q4")
        return Kept(model, adam(model))

    def step(run: Kept, number: int) -> None:
        def closure() -> torch.Tensor:
            run.optimizer.zero_grad()
            loss = loss_of(run.model, number)
            loss.backward()
            return loss

        run.optimizer.step(closure)

    check(make, step)


def case_lbfgs_has_bases_alone() -> None:
    path = folder()
    run = Kept(wrap(seeded(1)), None)
    run.optimizer = torch.optim.LBFGS(run.model.parameters(), 0.1, max_iter=3)

    def closure() -> torch.Tensor:
        run.optimizer.zero_grad()
        x, y = batch(0)
        loss = F.cross_entropy(run.model(x), y)
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        return mean / SIZE

    with warnings.catch_warnings(record=True) as seen, run.attach(path, base_every=2) as journal:
        warnings.simplefilter("always")
        journal.restore()
        for number in range(5):
            if number == 4:
                kept = [one.detach().clone() for one in run.model.parameters()]
            run.optimizer.step(closure)
        assert journal.stats()["entries"] == 0
        assert RANK != 0 or any("computes gradients by itself" in str(one.message) for one in seen)
    run.close()
    again = Kept(wrap(seeded(2)), None)
    again.optimizer = torch.optim.LBFGS(again.model.parameters(), 0.1, max_iter=3)
    with again.attach(path) as journal:
        restored = journal.restore()
        assert restored is not None and restored.step == 4, restored
        assert_bits(kept, [one.detach().clone() for one in again.model.parameters()])
    again.close()


def case_the_step_in_forward() -> None:
    def make(seed: int) -> Kept:
        model = seeded(seed)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        return Kept(wrap(model, optimizer, plan="q4", step_in_forward=True), optimizer)

    check(make, plain_step)


def case_hosts_with_disks_of_their_own() -> None:
    paths = [folder("a"), folder("b")]
    path = paths[RANK == SIZE - 1]  # the last rank is another host
    first = Kept(wrap(network(), plan="q4"), None)
    first.optimizer = adam(first.model)
    with first.attach(path) as journal:
        journal.restore()
        for number in range(9):
            plain_step(first, number)
            if number == 7:
                seven = first.bits()
    first.close()
    dist.barrier(group=GLOO)
    if RANK == SIZE - 1:
        log = max(path.glob("log-*"))
        log.write_bytes(log.read_bytes()[:-3])  # this host lost the end of its last entry
        assert cli.main(["verify", str(path)]) == 0
    dist.barrier(group=GLOO)
    again = Kept(wrap(seeded_like(2), plan="q4"), None)
    again.optimizer = adam(again.model)
    with again.attach(path) as journal:
        restored = journal.restore()
        assert restored is not None and (restored.step, restored.base_step) == (8, 5), restored
        assert_bits(seven, again.bits())
        for number in range(8, 10):
            plain_step(again, number)
    kept = again.bits()
    again.close()
    third = Kept(wrap(seeded_like(3), plan="q4"), None)
    third.optimizer = adam(third.model)
    with third.attach(path) as journal:  # step 9 of the first start counts no more
        restored = journal.restore()
        assert restored is not None and restored.step == 10, restored
        assert_bits(kept, third.bits())
    third.close()


def seeded_like(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Net()


def case_one_rank_that_cannot_write_ends_it_on_all() -> None:
    run = Kept(wrap(network(), plan="q4"), None)
    run.optimizer = adam(run.model)
    with (
        warnings.catch_warnings(record=True) as seen,
        run.attach(folder(), base_every=3, on_error="warn") as journal,
    ):
        warnings.simplefilter("always")
        journal.restore()
        for number in range(10):
            if number == 4 and RANK == 1:
                journal._recorder._fail(Unsupported("a disk that is full"))
            plain_step(run, number)
        texts = [str(one.message) for one in seen]
        assert any("a disk that is full" in one for one in texts), texts
        assert RANK == 1 or any("rank 1 keeps nothing any more" in one for one in texts), texts
    run.close()


def case_what_cannot_be_kept_is_said_at_attach() -> None:
    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"f": print}

        def load_state_dict(self, state: Any) -> None:
            pass

    model = wrap(network())
    optimizer = adam(model)
    try:
        scant.Journal(folder()).attach(model, optimizer, extra={"odd": Odd()})
        raise AssertionError("it was taken")
    except Error as error:
        assert "extra 'odd'" in str(error), error
    model.close()


run_cases(globals(), lambda: dist.barrier(group=GLOO))
dist.destroy_process_group()
