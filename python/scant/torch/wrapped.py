"""Data-parallel training: each parameter's gradient is averaged over all ranks during backward.

``docs/gradients.md`` says what travels and when; this module ties it to autograd.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from scant import _scant
from scant.errors import InvalidArgument, Unsupported
from scant.torch.process_group import ProcessGroup
from scant.torch.same_model import broadcast_from_first, check_same, describe
from scant.torch.wrap_options import WrapOptions, plan_from

__all__ = ["Wrapped", "wrap"]

_numbers = itertools.count(1)
_WRAPPED = "_scant_wrapped"


def wrap(
    model: torch.nn.Module, options: WrapOptions | None = None, group: Any = None, **more: Any
) -> Wrapped:
    """Train ``model`` on all ranks together::

        dist.init_process_group("scant")
        model = scant.torch.wrap(model)             # instead of DistributedDataParallel(model)

    The model is used as before: ``model(x)``, ``loss.backward()``, any optimizer, clipping,
    ``GradScaler``, ``torch.compile``. After ``backward()`` each ``grad`` is the average over all
    ranks.

    Args:
        model: with the same parameters on every rank; rank 0's values are given to all.
        options: :class:`WrapOptions`; single ones may be given by name: ``wrap(model, plan="q4")``.
        group: a process group of the backend ``scant``; default: the default group, or, where
            that is of another backend, a new group of all ranks.
    """
    if options is not None and more:
        raise InvalidArgument("wrap: give options= or single options by name, not both")
    return Wrapped(model, options or WrapOptions(**more), group)


class Wrapped(torch.nn.Module):
    """A model whose gradients are averaged, made by :func:`wrap`; the model itself: ``.module``."""

    def __init__(self, model: torch.nn.Module, options: WrapOptions, group: Any) -> None:
        super().__init__()
        self._check_model(model)
        self.module = model
        self.options = options
        self.group = _scant_group(group)
        self.last_step: dict[str, Any] | None = None
        named = list(model.named_parameters())
        check_same(describe(named, options.described()), self.group)
        broadcast_from_first([*model.parameters(), *model.buffers()], self.group)
        # Backward reaches the last first.
        trained = [(name, one) for name, one in named if one.requires_grad and one.numel() > 0]
        self._names = [name for name, _ in reversed(trained)]
        self._parameters_in_order = [parameter for _, parameter in reversed(trained)]
        self._sync = True
        self._steps = 0
        self._in_backward = False
        self._fired = [False] * len(self._names)
        self._open_averager()
        self._hooks: list[Any] = []
        for index, parameter in enumerate(self._parameters_in_order):
            untyped: Any = parameter
            self._hooks.append(untyped.register_post_accumulate_grad_hook(self._hook(index)))
        setattr(model, _WRAPPED, True)

    # -- what users call ------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward."""
        if self.training and self._sync and self.options.broadcast_buffers and self._has_buffers:
            broadcast_from_first(self.module.buffers(), self.group)
        return self.module(*args, **kwargs)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, backward adds to ``grad`` on this rank alone; the next outside averages it."""
        before, self._sync = self._sync, False
        try:
            yield
        finally:
            self._sync = before

    def set_plan(self, plan: str | _scant.FusionPlan) -> None:
        """Another plan from the next step on; call it with the same on all ranks."""
        values = {**self.options.__dict__, "plan": plan}
        self._averager.set_plan(plan_from(WrapOptions(**values), self._layout))

    def scale_residuals(self, factor: float) -> None:
        """What was not sent yet, times ``factor``: the loss is scaled by that from now on."""
        self._averager.scale_residuals(factor)

    @property
    def residual_norm(self) -> float:
        """Of what this rank has not sent yet."""
        return float(self._averager.residual_energy**0.5)

    def close(self) -> None:
        """Takes the hooks off; the model goes on alone."""
        for hook in self._hooks:
            hook.remove()
        self._averager.close()
        if hasattr(self.module, _WRAPPED):
            delattr(self.module, _WRAPPED)

    def get_extra_state(self) -> bytes:
        """This rank's residuals, for ``state_dict``. Every rank saves its own."""
        return self._averager.save()

    def set_extra_state(self, state: bytes) -> None:
        """Of another number of ranks too: what this rank kept is carried on."""
        self._averager.restore(state)

    # -- inside ---------------------------------------------------------------------------------

    @staticmethod
    def _check_model(model: torch.nn.Module) -> None:
        if not isinstance(model, torch.nn.Module):
            raise InvalidArgument(f"wrap: a torch.nn.Module is needed, got {type(model).__name__}")
        if isinstance(model, Wrapped) or hasattr(model, _WRAPPED):
            raise InvalidArgument("wrap: this model is wrapped already")
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            raise InvalidArgument(
                "wrap: the model is wrapped by DistributedDataParallel; wrap its .module instead"
            )
        for name, module in model.named_modules():
            if getattr(module, "sparse", False) and isinstance(
                module, torch.nn.Embedding | torch.nn.EmbeddingBag
            ):
                raise Unsupported(
                    f"wrap: '{name}' has sparse gradients; make it with sparse=False (zero rows "
                    "cost nothing at a density below 1)"
                )
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise InvalidArgument("wrap: no parameter of the model requires a gradient")
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not parameter.dtype.is_floating_point:
                raise Unsupported(f"wrap: '{name}' is {parameter.dtype}; real floats are averaged")
        devices = {parameter.device for parameter in trained}
        if len(devices) > 1:
            raise Unsupported(f"wrap: parameters on several devices: {sorted(map(str, devices))}")

    def _open_averager(self) -> None:
        ranks = dist.get_world_size(self.group)
        shapes = [_matrix(parameter) for parameter in self._parameters_in_order]
        self._layout = _scant.GradientLayout(shapes, ranks)
        device = self._parameters_in_order[0].device
        self._has_buffers = any(True for _ in self.module.buffers())
        self._cuda = device.type == "cuda"
        if device.type not in ("cpu", "cuda"):
            raise Unsupported(f"wrap: parameters on {device}; CPU and CUDA are supported")
        self._arena = torch.zeros(self._layout.arena_elements, pin_memory=self._cuda)
        self._views = [
            self._arena[offset : offset + parameter.numel()].view(parameter.shape)
            for offset, parameter in zip(
                self._layout.offsets, self._parameters_in_order, strict=True
            )
        ]
        process_group = _process_group(self.group)
        options = {
            "key": f"wrap {next(_numbers)} of {process_group.group_id}",
            "members": process_group.members,
            "names": self._names,
            "residual": self.options.residual,
            "decay": self.options.residual_decay,
            "seed": self.options.seed,
            "workers": self.options.workers,
            "missing_as_zeros": self.options.unused == "zeros",
            "timeout_s": process_group.timeout_of(None),
        }
        native = process_group.native()
        self._averager = _scant.Averager(
            native, self._layout, self._arena.data_ptr(), options, self._arena
        )
        self._averager.set_plan(plan_from(self.options, self._layout))

    def _hook(self, index: int) -> Any:
        def hook(parameter: torch.Tensor) -> None:
            if self._sync:
                self._gradient(index, parameter)

        return hook

    def _gradient(self, index: int, parameter: torch.Tensor) -> None:
        """A parameter's gradient is there."""
        gradient = parameter.grad
        assert gradient is not None
        if not self._in_backward:
            self._in_backward = True
            self._fired = [False] * len(self._names)
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._end_of_backward)
        if gradient.layout is not torch.strided:
            raise Unsupported(f"'{self._names[index]}' has a sparse gradient")
        view = self._views[index]
        if gradient.data_ptr() != view.data_ptr():
            view.copy_(gradient)
        self._fired[index] = True
        self._averager.ready(index)

    def _end_of_backward(self) -> None:
        """Backward is over: waits for what is still under way, and hands the averages over."""
        self._in_backward = False
        self._steps += 1
        every = self.options.check_every
        checked = every > 0 and self._steps % every == 0
        self._averager.finish(self._hash_of_parameters() if checked else 0)
        report = self._averager.wait()
        self.last_step = report
        for index, parameter in enumerate(self._parameters_in_order):
            if report["present"][index]:
                self._hand_over(parameter, self._views[index])

    @staticmethod
    def _hand_over(parameter: torch.Tensor, view: torch.Tensor) -> None:
        gradient = parameter.grad
        if gradient is not None and gradient.data_ptr() == view.data_ptr():
            return
        if parameter.dtype == view.dtype and parameter.device == view.device:
            parameter.grad = view
        elif gradient is not None:
            gradient.copy_(view)
        else:
            parameter.grad = view.to(dtype=parameter.dtype, device=parameter.device)

    def _hash_of_parameters(self) -> int:
        """A hash of all parameters' bits, never 0."""
        crc = 0
        for parameter in self.module.parameters():
            values = parameter.detach().cpu().contiguous()
            crc = _scant.crc32c(values.data_ptr(), values.nbytes, crc)
        return crc + 1


def _matrix(parameter: torch.Tensor) -> tuple[int, int]:
    """Rows and columns as the codec sees them: the first dimension counts rows."""
    if parameter.dim() < 2:
        return 1, parameter.numel()
    return parameter.shape[0], parameter.numel() // max(1, parameter.shape[0])


def _scant_group(group: Any) -> Any:
    """The given group, the default one, or a new one beside another backend's."""
    if not dist.is_initialized():
        raise InvalidArgument('wrap: call dist.init_process_group("scant") first')
    chosen = group if group is not None else dist.group.WORLD
    try:
        _process_group(chosen)
    except InvalidArgument:
        if group is not None:
            raise
        return dist.new_group(backend="scant")
    return chosen


def _process_group(group: Any) -> ProcessGroup:
    """Scant's own object behind a group of torch."""
    if isinstance(group, ProcessGroup):
        return group
    with contextlib.suppress(RuntimeError):
        backend = group._get_backend(torch.device("cpu"))
        if isinstance(backend, ProcessGroup):
            return backend
    raise InvalidArgument(
        f"wrap: the group must be of the backend 'scant', got {type(group).__name__}"
    )
