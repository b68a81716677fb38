"""Worker for tests: rounds of real ranks beside scant.codec.Members, to the bit."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from ranks import RANK, SIZE, run_cases
from torch import nn
from wrapping import GLOO, wrap

from scant import codec

SHAPES = {
    "convolution": (48, 16, 3, 3),
    "matrix": (160, 200),  # cut among the ranks
    "narrow": (400, 6),
    "vector": (3000,),
    "large": (20_000,),  # a vector that is cut
    "small": (5, 7),
}
WHOLE = 2048  # a named plan sends tensors of up to so many elements as bf16
STEPS = 4


class Tensors(nn.Module):
    """Parameters whose gradients are what a test wants."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def forward(self, wanted: dict[str, torch.Tensor]) -> torch.Tensor:
        parts = [(own * wanted[name]).sum() for name, own in self.named_parameters()]
        return torch.stack(parts).sum()


def gradients(step: int, rank: int) -> dict[str, torch.Tensor]:
    """Noise, and a few directions that all ranks have."""
    noise = torch.Generator().manual_seed(1000 * step + rank)
    common = torch.Generator().manual_seed(3)
    made = {}
    for name, shape in SHAPES.items():
        matrix = torch.randn(shape, generator=noise).flatten(1 if len(shape) > 1 else 0)
        matrix = matrix.reshape(shape[0] if len(shape) > 1 else 1, -1)
        for strength in (2.0, 1.0):
            left = torch.randn(matrix.shape[0], 1, generator=common)
            matrix = matrix + strength * left @ torch.randn(1, matrix.shape[1], generator=common)
        made[name] = matrix.reshape(shape)
    return made


def simulated(model: Any, plan: str) -> dict[str, codec.Members]:
    """The same exchange of each tensor; parts and owners are those of the model's layout."""
    layout = model._averaging.layout
    owners = {part: owner for part, owner, _, _ in reversed(layout.slices)}  # of the first slice
    members = {}
    for part, name in enumerate(reversed(SHAPES)):
        elements = torch.Size(SHAPES[name]).numel()
        gather = ", gather" if plan.endswith(", gather") else ""
        point = f"bf16{gather}" if elements <= WHOLE else plan
        members[name] = codec.Members(
            SHAPES[name], SIZE, point, part=part, tensor=part, owner=owners[part]
        )
    return members


def same_bits(plan: str) -> None:
    module = Tensors()
    model = wrap(module, plan=plan, check_every=0)
    members = simulated(model, plan)
    for step in range(STEPS):
        model.zero_grad(set_to_none=True)
        model(gradients(step, RANK)).backward()
        of_all = [gradients(step, rank) for rank in range(SIZE)]
        sent = 0
        for name, own in module.named_parameters():
            done = members[name].exchange([one[name] for one in of_all])
            sent += done.sent_bytes[RANK]
            assert own.grad is not None
            assert torch.equal(own.grad, done.mean), f"{name}, step {step}, plan {plan!r}"
        # Beside the records a rank sends its verdict, to all.
        assert model.last_step is not None
        beside = model.last_step["sent_bytes"] - sent
        assert 0 <= beside < 2000 * SIZE, (beside, sent)
    model.close()


def case_factors_and_a_rest() -> None:
    for plan in ("rank 8 of q8, q1", "rank 3 of q4, 5% q4", "rank 2 of f16, bf16"):
        same_bits(plan)


def case_factors_alone() -> None:
    for plan in ("rank 32 of q4", "rank 1 of f32", "rank 256 of q8, q4"):
        same_bits(plan)


def case_gathered_factors() -> None:
    for plan in ("rank 4 of q4, gather", "rank 4 of q8, q2, gather"):
        same_bits(plan)


def case_without_factors() -> None:
    for plan in ("q4", "1% q4", "5% q4, gather"):
        same_bits(plan)


run_cases(globals(), lambda: dist.barrier(group=GLOO))
dist.destroy_process_group()
