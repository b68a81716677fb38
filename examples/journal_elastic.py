r"""A rank is killed in the middle of a step; torchrun starts all ranks anew, and no step is lost.

torchrun --standalone --nproc-per-node 2 --max-restarts 1 \
    examples/journal_elastic.py /tmp/net.journal
"""

from __future__ import annotations

import os
import signal
import sys

import torch
import torch.distributed as dist
from torch import nn

import scant
import scant.torch

STEPS = 60
DEADLY_STEP = 25  # the last rank dies in its backward, on the first attempt


def die_in_backward(_: torch.Tensor) -> None:
    """A hook of a gradient: no goodbye, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Train a small network on made-up data, with as few bits as the link asks for."""
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    dist.init_process_group("scant")
    rank, last_rank = dist.get_rank(), dist.get_world_size() - 1
    model = scant.torch.wrap(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    # log="always": these steps are so short that the log costs more than 2 % of one.
    journal = scant.Journal(sys.argv[1], log="always").attach(model, optimizer)
    restored = journal.restore()
    if rank == 0 and restored is not None:
        print(
            f"attempt {attempt}: step {restored.step} is back: base {restored.base_step} and "
            f"{restored.replayed} steps of the log"
        )
        if attempt > 0:
            print(f"steps lost: {DEADLY_STEP - 1 - restored.step}")

    while journal.step < STEPS:
        step = journal.step + 1
        generator = torch.Generator().manual_seed(1000 * step + rank)
        x = torch.randn(32, 16, generator=generator)
        loss = nn.functional.cross_entropy(model(x), x[:, :4].argmax(1))
        optimizer.zero_grad()
        if attempt == 0 and step == DEADLY_STEP and rank == last_rank:
            next(model.module.parameters()).register_hook(die_in_backward)
        loss.backward()
        optimizer.step()
    if rank == 0:
        print(f"attempt {attempt}: step {journal.step}, loss {loss.item():.3f}")
    journal.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
