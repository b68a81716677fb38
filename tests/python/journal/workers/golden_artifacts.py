"""What an earlier version left, loaded by the two ranks that wrote it. GOLDEN is its folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import RANK, run_cases
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from wrapping import GLOO, Net, all_equal, loss_of, wrap

import scant
import scant.torch

ROOT = Path(os.environ["GOLDEN"])
FACTS = json.loads((ROOT / "facts.json").read_text())
CHECKPOINTS = ROOT / "checkpoints"


def network(seed: int = 99) -> Net:
    """Other values than those that were saved."""
    torch.manual_seed(seed)
    return Net(width=FACTS["width"])


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.125, momentum=0.5)


def state_digest(module: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """As make_artifacts.py took it."""
    state = optimizer.state_dict()["state"]
    momenta = [state[key]["momentum_buffer"] for key in sorted(state)]
    buffers = list(module.buffers()) if RANK == 0 else []
    content = hashlib.sha256()
    for one in [*module.parameters(), *buffers, *momenta]:
        content.update(one.detach().contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def step(model: Any, optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()
    loss_of(model, number).backward()
    optimizer.step()


def close_to(one: float, other: float) -> bool:
    """Sums of the same squares, in whatever order."""
    return abs(one - other) <= 1e-9 * abs(other)


def copy_of(journal: str) -> Path:
    """A journal that goes on is written; the same folder on all ranks."""
    places = [tempfile.mkdtemp(prefix="scant-golden-") if RANK == 0 else ""]
    dist.broadcast_object_list(places)
    at = Path(places[0]) / journal
    if RANK == 0:
        shutil.copytree(ROOT / "journals" / journal, at)
    dist.barrier(group=GLOO)
    return at


def go_on(name: str, mode: str) -> None:
    facts = FACTS["journals"][name]
    model = wrap(network(), plan=facts["plan"])
    optimizer = optimizer_of(model)
    at = copy_of(name)
    with scant.Journal(at, job="golden", base_every=5, log="always") as journal:
        journal.attach(model, optimizer)
        restored = journal.restore(mode)
        assert restored is not None and not restored.problems, restored
        ends = facts["steps"] if mode == "fast" else facts["base"]
        assert (restored.base_step, restored.step) == (facts["base"], ends), restored
        assert restored.cursor == {"batch": ends}, restored.cursor
        wanted = facts["at_end" if mode == "fast" else "at_base"][RANK]
        assert state_digest(model.module, optimizer) == wanted
        kept = facts["residuals"][RANK]
        assert close_to(model._averager.residual_energy, kept), kept
        for number in range(restored.step + 1, restored.step + 4):
            step(model, optimizer, number)
        assert journal.step == restored.step + 3
        all_equal(model.module)
    model.close()


def case_journal_of_owners_records_fast() -> None:
    go_on("split", "fast")


def case_journal_of_owners_records_exact() -> None:
    go_on("split", "exact")


def case_journal_of_gathered_records_fast() -> None:
    go_on("gather", "fast")


def case_journal_of_gathered_records_exact() -> None:
    go_on("gather", "exact")


def case_journal_of_plain_gradients_fast() -> None:
    go_on("plain", "fast")


def case_journal_of_plain_gradients_exact() -> None:
    go_on("plain", "exact")


def case_checkpoint_of_a_wrapped_model() -> None:
    facts = FACTS["checkpoints"]
    saved = torch.load(CHECKPOINTS / f"wrapped-{RANK}.pt")
    assert saved["step"] == 5
    model = wrap(network(), plan="5% q4")
    optimizer = optimizer_of(model)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert state_digest(model.module, optimizer) == facts["wrapped"][RANK]
    kept = facts["wrapped_residuals"][RANK]
    assert kept > 0 and close_to(model._averager.residual_energy, kept), kept
    step(model, optimizer, 6)
    all_equal(model.module)
    model.close()


def case_residuals_of_the_hook() -> None:
    model = DistributedDataParallel(network(seed=1), process_group=GLOO)
    state = scant.torch.HookState(dist.group.WORLD, plan="q3")
    model.register_comm_hook(state, scant.torch.ddp_hook)
    saved = (CHECKPOINTS / f"hook-{RANK}.residuals").read_bytes()
    state.restore(saved)
    assert state.save() == saved
    optimizer = optimizer_of(model)
    step(model, optimizer, 1)
    assert state.save() == saved  # DDP arranges its buckets anew
    state.restore(saved)
    step(model, optimizer, 2)
    assert state._averaging is not None
    kept = FACTS["checkpoints"]["hook_residuals"][RANK]
    assert kept > 0 and close_to(state._averaging.averager.residual_energy, kept), kept
    step(model, optimizer, 3)
    state.close()


run_cases(globals(), lambda: dist.barrier(group=GLOO))
dist.destroy_process_group()
