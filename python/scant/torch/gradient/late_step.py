"""The optimizer's step within the next forward: a parameter is stepped when forward reaches it, so
that gradients travel on meanwhile. ``docs/gradients.md``, "The step in the next forward".
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from scant import _scant
from scant.errors import InvalidArgument, Unsupported
from scant.torch.backend.compiler import not_compiled
from scant.torch.gradient.unreached import is_ours

__all__ = ["LateStep", "Travelling", "check_steps_all"]


class Travelling(torch.Tensor):
    """What stands in ``grad`` while the average is on its way: who touches it is told so."""

    zeroed: bool  # to be 0 when it has come, and was stepped if it is to be

    @staticmethod
    def __new__(cls, like: torch.Tensor) -> Travelling:
        make: Any = torch.Tensor._make_wrapper_subclass
        made: Travelling = make(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=like.device
        )
        made.zeroed = False
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.ops.aten.zero_.default, torch.ops.aten._foreach_zero_.default):
            for one in args[0] if isinstance(args[0], list | tuple) else args:
                if isinstance(one, Travelling):
                    one.zeroed = True
                else:
                    one.zero_()
            return args[0]
        raise InvalidArgument(
            f"{func}: with step_in_forward=True gradients still travel after backward(); call "
            "settle() of the wrapped model first to read, clip, unscale or add to them"
        )


def check_steps_all(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor]) -> None:
    """Whether the optimizer steps all of these."""
    its = {id(one) for group in optimizer.param_groups for one in group["params"]}
    missing = sum(id(one) not in its for one in parameters)
    if missing:
        raise InvalidArgument(
            f"step_in_forward: the optimizer lacks {missing} of the model's parameters"
        )


class LateStep:
    """Of one wrapped model: what travels, what is to be stepped, and where forward needs it.

    Args:
        module: the model itself.
        parameters: its parameters, in the order of the averager's tensors.
        optimizer: of all of these; its ``step`` is replaced until close().
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
        self._whole = False  # the optimizer counts its calls: all parameters in one
        self._uses = _Uses({id(one): index for index, one in enumerate(parameters)})
        self._needs: dict[int, list[int]] | None = None  # by module
        self._original: Any = optimizer.step
        self._restored: Any = vars(optimizer).get("step")
        self._step_of_ours = self._replace_step()
        self._hooks = self._hook_modules()
        settle = _Hook(self, LateStep.settle)
        self._hooks.append(optimizer.register_state_dict_pre_hook(settle))
        self._hooks.append(optimizer.register_load_state_dict_pre_hook(settle))

    # -- the wrapped model calls ----------------------------------------------------------------

    def begin(self, sent: Sequence[bool]) -> None:
        """Backward is over: the gradients of these travel now."""
        self._travels, self._stepped = True, False
        self._sent = list(sent)
        for index, parameter in enumerate(self._parameters):
            if sent[index] or parameter.grad is None:  # others may have had one
                parameter.grad = Travelling(parameter)

    def settle(self, *_: Any) -> None:
        """Waits for what travels; what step() was called for is stepped, the rest handed over."""
        if not self._travels:
            return
        self._travels = False
        try:
            present = self._end_step()
        except Exception:
            self._drop_stand_ins()
            raise
        if self._stepped:
            pending, self._pending = sorted(self._pending), set()
            self._step([index for index in pending if present[index]])
        for index, parameter in enumerate(self._parameters):
            if not isinstance(parameter.grad, Travelling):
                continue
            if present[index] and not self._stepped:
                self._put_back(index, self._take(index))
            else:
                parameter.grad = None  # nobody had one

    def close(self) -> None:
        """The optimizer and the model are as they were."""
        self._closed = True
        if self._uses.watching:
            self._uses.unwatch()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._drop_stand_ins()
        if vars(self._optimizer).get("step") is self._step_of_ours:  # no scheduler's
            del self._optimizer.step
            if self._restored is not None:
                self._optimizer.step = self._restored  # type: ignore[method-assign]

    def _drop_stand_ins(self) -> None:
        """Of a step that failed."""
        for parameter in self._parameters:
            if isinstance(parameter.grad, Travelling):
                parameter.grad = None

    def _take(self, index: int) -> torch.Tensor | None:
        """The average becomes ``grad``; what stood there."""
        parameter = self._parameters[index]
        stood, parameter.grad = parameter.grad, None
        self._hand_over(index)
        return stood

    def _put_back(self, index: int, stood: torch.Tensor | None) -> None:
        """``grad`` is what it would be, had the average been there all the time."""
        parameter = self._parameters[index]
        if not isinstance(stood, Travelling):  # taken away, or another was put there
            parameter.grad = stood
        elif stood.zeroed and parameter.grad is not None:
            parameter.grad.zero_()

    # -- the optimizer --------------------------------------------------------------------------

    def _replace_step(self) -> Any:
        """``optimizer.step`` becomes ours. Bound, since schedulers look for ``__func__``."""
        this = weakref.ref(self)
        original = self._original

        def step(optimizer: torch.optim.Optimizer, closure: Any = None, **more: Any) -> Any:
            late = this()
            if late is None or late._closed or not late._travels:
                return original(**more) if closure is None else original(closure, **more)
            if closure is not None or more:
                raise Unsupported("step_in_forward: step() takes no closure; call settle() before")
            optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers ask
            return late._told_to_step()

        bound = types.MethodType(step, self._optimizer)
        self._optimizer.step = bound  # type: ignore[method-assign]
        return bound

    def _told_to_step(self) -> Any:
        """Remembers what is to be stepped, and with which settings. Where there is more to step
        than what travels, everything at once."""
        gradients = [one.grad for group in self._optimizer.param_groups for one in group["params"]]
        odd = any(
            one is not None and (not isinstance(one, Travelling) or one.zeroed) for one in gradients
        )
        if odd or self._stepped or _has_hooks(self._optimizer):
            self.settle()
            return self._original()
        self._pending = {
            index for index, one in enumerate(self._parameters) if one.grad is not None
        }
        self._stepped = True
        self._given = [_settings(group, copied=True) for group in self._optimizer.param_groups]
        return None

    @torch.no_grad()
    def _step(self, tensors: Sequence[int]) -> None:
        """The optimizer's own step, with gradients for these parameters alone, and with the
        settings that it had when step() was called."""
        if not tensors:
            return
        stood = {index: self._take(index) for index in tensors}
        stepped = {id(self._parameters[index]) for index in tensors}
        groups = self._optimizer.param_groups
        others = [
            (one, one.grad)
            for group in groups
            for one in group["params"]
            if one.grad is not None and id(one) not in stepped
        ]
        for parameter, _ in others:
            parameter.grad = None
        now = [_settings(group) for group in groups]
        for group, given in zip(groups, self._given, strict=False):  # a group may be new
            group.update(given)
        try:
            with torch.autocast(self._parameters[0].device.type, enabled=False):
                self._original()
        finally:
            for group, given, later in zip(groups, self._given, now, strict=False):
                own = {name for name in given if not _same(group[name], given[name])}
                self._whole = self._whole or bool(own)
                group.update({name: value for name, value in later.items() if name not in own})
            for parameter, gradient in others:
                parameter.grad = gradient
        for index, one in stood.items():
            self._put_back(index, one)

    # -- forward --------------------------------------------------------------------------------

    def _hook_modules(self) -> list[Any]:
        """One hook before each module that may be called by itself, two after the whole."""
        hooks = []
        for one, _ in _modules(self._module):
            untyped: Any = one
            hooks.append(untyped.register_forward_pre_hook(_Hook(self, LateStep._enter)))
            hooks.append(untyped.register_state_dict_pre_hook(_Hook(self, LateStep.settle)))
            hooks.append(untyped.register_load_state_dict_pre_hook(_Hook(self, LateStep.settle)))
        untyped = self._module
        hooks.append(untyped.register_forward_hook(_Hook(self, LateStep._done)))
        leave = _Hook(self, LateStep._leave)
        hooks.append(untyped.register_forward_hook(leave, always_call=True))
        return hooks

    def _enter(self, module: torch.nn.Module, _: Any) -> None:
        """Forward reaches a module."""
        self._uses.entered = id(module)
        if not self._travels:
            return
        if self._needs_everything():
            with torch.inference_mode(False):
                self.settle()
            if module is self._module and self._needs is None and torch.is_grad_enabled():
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
        return self._needs is None or self._whole or not torch.is_grad_enabled()

    def _done(self, *_: Any) -> None:
        """Forward has not failed."""
        if self._uses.watching:
            self._needs = _needs_of(self._module, self._parameters, self._uses.first)

    def _leave(self, *_: Any) -> None:
        """Forward is over, or has failed."""
        if self._uses.watching:
            self._uses.unwatch()
        if self._stepped:
            self.settle()


