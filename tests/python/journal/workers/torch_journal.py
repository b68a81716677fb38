"""scant.Journal on wrapped models: records in the log, residuals in bases."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import RANK, SIZE, run_cases
from torch import nn
from wrapping import GLOO, Net, loss_of, network, wrap

import scant
import scant.torch
from scant.errors import Error
from scant.journal import cli


def folder(name: str) -> Path:
    """The same on all ranks."""
    paths = [tempfile.mkdtemp(prefix="scant-journal-") if RANK == 0 else ""]
    dist.broadcast_object_list(paths)
    return Path(paths[0]) / name


class Convolutions(nn.Module):
    """What of a convolution is a matrix has rows of 3 x 3 inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 24, 3, padding=1)
        self.second = nn.Conv2d(24, 40, 3)
        self.last = nn.Linear(160, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x.view(-1, 1, 4, 4)).relu()
        out: torch.Tensor = self.last(self.second(hidden).relu().flatten(1))
        return out


class Run:
    def __init__(
        self, seed: int = 1, plan: str = "q4", net: Callable[[], nn.Module] = Net, **options: Any
    ) -> None:
        torch.manual_seed(seed)
        self.model = wrap(net() if seed != 1 or net is not Net else network(), plan=plan, **options)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 0.01)

    def attach(self, path: Path, **more: Any) -> scant.Journal:
        return scant.Journal(path, **{"base_every": 6, "log": "always", **more}).attach(
            self.model, self.optimizer
        )

    def train(self, first: int, last: int, clip: float | None = None) -> None:
        for step in range(first, last):
            self.optimizer.zero_grad()
            loss_of(self.model, step).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()

    def close(self) -> None:
        self.model.close()

    def bits(self) -> list[torch.Tensor]:
        state = self.optimizer.state_dict()["state"]
        module = self.model.module  # rank 0's buffers are given to all before each forward
        return [
            *(one.detach().clone() for one in module.parameters()),
            *(one.clone() for one in module.buffers() if RANK == 0),
            *(one.clone() for key in sorted(state) for _, one in sorted(state[key].items())),
        ]


