"""How many samples an average is of: counted in forwards, or said by the user; the same on all."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import RANK, SIZE, raises, run_cases
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817
from wrapping import GLOO, wrap

import scant
import scant.torch

RANKS = range(SIZE)


def rows(count: int) -> torch.Tensor:
    return torch.ones(count, 4)


def told(model: scant.torch.Wrapped | scant.torch.HookState) -> int:
    """What the last step says, the same on every rank."""
    assert model.last_step is not None
    samples: int = model.last_step["samples"]
    everyone: list[Any] = [None] * SIZE
    dist.all_gather_object(everyone, samples, group=GLOO)
    assert everyone == [samples] * SIZE
    return samples


class Scaled(nn.Module):
    """Takes more than one tensor, and what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, scale: Any, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x) * scale
        return out


def case_rows_of_the_first_tensor() -> None:
    model = wrap(Scaled())
    model(2.0, rows(3 + RANK)).sum().backward()
    assert told(model) == sum(3 + rank for rank in RANKS)
    model(x=rows(5 * RANK + 1), scale=2).sum().backward()
    assert told(model) == sum(5 * rank + 1 for rank in RANKS), "counted anew"
    model(torch.ones(6, 1), rows(6)).sum().backward()
    assert told(model) == 6 * SIZE, "one tensor counts"
    model(torch.tensor(2.0), rows(6)).sum().backward()
    assert told(model) == 0, "the first tensor has no rows"
    model.close()


class Padded(nn.Module):
    """Takes rows of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(torch.nested.to_padded_tensor(x, 0.0))
        return out


def case_nested_rows_count() -> None:
    model = wrap(Padded())
    for layout in (torch.strided, torch.jagged):
        sentences = [rows(1 + length) for length in range(3 + RANK)]
        model(torch.nested.nested_tensor(sentences, layout=layout)).sum().backward()
        assert told(model) == sum(3 + rank for rank in RANKS), layout
    model.close()


def case_a_trace_is_no_sample() -> None:
    model = wrap(nn.Linear(4, 2))
    torch.jit.trace(model, (rows(5),), check_trace=False)  # type: ignore[no-untyped-call]
    model(rows(3)).sum().backward()
    assert told(model) == 3 * SIZE
    model.close()


def case_small_batches_add_up() -> None:
    model = wrap(nn.Linear(4, 2))
    for turn in range(2):
        with model.no_sync():
            for _ in range(3):
                model(rows(2 + RANK)).sum().backward()
        with torch.no_grad():
            model(rows(1000))
        model(rows(1)).sum().backward()
        assert told(model) == sum(3 * (2 + rank) + 1 for rank in RANKS), turn
    model.close()


def case_what_is_said_stands_instead() -> None:
    model = wrap(nn.Linear(4, 2))
    with model.no_sync():
        model(rows(8)).sum().backward()
        model.samples(10)
    model.samples(RANK)
    model(rows(8)).sum().backward()
    assert told(model) == sum(10 + rank for rank in RANKS)
    model.samples(0)
    model(rows(8)).sum().backward()
    assert told(model) == 0
    model(rows(8)).sum().backward()
    assert told(model) == 8 * SIZE, "nothing was said of this one"
    for wrong in (-1, 1.5, True, "8", None, 2**48 + 1):
        with raises(scant.InvalidArgument, "samples: a whole number from 0 on", repr(wrong)):
            model.samples(wrong)  # type: ignore[arg-type]
    model(rows(8)).sum().backward()
    assert told(model) == 8 * SIZE, "what was refused is not there"
    model.close()


def case_a_step_in_the_next_forward() -> None:
    layer = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    model = scant.torch.wrap(layer, optimizer, plan="plain", step_in_forward=True)
    for count in (3, 5, 7):
        model(rows(count)).sum().backward()
        optimizer.step()
        model.settle()
        assert told(model) == count * SIZE
    model.close()


def case_a_compiled_wrapped_model_tells_what_is_said() -> None:
    model = wrap(nn.Linear(4, 2))
    compiled: Any = torch.compile(model, backend="aot_eager")
    for said in (4, 3):
        model.samples(said)
        compiled(rows(5)).sum().backward()
        assert told(model) == said * SIZE
    model.close()


def case_the_hook_is_told() -> None:
    model = DDP(nn.Linear(4, 2), process_group=GLOO)
    state = scant.torch.HookState(dist.group.WORLD, plan="plain")
    model.register_comm_hook(state, scant.torch.ddp_hook)
    for step in range(5):
        if step in (0, 1, 3):
            state.samples(5 + RANK)
        model(rows(4)).sum().backward()
        if step < 2:
            assert state.last_step is None
        else:
            assert told(state) == (sum(5 + rank for rank in RANKS) if step == 3 else 0), step
    state.close()


def case_the_run_log_has_them() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl"
        model = scant.torch.wrap(nn.Linear(4, 2), log=str(path) if RANK == 0 else None)
        agreed = 0
        samples = []
        counted = 0
        for step in range(60):
            model(rows(2 + step % 3)).sum().backward()
            counted += told(model)
            assert model.last_step is not None
            if "agreement" in model.last_step:
                agreed += 1
                samples.append(counted)
                counted = 0
        assert agreed >= 2
        model.close()
        if RANK == 0:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            assert [line["samples"] for line in lines if line["kind"] == "steps"] == samples


run_cases(globals(), lambda: dist.barrier(group=GLOO))
dist.destroy_process_group()
