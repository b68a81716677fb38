"""A checkpoint at every step of Hugging Face's Trainer: one callback.

torchrun --standalone --nproc-per-node 2 examples/journal_trainer.py /tmp/line.journal
python examples/journal_trainer.py /tmp/line.journal [STEP to be killed at]

Needs ``pip install transformers accelerate``.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import scant

SAMPLES, BATCH, ACCUMULATED, STEPS = 384, 16, 2, 36


class Points(IterableDataset[dict[str, torch.Tensor]]):
    """Of a line, without end, shuffled anew each time; may begin anywhere. accelerate deals
    batches out to the ranks."""

    def __init__(self) -> None:
        self.first = 0  # sample, over all epochs

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        x = torch.linspace(-1, 1, SAMPLES).unsqueeze(1)
        epoch, first = divmod(self.first, SAMPLES)
        while True:
            generator = torch.Generator().manual_seed(epoch)
            for i in torch.randperm(SAMPLES, generator=generator)[first:].tolist():
                yield {"x": x[i], "labels": 3 * x[i] + 1}
            epoch, first = epoch + 1, 0


class JournalCallback(TrainerCallback):
    """Keeps a journal of what the Trainer trains, and goes on where the last start was."""

    def __init__(self, path: str, points: Points) -> None:
        # log="always": these steps are so short that the log costs more than 2 % of one.
        self.journal = scant.Journal(path, log="always")
        self.points = points

    def on_train_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """Model, optimizer and scheduler are there, and the data have not been asked for yet."""
        self.journal.attach(of["model"], of["optimizer"], extra={"scheduler": of["lr_scheduler"]})
        if self.journal.restore() is None:
            return
        state.global_step = self.journal.step
        a_step = BATCH * ACCUMULATED * args.world_size
        self.points.first = self.journal.step * a_step
        if state.is_world_process_zero:
            print(f"goes on behind step {state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """The last base, the last sync."""
        self.journal.close()


class Line(nn.Module):
    """What Trainer calls a model: it gives a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Batches of points."""
        return {"loss": (self.line(x) - labels).square().mean()}


class Killed(TrainerCallback):
    """Stands for what ends trainings: no goodbye, nothing is flushed."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """In the middle of the steps."""
        if state.global_step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Fit a line through points."""
    points = Points()
    together = {"ddp_backend": "gloo"} if "RANK" in os.environ else {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=ACCUMULATED,
            accelerator_config={"dispatch_batches": False},
            max_grad_norm=1.0,
            learning_rate=0.3,
            lr_scheduler_type="linear",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=1,
            **together,
        )
        torch.manual_seed(1)
        module = Line()
        trainer = Trainer(module, arguments, train_dataset=points)
        trainer.add_callback(JournalCallback(sys.argv[1], points))
        if len(sys.argv) > 2:
            trainer.add_callback(Killed())
        trainer.train()
        if trainer.is_world_process_zero():
            off = abs(module.line.weight.item() - 3) + abs(module.line.bias.item() - 1)
            print(f"{trainer.state.global_step} steps: off by {off:.6f}")


if __name__ == "__main__":
    main()
