"""Trainings whose computing is replayed: it waits as long as recorded layers took.

A host whose model runs on an accelerator has idle cores while backward goes on. Here a forward, a
backward and an optimizer sleep until the moments of a recording, and backward hands out recorded
gradients, so a machine with few cores shows the step times of such a host. Parameters take plain
steps along the averages, to be compared between ranks and ways; they learn nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from train_tasks import Task

MADE = "made"
MADE_TENSORS, MADE_SHAPE = 16, (400, 500)
MADE_FORWARD_S, MADE_BACKWARD_S, MADE_OPTIMIZER_S = 0.106, 0.212, 0.003
GRADIENTS = 4  # steps whose gradients are handed out in turn
WARM_UP = 2  # steps of a recorded model that are not recorded
RATE = 1e-3  # of the plain steps
PROBE_EVERY = 4096  # elements of a parameter that make up the loss
# A host gives an accelerator its work ahead of time: what delays it by less delays no work.
LAUNCHED_AHEAD_S = 0.002


class Timeline:
    """What an accelerator is busy with: work follows work, and a host that comes late finds it
    done. Waiting takes no core and not Python's lock."""

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._now, self._sleep = now, sleep
        self._end = now()

    def begin(self) -> None:
        """What comes next begins now, or when all before is done; there too where the host is
        hardly late."""
        if self._now() > self._end + LAUNCHED_AHEAD_S:
            self._end = self._now()

    def run(self, seconds: float) -> None:
        """Waits for the end of so much more work."""
        self._end += seconds
        while (left := self._end - self._now()) > 0:
            self._sleep(left)


@dataclasses.dataclass(frozen=True)
class Recording:
    """The moments of one step, and gradients. Layers in the order in which forward reaches them,
    each with one parameter; backward goes the other way."""

    names: Sequence[str]
    forward_s: Sequence[float]  # of each layer
    backward_s: Sequence[float]  # of each layer, until its gradient is there
    after_s: float  # of backward, beyond the last gradient
    optimizer_s: float
    gradients: Sequence[Sequence[torch.Tensor]]  # of each step and layer

    @property
    def shapes(self) -> list[torch.Size]:
        return [one.shape for one in self.gradients[0]]

    @property
    def elements(self) -> int:
        return sum(one.numel() for one in self.gradients[0])

    def at_times_of(self, other: Recording) -> Recording:
        """These gradients by another's schedule."""
        return dataclasses.replace(other, gradients=self.gradients)


def made(quick: bool, seed: int, rank: int) -> Recording:
    """3.2 million elements in 16 tensors, 321 ms a step. The gradients are Gaussian, independent
    between steps and ranks: no model's are harder to compress."""
    tensors, shape, factor = (4, (40, 50), 0.05) if quick else (MADE_TENSORS, MADE_SHAPE, 1.0)
    draw = torch.Generator().manual_seed(seed * 1000 + rank)
    return Recording(
        names=[f"layer_{i}" for i in range(tensors)],
        forward_s=[factor * MADE_FORWARD_S / tensors] * tensors,
        backward_s=[factor * MADE_BACKWARD_S / tensors] * tensors,
        after_s=0.0,
        optimizer_s=factor * MADE_OPTIMIZER_S,
        gradients=[
            [torch.randn(shape, generator=draw) for _ in range(tensors)] for _ in range(GRADIENTS)
        ],
    )


# ---- recording ------------------------------------------------------------------------------


@dataclasses.dataclass
class _Step:
    """One recorded step. Moments are seconds since the beginning of forward, or of backward."""

    reached: dict[str, float]
    forward_s: float
    ready: dict[str, float]
    backward_s: float
    optimizer_s: float
    gradients: dict[str, torch.Tensor]


def record(task: Task, seed: int, rank: int) -> Recording:
    """Trains the model alone for a few steps. The other ranks should have nothing to do
    meanwhile."""
    torch.manual_seed(seed)
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    draw = torch.Generator().manual_seed(seed * 1000 + rank)
    steps = [_record_step(task, model, optimizer, draw) for _ in range(WARM_UP + GRADIENTS)]
    return _recording(steps[WARM_UP:])


