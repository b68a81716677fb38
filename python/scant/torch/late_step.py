"""The optimizer's step within the next forward: a parameter is stepped when forward reaches it, so
that gradients travel on meanwhile. ``docs/gradients.md``, "The step in the next forward".
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from scant import _scant
from scant.errors import InvalidArgument, Unsupported
from scant.torch.compiler import not_compiled

__all__ = ["LateStep", "Travelling"]


class Travelling(torch.Tensor):
    """What stands in ``grad`` while the average is on its way: whoever touches it is told so."""

    @staticmethod
    def __new__(cls, like: torch.Tensor) -> Travelling:
        make: Any = torch.Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
        made: Travelling = make(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=like.device
        )
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise InvalidArgument(
            f"{func}: with step_in_forward=True gradients still travel after backward(); call "
            "settle() of the wrapped model first to read, clip or unscale them"
        )


class LateStep:
    """Of one wrapped model: what travels, what is to be stepped, and where forward needs it.

    Args:
        module: the model itself.
        parameters: its parameters, in the order of the averager's tensors.
        optimizer: its ``step`` is replaced until close().
        averager: what the gradients were given to.
        hand_over: the average of so-manieth parameter becomes its ``grad``.
        end_step: waits until the averager's step is over; which parameters have an average.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        parameters: Sequence[torch.Tensor],
        optimizer: torch.optim.Optimizer,
        averager: _scant.Averager,
        hand_over: Callable[[int], None],
        end_step: Callable[[], Sequence[bool]],
    ) -> None:
        self._module = module
        self._parameters = parameters
        self._optimizer = optimizer
        self._averager = averager
        self._hand_over = hand_over
        self._end_step = end_step
        self._closed = False
        self._travels = False  # a step of the averager is open
        self._stepped = False  # step() was called for it
        self._sent: list[bool] = [False] * len(parameters)  # this rank had a gradient
        self._pending: set[int] = set()  # not stepped yet
        self._given: list[dict[str, Any]] = []  # the groups' settings when step() was called
        self._others: list[tuple[torch.Tensor, torch.Tensor]] = []  # gradients that are not ours
        self._whole = False  # the optimizer counts its calls: all parameters in one
        self._uses = _Uses({id(one): index for index, one in enumerate(parameters)})
        self._needs: dict[int, list[int]] | None = None  # by module
        self._original: Any = optimizer.step
        self._restored: Any = vars(optimizer).get("step")
        self._step_of_ours = self._replace_step()
        self._hooks = self._hook_modules()
        self._hooks.append(optimizer.register_state_dict_pre_hook(self._weak_settle()))
        self._hooks.append(optimizer.register_load_state_dict_pre_hook(self._weak_settle()))

    # -- the wrapped model calls ----------------------------------------------------------------

    def begin(self, sent: Sequence[bool]) -> None:
        """Backward is over: the gradients of these travel now."""
        self._travels, self._stepped = True, False
        self._sent = list(sent)
        for index, parameter in enumerate(self._parameters):
            if sent[index]:
                parameter.grad = Travelling(parameter)

    def settle(self) -> None:
        """Waits for what travels; what step() was called for is stepped, the rest handed over."""
        if not self._travels:
            return
        self._travels = False
        present = self._end_step()
        if self._stepped:
            pending, self._pending = sorted(self._pending), set()
            self._step([index for index in pending if present[index]])
            return
        for index, parameter in enumerate(self._parameters):
            if self._sent[index]:
                # A gradient that was taken away meanwhile is not wanted.
                if isinstance(parameter.grad, Travelling):
                    parameter.grad = None
                    self._hand_over(index)
            elif present[index]:
                self._hand_over(index)

    def close(self) -> None:
        """The optimizer and the model are as they were."""
        self._closed = True
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if vars(self._optimizer).get("step") is self._step_of_ours:  # no scheduler's
            del self._optimizer.step  # type: ignore[method-assign]
            if self._restored is not None:
                self._optimizer.step = self._restored  # type: ignore[method-assign]

    # -- the optimizer --------------------------------------------------------------------------

    def _replace_step(self) -> Any:
        """``optimizer.step`` becomes ours. Bound, since schedulers look for ``__func__``."""
        this = weakref.ref(self)
        original = self._original

        def step(optimizer: torch.optim.Optimizer, *more: Any, **by_name: Any) -> Any:
            late = this()
            if late is None or late._closed or not late._travels or late._stepped:
                return original(*more, **by_name)
            if more or by_name:
                raise Unsupported("step_in_forward: step() takes no closure; call settle() before")
            optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers ask
            late._told_to_step()
            return None

        bound = types.MethodType(step, self._optimizer)
        self._optimizer.step = bound  # type: ignore[method-assign]
        return bound

    def _told_to_step(self) -> None:
        """Remembers what is to be stepped, and with which settings."""
        parameters = list(enumerate(self._parameters))
        if any(one.grad is not None and not self._sent[index] for index, one in parameters):
            self.settle()  # an earlier gradient, or the average: the end of the step tells
            self._original()
            return
        self._pending = {
            index
            for index, one in parameters
            if isinstance(one.grad, Travelling) or not self._sent[index]
        }
        self._stepped = True
        self._given = [_settings(group) for group in self._optimizer.param_groups]
        self._others = []
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if not isinstance(parameter.grad, Travelling):
                    self._others.append((parameter, parameter.grad))
                parameter.grad = None

    @torch.no_grad()
    def _step(self, tensors: Sequence[int]) -> None:
        """The optimizer's own step, with gradients for these parameters alone, and with the
        settings that it had when step() was called."""
        if not tensors and not self._others:
            return
        for index in tensors:
            self._hand_over(index)
        for parameter, gradient in self._others:
            parameter.grad = gradient
        groups = self._optimizer.param_groups
        now = [_settings(group) for group in groups]
        for group, given in zip(groups, self._given, strict=True):
            group.update(given)
        try:
            with torch.autocast(self._parameters[0].device.type, enabled=False):
                self._original()
        finally:
            for group, given, later in zip(groups, self._given, now, strict=True):
                own = {name for name in given if not _same(group[name], given[name])}
                self._whole = self._whole or bool(own)
                group.update({name: value for name, value in later.items() if name not in own})
        for index in tensors:
            self._parameters[index].grad = None
        for parameter, _ in self._others:
            parameter.grad = None
        self._others = []

    # -- forward --------------------------------------------------------------------------------

    def _hook_modules(self) -> list[Any]:
        """One hook before each module that may be called by itself, and one after the whole."""
        this = weakref.ref(self)

        @not_compiled
        def before(module: torch.nn.Module, _: Any) -> None:
            late = this()
            if late is not None and (late._travels or late._uses.watching):
                late._enter(module)

        @not_compiled
        def after(*_: Any) -> None:
            late = this()
            if late is not None:
                late._leave()

        compiled = _compiled_modules(self._module)
        hooks = [
            module.register_forward_pre_hook(before)
            for module in self._module.modules()
            if id(module) not in compiled
        ]
        untyped: Any = self._module
        hooks.append(untyped.register_forward_hook(after, always_call=True))
        hooks.append(untyped.register_state_dict_pre_hook(self._weak_settle()))
        return hooks

    def _weak_settle(self) -> Callable[..., None]:
        this = weakref.ref(self)

        def settle(*_: Any) -> None:
            late = this()
            if late is not None:
                late.settle()

        return settle

    def _enter(self, module: torch.nn.Module) -> None:
        """Forward reaches a module."""
        self._uses.entered = id(module)
        if not self._travels:
            return
        if module is self._module and self._needs_everything():
            with torch.inference_mode(False):
                self.settle()
            if self._needs is None and torch.is_grad_enabled():
                self._uses.watch()
            return
        tensors = (self._needs or {}).get(id(module))
        if not tensors or not self._stepped:
            return
        if not all(self._sent[index] for index in tensors):
            self.settle()  # only the end of the step tells whether these have an average
            return
        if not self._averager.wait_for(tensors):
            self.settle()  # raises what went wrong
        if not self._pending.isdisjoint(tensors):
            here = [index for index in self._averager.arrived() if index in self._pending]
            self._pending.difference_update(here)
            self._step(here)

    def _needs_everything(self) -> bool:
        """Whether nothing may travel beyond the beginning of this forward."""
        if not self._stepped:  # the next backward would meet what travels
            return torch.is_grad_enabled()
        return self._needs is None or self._whole or torch.is_inference_mode_enabled()

    def _leave(self) -> None:
        """Forward is over, or has failed."""
        if self._uses.watching:
            self._uses.unwatch()
            self._needs = _needs_of(self._module, self._parameters, self._uses.first)
        if self._stepped:
            self.settle()


