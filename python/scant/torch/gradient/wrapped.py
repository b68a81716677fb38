"""Data-parallel training: each parameter's gradient is averaged over all ranks during backward.

``docs/gradients.md`` says what travels and when; this module ties it to autograd.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from scant import _scant
from scant.errors import Closed, Error, InvalidArgument, Unsupported
from scant.torch.gradient.averaging import Averaging, check_device, process_group_of
from scant.torch.gradient.late_step import LateStep, check_steps_all
from scant.torch.gradient.same_model import Row, agreed, broadcast_from_first, describe
from scant.torch.gradient.samples import Samples
from scant.torch.gradient.unreached import Unreached
from scant.torch.gradient.wrap_options import WrapOptions, given, with_plan

__all__ = ["Wrapped", "check_optimizer", "wrap"]

_LINK = "_scant_link"
_LOOK_EVERY = 16  # steps between looks at whether the model has other parameters


class _Link:
    """What a wrapped model keeps its :class:`Wrapped` alive by; its copies are not wrapped."""

    def __init__(self, wrapped: Wrapped) -> None:
        self.wrapped = wrapped

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def wrap(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    options: WrapOptions | None = None,
    group: Any = None,
    **more: Any,
) -> Wrapped:
    """Train ``model`` on all ranks together::

        dist.init_process_group("scant")
        model = scant.torch.wrap(model)             # instead of DistributedDataParallel(model)

    The model is used as before: ``model(x)``, ``loss.backward()``, any optimizer, clipping,
    ``GradScaler``, ``torch.compile``. After ``backward()`` each ``grad`` is the average over all
    ranks.

    Args:
        model: with the same parameters on every rank; rank 0's values are given to all.
        optimizer: if given, it is made sure that it steps this model's parameters; with
            ``step_in_forward=True`` it does so within the next forward.
        options: :class:`WrapOptions`; single ones may be given by name: ``wrap(model, plan="q4")``.
        group: a process group of the backend ``scant``; default: the default group, or, where
            that is of another backend, a new group of all ranks.
    """

    def look() -> tuple[WrapOptions, list[Row]]:
        chosen = _checked(model, optimizer, options, more)
        return chosen, describe(model.named_parameters(), chosen.described())

    chosen, its_group = agreed(look, lambda: _scant_group(group))
    return Wrapped(model, chosen, its_group, optimizer)


class Wrapped(torch.nn.Module):
    """A model whose gradients are averaged; the model itself: ``.module``. :func:`wrap` makes it,
    once it has checked on all ranks what it was given."""

    def __init__(
        self,
        model: torch.nn.Module,
        options: WrapOptions,
        group: Any,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        super().__init__()
        self._late: LateStep | None = None
        self.module = model
        self.options = options
        self.group = group
        self.last_step: dict[str, Any] | None = None
        broadcast_from_first([*model.parameters(), *model.buffers()], self.group)
        # Backward reaches the last first.
        trained = [(name, one) for name, one in model.named_parameters() if _is_trained(one)]
        self._names = [name for name, _ in reversed(trained)]
        self._parameters_in_order = [parameter for _, parameter in reversed(trained)]
        self._ids = {id(parameter) for parameter in self._parameters_in_order}
        self._sync = True
        self._check_due = True
        self._steps = 0
        self._samples = Samples()
        self._waited = True
        self._in_backward = False
        self._fired = [False] * len(self._names)
        self._unsent = [False] * len(self._names)  # no_sync gave a gradient since the last average
        self._has_buffers = options.broadcast_buffers and any(True for _ in model.buffers())
        self._averaging = Averaging(self._parameters_in_order, self._names, options, self.group)
        self._averager = self._averaging.averager
        self._views = self._averaging.views
        self._unreached = self._unreached_here()
        self._hooks: list[Any] = []
        for index, parameter in enumerate(self._parameters_in_order):
            untyped: Any = parameter
            self._hooks.append(untyped.register_post_accumulate_grad_hook(self._hook(index)))
        if options.step_in_forward:
            assert optimizer is not None
            self._late = self._late_step(optimizer)
        setattr(model, _LINK, _Link(self))

    # -- what users call ------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward."""
        if not self._hooks:  # closed
            return self.module(*args, **kwargs)
        gradients = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if gradients:
            self._check_still_the_same()
        if self.training and self._sync and self._has_buffers:
            broadcast_from_first(self.module.buffers(), self.group)
        result = self.module(*args, **kwargs)
        if gradients:
            self._samples.forward(args, kwargs)
        if gradients and self._sync:
            self._unreached.forward()
        return result

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, backward adds to ``grad`` on this rank alone; the next outside averages it."""
        before, self._sync = self._sync, False
        try:
            yield
        finally:
            self._sync = before

    def samples(self, count: int) -> None:
        """So many samples more are in the gradients of this rank's next average. Without it, the
        rows of the first tensor that each forward got since the last average, with gradients
        enabled, are counted. ``last_step["samples"]`` is the sum over all ranks."""
        self._samples.say(count)

    def settle(self) -> None:
        """With ``step_in_forward``: waits for what still travels. After ``optimizer.step()`` the
        parameters are stepped then, before it their averages are in ``grad``, to be clipped, say.
        Forward, ``parameters()``, saving and loading do so by themselves.

        With ``unused="zeros"``, to be called after a backward that may reach no parameter on some
        rank: there it takes part in the average."""
        may_lack = self.options.unused == "zeros" or any(self._unsent)
        if may_lack and self._unreached.missing():
            self._step_without_gradients()()
        self._settle_late()

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        """After settle(): nobody gets at parameters that are still to be stepped."""
        self._settle_late()
        return super().named_parameters(*args, **kwargs)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The model's own."""
        self.module.zero_grad(set_to_none)

    def set_plan(self, plan: str | _scant.FusionPlan) -> None:
        """Another plan from the next step on; call it with the same on all ranks."""
        self._settle_late()
        self._averaging.set_plan(with_plan(self.options, plan))

    def scale_residuals(self, factor: float) -> None:
        """What was not sent yet, times ``factor``: the loss is scaled by that from now on."""
        self._settle_late()
        self._averager.scale_residuals(factor)

    @property
    def residual_norm(self) -> float:
        """Of what this rank has not sent yet."""
        return float(self._averager.residual_energy**0.5)

    def close(self) -> None:
        """Takes the hooks off; the model goes on alone."""
        if self._late is not None:
            with contextlib.suppress(Error):  # what travels may not come any more
                self._late.settle()
            self._late.close()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._averaging.close()
        if hasattr(self.module, _LINK):
            delattr(self.module, _LINK)

    def get_extra_state(self) -> bytes:
        """This rank's residuals, for ``state_dict``. Every rank saves its own."""
        self._settle_late()
        return self._averager.save()

    def set_extra_state(self, state: bytes) -> None:
        """Of another number of ranks too: what this rank kept is carried on."""
        self._settle_late()
        self._averager.restore(state)

    def __getstate__(self) -> NoReturn:
        raise InvalidArgument("a wrapped model has no copies; copy or pickle model.module instead")

    # -- inside ---------------------------------------------------------------------------------

    def _settle_late(self) -> None:
        if self._late is not None:
            self._late.settle()

    def _load_from_state_dict(self, state: Any, prefix: str, *more: Any) -> None:
        """A checkpoint of DistributedDataParallel has the same names, but no residuals."""
        super()._load_from_state_dict(state, prefix, *more)
        missing = more[2]
        with contextlib.suppress(ValueError):
            missing.remove(prefix + "_extra_state")
        self._check_due = True  # assign=True replaces parameters

    def _check_still_the_same(self) -> None:
        """What was replaced, added or unfrozen since wrap() would not be averaged."""
        if self._in_backward and torch._C._current_graph_task_id() < 0:
            self._averaging.close()  # what others wait for ends, if they had begun it
            raise Closed(
                "an exception ended the last backward, and with it the training of all ranks: "
                "close() and wrap the model again, on every rank"
            )
        if not self._check_due:
            return
        self._check_due = False
        for parameter in self.module.parameters():
            if id(parameter) not in self._ids and _is_trained(parameter):
                names = {id(one): name for name, one in self.module.named_parameters()}
                raise InvalidArgument(
                    f"'{names[id(parameter)]}' was replaced, added or unfrozen after wrap(): "
                    "call close() on every rank, and wrap the model again"
                )

    def _hook(self, index: int) -> Any:
        # A parameter that held this object would keep both alive for ever.
        this = weakref.ref(self)

        def hook(parameter: torch.Tensor) -> None:
            wrapped = this()
            if wrapped is None:
                return
            wrapped._unreached.gradient()
            if wrapped._sync:
                wrapped._gradient(index, parameter)
            else:
                wrapped._unsent[index] = True

        return hook

    def _gradient(self, index: int, parameter: torch.Tensor) -> None:
        """A parameter's gradient is there."""
        gradient = parameter.grad
        assert gradient is not None
        if gradient.layout is not torch.strided:
            raise Unsupported(f"'{self._names[index]}' has a sparse gradient")
        if gradient.requires_grad:
            raise Unsupported(
                "backward(create_graph=True): averages have no graph; use torch.autograd.grad"
            )
        if not self._in_backward:
            self._settle_late()  # of what forward did not reach
            self._drain()
            self._in_backward = True
            self._fired = [False] * len(self._names)
            _after_backward(self._end_of_backward)
        self._send(index, gradient)

    def _send(self, index: int, gradient: torch.Tensor) -> None:
        self._fired[index] = True
        self._averaging.put(index, gradient)

    @torch.no_grad()
    def _end_of_backward(self) -> None:
        """Backward is over: whatever models it went through, none waits before all are told."""
        self._in_backward = False
        self._finish()
        if self._late is not None:
            self._late.begin(self._fired)
        else:
            _after_backward(self._wait)

    def _finish(self) -> None:
        """No more gradients come in this step."""
        for index, parameter in enumerate(self._parameters_in_order):
            if not self._fired[index] and parameter.grad is not None:
                self._kept(index, parameter)
        self._unsent = [False] * len(self._names)
        self._waited = False
        self._steps += 1
        self._check_due = self._steps % _LOOK_EVERY == 0
        self._averaging.finish(self.module.parameters(), self._steps, self._samples.take())
        self._unreached.averaged()

    def _unreached_here(self) -> Unreached:
        this = weakref.ref(self)

        def take_part() -> Callable[[], None]:
            wrapped = this()
            if wrapped is None or not wrapped._hooks:
                return _nothing
            return wrapped._too_late(wrapped._step_without_gradients())

        return Unreached(self._ids, take_part)

    @torch.no_grad()
    def _step_without_gradients(self) -> Callable[[], None]:
        """Backward reached nothing here; the other ranks are told so. What is returned waits."""
        self._drain()
        self._fired = [False] * len(self._names)
        self._finish()
        return self._wait

    def _too_late(self, wait: Callable[[], None]) -> Callable[[], None]:
        """The optimizer steps already: what the user did to gradients before (clipping, unscaling)
        the others did to the average."""

        def wait_and_refuse() -> None:
            wait()  # an error on all ranks, unless zeros count
            if any((self.last_step or {})["present"]):
                raise InvalidArgument(
                    "backward reached no parameter on this rank, which took part in the average "
                    "only now, too late for what was done to gradients before this step; call "
                    "settle() of the wrapped model after backward()"
                )

        return wait_and_refuse

    def _drain(self) -> None:
        """Waits for a step that is over, if another model's error kept it from being waited for."""
        if not self._waited and self._late is None:
            with contextlib.suppress(InvalidArgument):
                self._wait()

    def _late_step(self, optimizer: torch.optim.Optimizer) -> LateStep:
        this = weakref.ref(self)

        def hand_over(index: int) -> None:
            wrapped = this()
            assert wrapped is not None
            wrapped._hand_over(wrapped._parameters_in_order[index], wrapped._views[index])

        def end_step() -> Sequence[bool]:
            wrapped = this()
            assert wrapped is not None
            wrapped.last_step = wrapped._averaging.wait()
            present: Sequence[bool] = wrapped.last_step["present"]
            return present

        return LateStep(
            self.module, self._parameters_in_order, optimizer, self._averager, hand_over, end_step
        )

    def _kept(self, index: int, parameter: torch.Tensor) -> None:
        """This backward gave no gradient, but an earlier one did: is it part of the sum?"""
        gradient = parameter.grad
        assert gradient is not None
        if self._unsent[index] or (self.options.unused == "zeros" and bool(gradient.any())):
            self._send(index, gradient)
        elif gradient.data_ptr() == self._views[index].data_ptr():
            parameter.grad = gradient.clone()  # the step writes zeros into the arena

    @torch.no_grad()
    def _wait(self) -> None:
        """Waits for what is still under way, and hands the averages over."""
        self._waited = True
        report = self._averaging.wait()
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