def _record_step(
    task: Task,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    draw: torch.Generator,
) -> _Step:
    reached: dict[str, float] = {}
    ready: dict[str, float] = {}
    hooks: list[Any] = []
    began = time.monotonic()

    def arrives(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            ready[name] = time.monotonic() - began

        return hook

    def enters(names: Sequence[str]) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            for name in names:
                reached.setdefault(name, time.monotonic() - began)

        return hook

    for name, parameter in model.named_parameters():
        untyped: Any = parameter
        hooks.append(untyped.register_post_accumulate_grad_hook(arrives(name)))
    for prefix, module in model.named_modules():
        own = [f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
        if own:
            hooks.append(module.register_forward_pre_hook(enters(own)))
    began = time.monotonic()
    loss = task.loss(model, draw)
    forward_s = time.monotonic() - began
    optimizer.zero_grad(set_to_none=True)
    began = time.monotonic()
    loss.backward()  # type: ignore[no-untyped-call]
    backward_s = time.monotonic() - began
    gradients = {
        name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None
    }
    began = time.monotonic()
    optimizer.step()
    optimizer_s = time.monotonic() - began
    for hook in hooks:
        hook.remove()
    return _Step(reached, forward_s, ready, backward_s, optimizer_s, gradients)


def _recording(steps: Sequence[_Step]) -> Recording:
    def middle(values: Iterable[float]) -> float:
        return statistics.median(values)

    ready = {name: middle(one.ready[name] for one in steps) for name in steps[0].ready}
    names = sorted(ready, key=lambda name: -ready[name])  # what is ready last is reached first
    # A parameter whose module is not called itself is reached with what comes before it.
    reached = [middle(one.reached.get(name, 0.0) for one in steps) for name in names]
    begins = list(itertools.accumulate([0.0, *reached[1:]], max))
    forward_s = middle(one.forward_s for one in steps)
    ends = [*begins[1:], max(forward_s, begins[-1])]
    arrivals = [ready[name] for name in reversed(names)]
    gaps = [b - a for a, b in itertools.pairwise([0.0, *arrivals])]
    return Recording(
        names=[name.replace(".", "/") for name in names],
        forward_s=[end - begin for begin, end in zip(begins, ends, strict=True)],
        backward_s=gaps[::-1],
        after_s=max(0.0, middle(one.backward_s for one in steps) - arrivals[-1]),
        optimizer_s=middle(one.optimizer_s for one in steps),
        gradients=[[one.gradients[name] for name in names] for one in steps],
    )


# ---- replaying ------------------------------------------------------------------------------


class _Layers(torch.autograd.Function):
    """One layer: both directions wait, and backward hands the gradient out."""

    @staticmethod
    def forward(
        ctx: Any,
        token: torch.Tensor,
        parameter: torch.Tensor,
        layer: Layer,
        gradient: torch.Tensor,
    ) -> torch.Tensor:
        ctx.layer, ctx.gradient = layer, gradient
        layer.timeline.begin()
        layer.timeline.run(layer.forward_s)
        return token + parameter.detach().flatten()[::PROBE_EVERY].abs().sum()

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[Any, ...]:
        ctx.layer.timeline.run(ctx.layer.backward_s)
        return outputs[0], ctx.gradient, None, None


_work: Callable[..., torch.Tensor] = _Layers.apply


class Layer(torch.nn.Module):
    """A module of its own, so that a step in the next forward waits for it alone."""

    def __init__(self, shape: torch.Size, timeline: Timeline, forward_s: float, backward_s: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(shape))
        self.timeline, self.forward_s, self.backward_s = timeline, forward_s, backward_s

    def forward(self, token: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return _work(token, self.weight, self, gradient)


class _Ends(torch.autograd.Function):
    """Where backward begins (with the loss) or ends: it waits for what comes there."""

    @staticmethod
    def forward(ctx: Any, token: torch.Tensor, at: Callable[[], None]) -> torch.Tensor:
        ctx.at = at
        return token.view_as(token)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[Any, ...]:
        ctx.at()
        return outputs[0], None


_end: Callable[..., torch.Tensor] = _Ends.apply


class Replayed(torch.nn.Module):
    """A model that takes the recorded time. What it gives is a loss of its parameters: equal where
    the averages were equal."""

    def __init__(self, recording: Recording, timeline: Timeline):
        super().__init__()
        self._recording, self._timeline = recording, timeline
        self._steps = 0
        times = zip(recording.shapes, recording.forward_s, recording.backward_s, strict=True)
        self.layers = torch.nn.ModuleDict(
            {
                name: Layer(shape, timeline, forward_s, backward_s)
                for name, (shape, forward_s, backward_s) in zip(recording.names, times, strict=True)
            }
        )

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        gradients = self._recording.gradients[self._steps % len(self._recording.gradients)]
        self._steps += 1
        token = _end(token, self._after)
        for layer, gradient in zip(self.layers.values(), gradients, strict=True):
            token = layer(token, gradient)
        return _end(token, self._timeline.begin)

    def _after(self) -> None:
        self._timeline.run(self._recording.after_s)


class PlainStep(torch.optim.Optimizer):
    """Steps along the gradients, and waits for as much of the recorded time as the elements that
    have one take."""

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], recording: Recording, timeline: Timeline
    ):
        super().__init__(parameters, {"lr": RATE})
        self._element_s = recording.optimizer_s / recording.elements
        self._timeline = timeline

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        self._timeline.begin()
        elements = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])
                    elements += parameter.numel()
        self._timeline.run(self._element_s * elements)


class ReplayTask:
    """A recording as a thing to train. Everything of one process waits on one timeline."""

    def __init__(self, recording: Recording, timeline: Timeline | None = None) -> None:
        self._recording = recording
        self._timeline = timeline or Timeline()

    def model(self) -> torch.nn.Module:
        return Replayed(self._recording, self._timeline)

    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return PlainStep(parameters, self._recording, self._timeline)

    def loss(self, model: torch.nn.Module, draw: torch.Generator) -> torch.Tensor:
        out: torch.Tensor = model(torch.zeros((), requires_grad=True))
        return out

    def held_out_loss(self, model: torch.nn.Module) -> float:
        raise NotImplementedError("a replayed training learns nothing")
