"""A model's gradients in one arena, and the averager that works on it, for wrap() and ddp_hook."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from scant import _scant
from scant.errors import InvalidArgument, Unsupported
from scant.torch.backend.process_group import ProcessGroup
from scant.torch.gradient.not_finite import NotFinite
from scant.torch.gradient.same_model import hash_of
from scant.torch.gradient.watching import Watching
from scant.torch.gradient.wrap_options import WrapOptions, plan_from

__all__ = ["Averaging", "check_device", "process_group_of"]


class Averaging:
    """Every rank of the group makes it alike, with the parameters in backward's order."""

    def __init__(
        self, parameters: Sequence[torch.Tensor], names: list[str], options: WrapOptions, group: Any
    ) -> None:
        device = parameters[0].device
        check_device(device)
        shapes = [_matrix(parameter) for parameter in parameters]
        self.layout = _scant.GradientLayout(shapes, dist.get_world_size(group))
        self.arena = torch.zeros(
            self.layout.arena_elements,
            dtype=torch.float32,
            device="cpu",
            pin_memory=device.type == "cuda",
        )
        self.views = [
            _view_like(parameter, self.arena, offset)
            for offset, parameter in zip(self.layout.offsets, parameters, strict=True)
        ]
        process_group = process_group_of(group)
        key = f"wrap of {process_group.group_id}"  # the communicator counts equal ones
        native = {
            "key": key,
            "members": process_group.members,
            "names": names,
            "residual": options.residual,
            "decay": options.residual_decay,
            "seed": options.seed,
            "workers": options.workers,
            "missing_as_zeros": options.unused == "zeros",
            "timeout_s": process_group.timeout_of(None),
        }
        self.averager = _scant.Averager(
            process_group.native(), self.layout, self.arena.data_ptr(), native, self.arena
        )
        self._not_finite = NotFinite(options.nonfinite, names, process_group, f"{key}.finite")
        self._check_every = options.check_every
        self._watching = _watching(options, self.layout, group)
        self.set_plan(options)

    def set_plan(self, options: WrapOptions) -> None:
        """The plan of the options from the next step on, on all ranks alike."""
        pinned = None if options.automatic else plan_from(options, self.layout)
        self.averager.start_auto_plan(options.fidelity_min, pinned)

    def put(self, index: int, gradient: torch.Tensor) -> None:
        """A gradient is there."""
        view = self.views[index]
        if gradient.data_ptr() != view.data_ptr():
            view.copy_(gradient)
        self.averager.ready(index)

    def finish(self, parameters: Iterable[torch.Tensor], steps: int, samples: int) -> None:
        """No more gradients come in this step, of so many; they are of so many samples. Now and
        then the ranks compare these parameters."""
        checked = self._check_every > 0 and steps % self._check_every == 0
        self.averager.finish(hash_of(parameters) if checked else 0, samples)

    def wait(self) -> dict[str, Any]:
        """The report of the step, after ``finish``; the averages lie in the views."""
        report = self.averager.wait()
        self._watching.step(report)
        self._not_finite.check(report)
        return report

    def close(self) -> None:
        """Ends what is under way."""
        self.averager.close()
        self._not_finite.close()
        self._watching.close()


def check_device(device: torch.device) -> None:
    """Whether gradients there can be averaged."""
    if device.type not in ("cpu", "cuda"):
        raise Unsupported(f"wrap: parameters on {device}; CPU and CUDA are supported")


def _watching(options: WrapOptions, layout: _scant.GradientLayout, group: Any) -> Watching:
    """What rank 0 cannot open ends wrap() on all ranks, not on rank 0 alone."""
    watching, problem = None, [""]
    try:
        watching = Watching(options, layout, group)
    except Exception as error:
        problem = [str(error)]
    dist.broadcast_object_list(problem, dist.get_global_rank(group, 0), group=group)
    if problem[0] or watching is None:
        raise InvalidArgument(f"rank 0: {problem[0]}")
    return watching


def process_group_of(group: Any) -> ProcessGroup:
    """Scant's own object behind a group of torch."""
    if isinstance(group, ProcessGroup):
        return group
    with contextlib.suppress(RuntimeError):
        backend = group._get_backend(torch.device("cpu"))
        if isinstance(backend, ProcessGroup):
            return backend
    raise InvalidArgument(f"the group must be of the backend 'scant', got {type(group).__name__}")


def _view_like(parameter: torch.Tensor, arena: torch.Tensor, offset: int) -> torch.Tensor:
    """The parameter's place in the arena, with the parameter's strides if they leave no gaps:
    fused optimizers take equal strides of both for granted."""
    strides = torch.empty_like(parameter, device="meta").stride()
    return arena.as_strided(parameter.shape, strides, offset)


def _matrix(parameter: torch.Tensor) -> tuple[int, int]:
    """Rows and columns as the codec sees them: the first dimension counts rows."""
    if parameter.dim() < 2:
        return 1, parameter.numel()
    return parameter.shape[0], parameter.numel() // max(1, parameter.shape[0])