def _nothing() -> None:
    pass


def _checked(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None,
    options: WrapOptions | None,
    more: dict[str, Any],
) -> WrapOptions:
    """The options, once this rank has found nothing wrong by itself."""
    chosen = given("wrap", options, more)
    _check_model(model)
    if optimizer is not None:
        check_optimizer("wrap", optimizer, model)
    if chosen.step_in_forward:
        if optimizer is None:
            raise InvalidArgument(
                "wrap: step_in_forward=True needs the optimizer: wrap(model, optimizer)"
            )
        check_steps_all(optimizer, filter(_is_trained, model.parameters()))
    return chosen


def _check_model(model: torch.nn.Module) -> None:
    if not isinstance(model, torch.nn.Module):
        raise InvalidArgument(f"wrap: a torch.nn.Module is needed, got {type(model).__name__}")
    if isinstance(model, Wrapped) or getattr(model, _LINK, None) is not None:
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
    trained = [parameter for parameter in model.parameters() if _is_trained(parameter)]
    if not trained:
        raise InvalidArgument("wrap: no parameter of the model requires a gradient")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.dtype.is_floating_point:
            raise Unsupported(f"wrap: '{name}' is {parameter.dtype}; real floats are averaged")
    devices = {parameter.device for parameter in trained}
    if len(devices) > 1:
        raise Unsupported(f"wrap: parameters on several devices: {sorted(map(str, devices))}")
    check_device(trained[0].device)


def check_optimizer(who: str, optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """Refuses an optimizer of parameters that are not the model's."""
    of_model = {id(parameter) for parameter in model.parameters()}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in of_model:
                raise InvalidArgument(
                    f"{who}: parameter group {number} of the optimizer has a parameter of shape "
                    f"{tuple(parameter.shape)} that is not the model's"
                )


def _is_trained(parameter: torch.Tensor) -> bool:
    return parameter.requires_grad and parameter.numel() > 0


def _after_backward(callback: Any) -> None:
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(callback)


def _scant_group(group: Any) -> Any:
    """The given group, the default one, or a new one beside another backend's."""
    if not dist.is_initialized():
        raise InvalidArgument('wrap: call dist.init_process_group("scant") first')
    chosen = group if group is not None else dist.group.WORLD
    try:
        process_group_of(chosen)
    except InvalidArgument:
        if group is not None:
            raise
        return dist.new_group(backend="scant")
    return chosen