class _Uses(TorchFunctionMode):
    """Which module was entered last when a parameter was first used: what uses it without entering
    its own module (attention reads its projection's weight) is seen here."""

    def __init__(self, places: dict[int, int]) -> None:
        super().__init__()
        self.entered = 0
        self.first: dict[int, int] = {}  # by parameter: id of a module
        self.watching = False
        self._places = places

    def watch(self) -> None:
        self.watching = True
        self.__enter__()

    def unwatch(self) -> None:
        self.watching = False
        self.__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs))
        return func(*args, **(kwargs or {}))

    def _note(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            place = self._places.get(id(value))
            if place is not None:
                self.first.setdefault(place, self.entered)
        elif isinstance(value, list | tuple):
            for one in value:
                self._note(one)
        elif isinstance(value, dict):
            for one in value.values():
                self._note(one)


def _needs_of(
    module: torch.nn.Module, parameters: Sequence[torch.Tensor], first: dict[int, int]
) -> dict[int, list[int]]:
    """What must be stepped before a module runs: its own parameters, and those that were seen to be
    used after it was entered, before another was."""
    places = {id(one): index for index, one in enumerate(parameters)}
    compiled = _compiled_modules(module)
    needs: dict[int, set[int]] = {}
    for one in module.modules():
        if id(one) in compiled:
            continue
        inside = any(id(child) in compiled for child in one.children())
        own = one.parameters(recurse=inside)
        needs[id(one)] = {places[id(parameter)] for parameter in own if id(parameter) in places}
    for place, entered in first.items():
        if entered in needs:
            needs[entered].add(place)
    return {one: sorted(tensors) for one, tensors in needs.items() if tensors}


def _compiled_modules(module: torch.nn.Module) -> set[int]:
    """What lies inside of a compiled module: hooks there would break its graph."""
    found: set[int] = set()
    for one in module.modules():
        if type(one).__name__ == "OptimizedModule":
            found.update(id(inner) for inner in one.modules() if inner is not one)
    return found


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """A copy, for schedulers change them in place."""
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in group.items()
        if name != "params"
    }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)