class _Hook:
    """Calls a method of an object that it does not keep alive; copies of it do nothing."""

    def __init__(self, late: LateStep, method: Callable[..., None]) -> None:
        self._late = weakref.ref(late)
        self._method = method

    @not_compiled
    def __call__(self, *args: Any) -> None:
        late = self._late()
        if late is not None:
            self._method(late, *args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_hook, ()


def _nothing(*_: Any) -> None:
    pass


def _no_hook() -> Callable[..., None]:
    return _nothing


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
        self.__enter__()  # type: ignore[no-untyped-call]

    def unwatch(self) -> None:
        self.watching = False
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

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
    """What must be stepped before a module runs: its own parameters, and those of modules within it
    that were seen to be used when it was the last that was entered. What was used elsewhere is
    stepped before the whole: who uses it may depend on the data."""
    places = {id(one): index for index, one in enumerate(parameters)}
    needs: dict[int, set[int]] = {}
    within: dict[int, set[int]] = {}
    for one, whole in _modules(module):
        own = one.parameters(recurse=whole)
        needs[id(one)] = {places[id(parameter)] for parameter in own if id(parameter) in places}
        within[id(one)] = {places[id(all_)] for all_ in one.parameters() if id(all_) in places}
    owned = {place for tensors in needs.values() for place in tensors}
    needs[id(module)] |= set(places.values()) - owned
    for place, entered in first.items():
        needs[entered if place in within.get(entered, ()) else id(module)].add(place)
    return {one: sorted(tensors) for one, tensors in needs.items() if tensors}


def _modules(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, bool]]:
    """Those to hook, and whether their children are not: what is compiled runs as a whole."""
    children = [] if _is_compiled(module) else list(module.children())
    yield module, _is_compiled(module) or any(map(_is_compiled, children))
    for child in children:
        if not _is_compiled(child):
            yield from _modules(child)


def _is_compiled(module: torch.nn.Module) -> bool:
    return (
        type(module).__name__ == "OptimizedModule"
        or isinstance(module, torch.jit.ScriptModule)
        or getattr(module, "_compiled_call_impl", None) is not None
    )


def _has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """What runs before or after a step expects one step, and all gradients."""
    from torch.optim import optimizer as common

    its: Any = optimizer
    return bool(
        its._optimizer_step_pre_hooks
        or its._optimizer_step_post_hooks
        or not all(map(is_ours, common._global_optimizer_pre_hooks.values()))
        or common._global_optimizer_post_hooks
    )


def _settings(group: dict[str, Any], copied: bool = False) -> dict[str, Any]:
    """What a group holds beside its parameters; copied, since schedulers change it in place."""
    return {
        name: value.clone() if copied and isinstance(value, torch.Tensor) else value
        for name, value in group.items()
        if name != "params"
    }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)
