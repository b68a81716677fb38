"""A checkpoint at every optimizer step: an import and two lines beside ordinary training.

torchrun --standalone --nproc-per-node 2 examples/journal.py /tmp/line.journal
python examples/journal.py /tmp/line.journal
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import nn

import scant
import scant.torch

STEPS = 60


def main() -> None:
    """Fit a line through noisy points. A second start goes on where the first was, however it
    ended: try Ctrl-C or kill -9, or another number of ranks."""
    together = "RANK" in os.environ  # torchrun's
    if together:
        dist.init_process_group("scant")
    rank = dist.get_rank() if together else 0
    torch.manual_seed(1)
    net = nn.Linear(1, 1)
    model = scant.torch.wrap(net) if together else net
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)

    # log="always": these steps are so short that the log costs more than 2 % of one.
    journal = scant.Journal(sys.argv[1], log="always")
    journal.attach(model, optimizer, extra={"scheduler": scheduler}).restore()

    first = journal.step
    while journal.step < STEPS:
        generator = torch.Generator().manual_seed(1000 * journal.step + rank)
        x = torch.randn(64, 1, generator=generator)
        loss = (model(x) - (3 * x + 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()  # from here on a crash does not lose this step
        scheduler.step()
    if rank == 0:
        error = abs(net.weight.item() - 3) + abs(net.bias.item() - 1)
        print(f"steps {first} to {journal.step}: off by {error:.6f}")
    journal.close()
    if together:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