def assert_bits(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert len(one) == len(other)
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        assert torch.equal(a, b), i


def check_fast(
    plan: str,
    clip: float | None = None,
    look: Callable[[Path], None] = lambda path: None,
    **options: Any,
) -> dict[str, Any]:
    """``look`` at the journal of the first ten steps, on rank 0."""
    path = folder("j")
    first = Run(plan=plan, **options)
    with first.attach(path) as journal:
        assert journal.restore() is None
        first.train(0, 10, clip)
        stats = journal.stats()
    kept = first.bits()
    first.close()
    if RANK == 0:
        look(path)
    again = Run(seed=2, plan=plan, **options)
    with again.attach(path) as journal:
        restored = journal.restore()
        assert restored is not None
        assert (restored.step, restored.base_step) == (10, 6), restored
        assert_bits(kept, again.bits())
        again.train(10, 14, clip)
    kept = again.bits()
    again.close()
    third = Run(seed=3, plan=plan, **options)
    with third.attach(path) as journal:
        restored = journal.restore()
        assert restored is not None and restored.step == 14
        assert_bits(kept, third.bits())
    third.close()
    if RANK == 0:
        assert stats["entries"] == 10
        assert cli.main(["verify", str(path)]) == 0
    return stats


def case_records_come_back_to_the_bit() -> None:
    for plan in ("q4", "q8", "1% q4", "bf16"):
        stats = check_fast(plan)
        assert RANK != 0 or stats["as_is"] == 0, (plan, stats["as_is"])


def case_clipped_records_come_back_to_the_bit() -> None:
    for clip in (1e9, 0.3, 0.01):
        stats = check_fast("q4", clip)
        assert RANK != 0 or stats["as_is"] == 0, (clip, stats["as_is"])


def told(*command: str) -> str:
    """What ``scant journal`` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(command) == 0, command
    return out.getvalue()


def look_at_factors(path: Path) -> None:
    """Every entry is of records and matrices, and as long as these and the stated overhead."""
    found = scant._scant.JournalFolder(str(path), False)
    state = found.state()
    assert [step for _, step, *_ in state["entries"]] == [7, 8, 9, 10]
    for sequence, _, length, segment, offset in state["entries"]:
        summary = found.summary(sequence, segment, offset)
        parts = summary["parts"]
        kinds = {kind for kind, _, _ in parts}
        assert "matrices" in kinds and "raw" not in kinds and "bf16" not in kinds, parts
        head = 24 + (summary["tensors"] + 7) // 8 + len(summary["settings"])
        assert length == head + 24 * len(parts) + sum(size for *_, size in parts)
    assert "matrices" in told("ls", str(path), "--entries")
    assert json.loads(told("ls", str(path), "--json"))["state"]["step"] == 10
    assert told("verify", str(path)).endswith("whole; step 10 can be restored\n")
    assert "equal to the bit" in told("diff", str(path), str(path))
    assert "safetensors" in told("export", str(path), str(path.parent / "out"))


def case_factors_come_back_to_the_bit() -> None:
    """With a rest and without, split and gathered, of matrices and convolutions."""
    plans = ("rank 4 q1", "rank 8 of q4", "rank 4 of q8, 5% q4", "rank 3 of q8, q2, gather",
             "rank 4 of fp16, gather")  # fmt: skip
    for plan in plans:
        for net in (Net, Convolutions):
            stats = check_fast(plan, look=look_at_factors, net=net)
            assert RANK != 0 or (stats["as_is"], stats["holes"]) == (0, 0), (plan, stats)


def case_clipped_factors_come_back_to_the_bit() -> None:
    for plan in ("rank 4 q1", "rank 8 of q4, gather"):
        for clip in (1e9, 0.3, 0.01):
            stats = check_fast(plan, clip)
            assert RANK != 0 or stats["as_is"] == 0, (plan, clip, stats)


def case_plans_with_and_without_factors_share_a_log() -> None:
    """Segments of both versions; the directions of the first plan outlive the second."""
    path = folder("j")
    first = Run(plan="q4")
    with first.attach(path, base_every=100) as journal:
        journal.restore()
        for step, plan in enumerate(("q4", "rank 4 q1", "plain", "rank 2 of q8", "rank 4 q1")):
            first.model.set_plan(plan)
            first.train(2 * step, 2 * step + 2)
        stats = journal.stats()
    kept = first.bits()
    first.close()
    if RANK == 0:
        assert stats["entries"] == 10 and stats["holes"] == 0, stats
        heads = [one.read_bytes()[4] for one in sorted(path.glob("log-*.scj"))]
        assert heads == [1, 2], heads
    again = Run(seed=2, plan="rank 4 q1")
    with again.attach(path, base_every=100) as journal:
        restored = journal.restore()
        assert restored is not None and (restored.step, restored.base_step) == (10, 0), restored
        assert_bits(kept, again.bits())
    again.close()


def check_exact(cut: int, base: int, end: int, **run: str) -> None:
    """A run that stops at step `cut` goes on from its base as one that never stopped."""
    whole = Run(**run)
    whole.train(0, end)
    expected = whole.bits()
    whole.close()
    path = folder("j")
    first = Run(**run)
    with first.attach(path) as journal:
        journal.restore()
        first.train(0, cut)
    first.close()
    again = Run(seed=2, **run)
    with again.attach(path) as journal:
        restored = journal.restore("exact")
        assert restored is not None and restored.step == base
        again.train(base, end)
    assert_bits(expected, again.bits())
    again.close()


def case_exact_goes_on_with_factors_as_if_nothing_had_happened() -> None:
    """Directions are residuals: the base has them."""
    check_exact(10, 6, 14, plan="rank 4 q1")


def case_exact_plans_come_back_to_the_bit() -> None:
    check_fast("plain")


def case_the_automatic_plan_comes_back_to_the_bit() -> None:
    check_fast("auto")


def case_exact_goes_on_as_if_nothing_had_happened() -> None:
    check_exact(16, 12, 20)


def case_lost_mass_is_told() -> None:
    path = folder("j")
    first = Run()
    with first.attach(path) as journal:
        journal.restore()
        first.train(0, 8)
        norm = first.model.residual_norm
    first.close()
    again = Run(seed=2)
    with again.attach(path) as journal:
        restored = journal.restore()
        assert restored is not None
        if RANK == 0:
            # As the encoders report it: what the owners of averages keep is not in it.
            assert abs(restored.lost_mass - norm) < 0.05 * norm, (restored, norm)
    again.close()


def case_one_ranks_mistake_ends_it_on_all() -> None:
    run = Run()
    path = folder("j")
    try:
        scant.Journal(path if RANK != 1 else path / "a" / "b").attach(run.model, run.optimizer)
        raise AssertionError("rank 1 has another folder")
    except (Error, OSError) as error:
        assert "rank 1" in str(error) or RANK == 1, error
    run.close()
    run = Run()
    with run.attach(path) as journal:
        journal.restore()
        run.train(0, 2)
    run.close()
    if RANK == 0:
        journal = scant.Journal(path)
    other = Run(seed=2)
    try:
        other.attach(path, keep_bases=2 + (RANK == 2)).close()
        raise AssertionError("rank 2 has another option")
    except Error as error:
        assert "keep_bases" in str(error), error
    other.close()


def case_all_ranks_share_the_work() -> None:
    path = folder("j")
    run = Run()
    with run.attach(path) as journal:
        journal.restore()
        run.train(0, 7)
    run.close()
    dist.barrier()
    base = path / "base-000000000006"
    sizes = [sum(f.stat().st_size for f in base.glob(f"*-{r:04d}.safe*")) for r in range(SIZE)]
    assert max(sizes) < 2.5 * min(sizes), sizes


run_cases(globals(), lambda: dist.barrier(group=GLOO))
dist.destroy_process_group()
