"""The ways to train that train.py compares, each with a model and an optimizer of its own.

All start from the same weights and draw the same samples; only how gradients travel differs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from train_tasks import Task

ALONE, AUTO = "alone", "auto"
IN_FORWARD = "auto, step in forward"
PLANS = (
    "plain", "bf16", "fp16", "q8", "q4", "q3", "q2", "rank 4 q2", "rank 8 q1", "rank 32 of q4",
    "rank 16 of q4", "1% q4", "ssfusion 1%", "adtopk 1%",
)  # fmt: skip
CHECK_EVERY = 10  # steps of a training; hashing 13 MB takes half a millisecond
DEFAULT_BUCKET_MB = 25  # torch's own
# PowerSGD's hook averages exactly in the first two steps, in which DDP settles its buckets.
POWERSGD_BEGINS = 2


@dataclasses.dataclass(frozen=True)
class Spec:
    """One way: ``kind`` is alone (no communication), peer, pinned (scant, plan given) or auto."""

    name: str
    kind: str
    curve: str  # the name of its loss against steps
    hook: str = ""  # of peers: fp16, powersgd
    backend: str = "gloo"
    bucket_mb: int = DEFAULT_BUCKET_MB
    rank: int = 0  # of PowerSGD


@dataclasses.dataclass(frozen=True)
class Wait:
    """Seconds of one step: waited after backward, encoded, and encoded before its end."""

    exposed_s: float
    encode_s: float
    overlapped_s: float


def wait_of(report: dict[str, Any]) -> Wait:
    """One worker that encodes each part as soon as it is ready and it has nothing else to do."""
    backward_s, parts = report["backward_s"], report["parts"]
    end, overlapped_s = 0.0, 0.0
    for ready_s, encode_s in sorted(zip(parts["ready"], parts["encode_s"], strict=True)):
        begin = max(end, ready_s)
        end = begin + encode_s
        overlapped_s += max(0.0, min(end, backward_s) - begin)
    return Wait(report["exposed_s"], sum(parts["encode_s"]), overlapped_s)


def silent_parts(report: dict[str, Any]) -> tuple[int, int]:
    """Of one step on this rank: parts of which nothing was sent though there was something to
    send, and all that had something."""
    parts = report["parts"]
    pairs = zip(parts["energy"], parts["energy_left"], strict=True)
    # No entry, and all that there was is left: to the last bit the same sum of squares.
    found = [left == energy for energy, left in pairs if energy > 0 and math.isfinite(energy)]
    return sum(found), len(found)


def specs(
    buckets_mb: Sequence[int], powersgd: Sequence[int], plans: Sequence[str], backend: bool = True
) -> list[Spec]:
    """All sides of a row, in the order of their turns: the planner's between the plans. `backend`:
    DDP on scant is one."""
    ours = [Spec(plan, "pinned", "f32" if plan == "plain" else plan) for plan in plans]
    ours[len(ours) // 2 : len(ours) // 2] = [of_curve(AUTO), of_curve(IN_FORWARD)]
    peers = [Spec(f"DDP, {mb} MB", "peer", "f32", bucket_mb=mb) for mb in buckets_mb]
    peers += [Spec(f"fp16, {mb} MB", "peer", "fp16", "fp16", bucket_mb=mb) for mb in buckets_mb]
    peers += [of_curve(f"PowerSGD {rank}") for rank in powersgd]
    if backend:
        peers.append(Spec("DDP on scant", "peer", "f32", backend="scant"))
    return [Spec(ALONE, "alone", ""), *ours, *peers]


def of_curve(name: str) -> Spec:
    """A side that trains along the curve of this name; ValueError where there is none."""
    if name in (AUTO, IN_FORWARD):
        return Spec(name, "auto", name)
    if name == "f32":
        return Spec("DDP", "peer", name)
    if name == "fp16":
        return Spec("fp16", "peer", name, "fp16")
    if name in PLANS:
        return Spec(name, "pinned", name)
    kind, _, rank = name.partition(" ")
    if kind == "PowerSGD" and rank.isdecimal() and int(rank) > 0:
        return Spec(name, "peer", name, "powersgd", rank=int(rank))
    raise ValueError(
        f"no training {name!r}; there are {AUTO}, {IN_FORWARD}, f32, fp16, PowerSGD N and the plans"
    )


class Side:
    """A training on this rank."""

    def __init__(
        self,
        spec: Spec,
        task: Task,
        seed: int,
        groups: dict[str, Any],
        more: dict[str, Any] | None = None,
    ) -> None:
        """`more`: options of scant's wrap beyond the side's own."""
        import torch.distributed as dist

        self.spec = spec
        self._task = task
        self._more = more or {}
        torch.manual_seed(seed)
        self.module = task.model()
        self._optimizer = task.optimizer(self.module.parameters())
        self.model = self._parallel(groups)
        self._draw = torch.Generator().manual_seed(seed * 1000 + dist.get_rank())
        self.losses: list[float] = []
        self.agreements = 0  # the same on all ranks
        self.lines: list[dict[str, Any]] = []  # of the run log, on rank 0 alone
        self.waits: list[Wait] = []  # of scant's sides, a step each
        self.silent = [0, 0]  # the sums of silent_parts()
        self._seen: Any = None  # the last report that was looked at

    def _parallel(self, groups: dict[str, Any]) -> Any:
        """The module as this side trains it."""
        spec = self.spec
        if spec.kind == "alone":
            return self.module
        if spec.kind in ("pinned", "auto"):
            import scant.torch

            options: dict[str, Any] = {"plan": AUTO if spec.kind == "auto" else spec.name}
            options["step_in_forward"] = spec.name == IN_FORWARD
            options |= self._more
            return scant.torch.wrap(self.module, self._optimizer, group=groups["scant"], **options)
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
        from torch.nn.parallel import DistributedDataParallel

        group = groups[spec.backend]
        model = DistributedDataParallel(
            self.module,
            process_group=group,
            bucket_cap_mb=spec.bucket_mb,
            gradient_as_bucket_view=True,  # spares a copy of all gradients
        )
        if spec.hook == "fp16":
            model.register_comm_hook(group, default_hooks.fp16_compress_hook)
        elif spec.hook == "powersgd":
            state = powerSGD_hook.PowerSGDState(
                group,
                matrix_approximation_rank=spec.rank,
                start_powerSGD_iter=POWERSGD_BEGINS,
                use_error_feedback=True,
                warm_start=True,
            )
            model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        return model

    @property
    def ours(self) -> bool:
        return self.spec.kind in ("pinned", "auto")

    def step(self) -> None:
        """One step; its loss is of this rank, before the step."""
        loss = self._task.loss(self.model, self._draw)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.losses.append(float(loss.detach()))
        report = self.model.last_step if self.ours else None
        if (
            report is not None and report is not self._seen
        ):  # in forward a step's own comes with the next step
            self._seen = report
            self._look(report)

    def settle(self) -> None:
        """All steps are over: what would travel into the next forward is waited for."""
        if self.ours:
            self.model.settle()

    def _look(self, report: dict[str, Any]) -> None:
        """Keeps what scant says of the step."""
        self.waits.append(wait_of(report))
        self.silent = [a + b for a, b in zip(self.silent, silent_parts(report), strict=True)]
        if "agreement" in report:
            self.agreements += 1
            number = len(self.losses)
            self.lines += [{**line, "step": number} for line in report["agreement"]]

    def parameters(self) -> torch.Tensor:
        """A copy of all, as one vector."""
        self.settle()
        return torch.nn.utils.parameters_to_vector(self.module.parameters()).detach()

    def held_out_loss(self, parameters: torch.Tensor) -> float:
        """Of the model with these parameters, which it has from now on."""
        torch.nn.utils.vector_to_parameters(parameters, self.module.parameters())
        return self._task.held_out_loss(self.module)

    def close(self) -> None:
        """Gives back what the wrapped model holds."""
        if self.ours:
            self.model.close()
