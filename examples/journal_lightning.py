"""A checkpoint at every step of Lightning's Trainer: one callback.

torchrun --standalone --nproc-per-node 2 examples/journal_lightning.py /tmp/line.journal
python examples/journal_lightning.py /tmp/line.journal [STEP to be killed at]

Needs ``pip install lightning``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import torch
from lightning import pytorch as pl
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import scant

SAMPLES, BATCH, ACCUMULATED, EPOCHS = 384, 16, 2, 3
RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Places(Sampler[int]):
    """Shuffled anew in each epoch, each rank's share of it; may begin in the middle of one."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.first = 0  # over all epochs

    def __len__(self) -> int:
        return self.samples // RANKS

    def __iter__(self) -> Iterator[int]:
        epoch, first = divmod(self.first, self.samples)
        self.first = (epoch + 1) * self.samples
        shuffled = torch.randperm(self.samples, generator=torch.Generator().manual_seed(epoch))
        yield from shuffled[first + RANK :: RANKS].tolist()


class JournalCallback(pl.Callback):
    """Keeps a journal of what the Trainer trains, and goes on where the last start was."""

    def __init__(self, path: str, places: Places) -> None:
        # log="always": these steps are so short that the log costs more than 2 % of one.
        self.journal = scant.Journal(path, log="always")
        self.places = places

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Optimizers are there, and the data have not been asked for yet."""
        (optimizer,) = trainer.optimizers
        schedulers = [one.scheduler for one in trainer.lr_scheduler_configs]
        extra = {f"scheduler{i}": one for i, one in enumerate(schedulers)}
        self.journal.attach(pl_module, optimizer, extra=extra)
        if self.journal.restore() is None:
            return
        steps = self.journal.step
        self.places.first = steps * BATCH * ACCUMULATED * RANKS
        # What Trainer.global_step and Trainer.current_epoch count.
        loop = trainer.fit_loop
        epochs = loop.epoch_progress.current
        epochs.ready = epochs.started = epochs.processed = self.places.first // SAMPLES
        epochs.completed = epochs.processed
        done = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
        done.ready = done.completed = steps
        if trainer.is_global_zero:
            print(f"goes on behind step {steps}, in epoch {trainer.current_epoch}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last base, the last sync."""
        self.journal.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Others may be gone: nobody is waited for."""
        self.journal.__exit__(type(exception), exception, None)


class Line(pl.LightningModule):
    """An ordinary module: nothing in it knows of the journal."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Batches of points."""
        x, y = batch
        return (self.line(x) - y).square().mean()

    def configure_optimizers(self) -> Any:
        """A scheduler that goes on with each step."""
        optimizer = torch.optim.Adam(self.parameters(), lr=0.3)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Killed(pl.Callback):
    """Stands for what ends trainings: no goodbye, nothing is flushed."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """In the middle of the steps."""
        if trainer.global_step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Fit a line through noisy points."""
    torch.manual_seed(1)
    x = torch.linspace(-1, 1, SAMPLES).unsqueeze(1)
    places = Places(SAMPLES)
    data = DataLoader(TensorDataset(x, 3 * x + 1), BATCH, sampler=places)
    together: dict[str, Any] = {}
    if RANKS > 1:
        ddp = pl.strategies.DDPStrategy(process_group_backend="scant")
        together = {"strategy": ddp, "devices": RANKS, "use_distributed_sampler": False}
    callbacks: list[pl.Callback] = [JournalCallback(sys.argv[1], places)]
    if len(sys.argv) > 2:
        callbacks.append(Killed())
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        accumulate_grad_batches=ACCUMULATED,
        gradient_clip_val=1.0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **together,
    )
    module = Line()
    trainer.fit(module, data)
    if RANK == 0:
        off = abs(module.line.weight.item() - 3) + abs(module.line.bias.item() - 1)
        print(f"{trainer.global_step} steps, {trainer.current_epoch} epochs: off by {off:.6f}")


if __name__ == "__main__":
    main()
