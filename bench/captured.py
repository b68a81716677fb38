"""Gradients of a real training: the demo's model on four ranks with AdamW; those of rank 0."""

from __future__ import annotations

import dataclasses

import harness
import torch

RANKS, BATCH, BLOCK, RATE = 4, 8, 64, 1e-3


@dataclasses.dataclass
class Capture:
    """Rank 0's gradients of consecutive steps, tensor by tensor."""

    names: list[str]
    steps: list[list[torch.Tensor]]

    def flat(self, step: int) -> torch.Tensor:
        return torch.cat([tensor.flatten() for tensor in self.steps[step]])


def capture(first: int, count: int, seed: int = 1) -> Capture:
    """Gradients of steps [first, first + count) of a plain training."""
    torch.set_num_threads(1)
    example = harness.load_example()
    text = example.load_text()
    torch.manual_seed(seed)
    model = example.CharTransformer(block=BLOCK)
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    draws = [torch.Generator().manual_seed(seed * 1000 + rank) for rank in range(RANKS)]
    kept = Capture(names, [])
    for step in range(first + count):
        total: list[torch.Tensor] | None = None
        for rank, draw in enumerate(draws):
            window = example.sample(text, draw, BATCH, BLOCK)
            logits = model(window[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
            gradients = list(torch.autograd.grad(loss, parameters))
            if rank == 0 and step >= first:
                kept.steps.append([gradient.clone() for gradient in gradients])
            total = (
                gradients
                if total is None
                else [a + b for a, b in zip(total, gradients, strict=True)]
            )
        assert total is not None
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient / RANKS
        optimizer.step()
    return kept
