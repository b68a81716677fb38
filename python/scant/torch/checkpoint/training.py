"""A training as the journal sees it: parameters in the log's order, gradients as memory."""

from __future__ import annotations

import ctypes
import hashlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from scant import _scant
from scant.errors import InvalidArgument, Unsupported
from scant.torch.checkpoint.extra import states_of
from scant.torch.checkpoint.json_values import KINDS
from scant.torch.gradient.same_model import hash_of
from scant.torch.gradient.wrapped import Wrapped, check_optimizer

__all__ = ["Training"]

_STATE_BYTES_MAX = 1 << 20  # of module buffers that are logged at every step

_SEEN_BYTES = 256 << 10  # of parameters: up to that all are looked at in each step
_SEEN_TURNS = 16

Memory = tuple[int, int]


class Training:
    """Model, optimizer and what else the user wants kept."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        cursor: Callable[[], Any] | None,
        extra: Mapping[str, Any],
    ) -> None:
        self.wrapped = model if isinstance(model, Wrapped) else None
        inner: Any = getattr(model, "module", model) if _is_parallel(model) else model
        self.module: torch.nn.Module = inner
        self.optimizer = optimizer = _own(optimizer)
        self.cursor = cursor
        self.extra = dict(extra)
        _check(self.module, optimizer, self.extra)
        if self.wrapped is not None:
            self.parameters = list(self.wrapped._parameters_in_order)
            self.names = list(self.wrapped._names)
        else:
            stepped = {id(one) for one in _parameters_of(optimizer)}
            trained = [
                (name, one)
                for name, one in self.module.named_parameters()
                if id(one) in stepped and one.requires_grad and one.numel() > 0
            ]
            self.names = [name for name, _ in reversed(trained)]
            self.parameters = [one for _, one in reversed(trained)]
        self._ids = {id(one) for one in self.parameters}
        self.bytes = [one.nbytes for one in self.parameters]
        self._likes = [torch.empty_like(one, device="meta") for one in self.parameters]
        buffers = dict(self.module.named_buffers())
        small = sum(one.nbytes for one in buffers.values()) <= _STATE_BYTES_MAX
        self.buffers = buffers if small else {}
        self.unlogged_buffers = sorted(set(buffers) - set(self.buffers))
        self._kept: list[torch.Tensor] = []  # copies that the writer reads
        self._pinned: dict[int, torch.Tensor] = {}

    def model_hash(self) -> int:
        """Of names, shapes and types."""
        digest = hashlib.sha256()
        for name, value in self.module.state_dict(keep_vars=True).items():
            if isinstance(value, torch.Tensor):
                digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update("\n".join(self.names).encode())
        return int.from_bytes(digest.digest()[:8], "little")

    def averager(self) -> _scant.Averager | None:
        """Where the records of the last step lie, if its averages are f32."""
        wrapped = self.wrapped
        if wrapped is None or wrapped.last_step is None:
            return None
        if any(one.dtype is not torch.float32 for one in self.parameters):
            return None
        return wrapped._averager

    def check_known(self) -> None:
        """On every rank: the log would lack what was unfrozen or added since attach()."""
        for one in _parameters_of(self.optimizer):
            if one.grad is not None and id(one) not in self._ids and one.numel() > 0:
                raise InvalidArgument(
                    f"journal: {self._name_of(one)} has a gradient, and had none to expect at "
                    "attach(): close() and attach() again when parameters are added or unfrozen"
                )

    def copied_bytes(self, ranks: int) -> int:
        """For a base beside staging: the module's buffers, and residuals until they are written."""
        buffers = sum(one.nbytes for one in self.module.buffers())
        gradients = sum(self.bytes) if self.wrapped is not None else 0
        return buffers + gradients + gradients // ranks

    def seen(self, step: int) -> list[int]:
        """Which parameters the step finds, as a checksum: of few at a time, in turn. What changed
        elsewhere than in the optimizer's step, replaying would not give."""
        count = len(self.parameters)
        small = sum(self.bytes) <= _SEEN_BYTES
        turns = 1 if small else min(count, _SEEN_TURNS)
        chosen = self.parameters[step % turns :: turns]
        if any(one.device.type != "cpu" for one in chosen):
            return [0, -1]  # not looked at
        return [turns, hash_of(chosen)]

    def gradients(self) -> list[Memory]:
        """Of each parameter, in the order of its memory; (0, 0): none."""
        self._kept = []
        found = [self._gradient(index) for index in range(len(self.parameters))]
        if self._pinned:
            torch.cuda.current_stream().synchronize()
        return found

    def _name_of(self, parameter: torch.Tensor) -> str:
        for name, one in self.module.named_parameters():
            if one is parameter:
                return f"'{name}'"
        return f"a parameter of shape {tuple(parameter.shape)} that is not the model's"

    def _gradient(self, index: int) -> Memory:
        gradient = self.parameters[index].grad
        if gradient is None:
            return 0, 0
        if gradient.layout is not torch.strided:
            raise Unsupported(f"journal: '{self.names[index]}' has a sparse gradient")
        like = self._likes[index]
        if gradient.device.type != "cpu":
            pinned = self._pinned.get(index)
            if pinned is None:
                pinned = torch.empty_like(like, device="cpu", pin_memory=True)
                self._pinned[index] = pinned
            pinned.copy_(gradient.detach(), non_blocking=True)
            gradient = pinned
        elif gradient.stride() != like.stride() or gradient.dtype != like.dtype:
            gradient = torch.empty_like(like, device="cpu").copy_(gradient.detach())
            self._kept.append(gradient)
        return gradient.data_ptr(), gradient.nbytes

    def state(self) -> list[Memory]:
        """Of the module's buffers, where those are small: batch norm's means, say."""
        found = []
        for buffer in self.buffers.values():
            one = buffer.detach()
            if one.device.type != "cpu" or not one.is_contiguous():
                one = one.cpu().contiguous()
                self._kept.append(one)
            found.append((one.data_ptr(), one.nbytes))
        return found

    @torch.no_grad()
    def set_state(self, state: list[tuple[int, bytes]]) -> None:
        """Back, by the place among the buffers."""
        buffers = list(self.buffers.values())
        for place, content in state:
            if place >= len(buffers) or len(content) != buffers[place].nbytes:
                raise InvalidArgument("journal: of a model with other buffers")
            if content:
                flat = torch.frombuffer(bytearray(content), dtype=buffers[place].dtype)
                buffers[place].copy_(flat.reshape(buffers[place].shape))

    def view(self, index: int, address: int) -> torch.Tensor:
        """Memory of a gradient as a tensor like the parameter."""
        like = self._likes[index]
        memory = (ctypes.c_byte * self.bytes[index]).from_address(address)
        flat = torch.frombuffer(memory, dtype=like.dtype)
        return flat.as_strided(like.shape, like.stride())

    def described(self) -> list[tuple[str, str]]:
        """What must be alike on all ranks."""
        rows = [
            (f"'{name}'", f"{tuple(one.shape)} {one.dtype}")
            for name, one in self.module.state_dict(keep_vars=True).items()
            if isinstance(one, torch.Tensor)
        ]
        return [*rows, ("the optimizer", type(self.optimizer).__name__)]

    def warn_of_gaps(self) -> None:
        """What a log of gradients does not bring back."""
        stepped = {id(one) for one in _parameters_of(self.optimizer)}
        others = [
            name
            for name, one in self.module.named_parameters()
            if one.requires_grad and id(one) not in stepped
        ]
        text = ""
        if others:
            text += f"{len(others)} trained parameters that the optimizer lacks ('{others[0]}'), "
        if self.unlogged_buffers:
            text += f"buffers of more than 1 MB in all ('{self.unlogged_buffers[0]}'), "
        if text:
            warnings.warn(
                f"journal: the log does not hold {text}which a fast restore gives as of the base",
                RuntimeWarning,
                stacklevel=3,
            )


def _own(optimizer: Any) -> Any:
    """What accelerate and Lightning wrap: hooks run at its steps, not at theirs."""
    inner = getattr(optimizer, "optimizer", None)
    while isinstance(inner, torch.optim.Optimizer):
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    return optimizer


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [one for group in optimizer.param_groups for one in group["params"]]


def _is_parallel(model: torch.nn.Module) -> bool:
    return isinstance(model, Wrapped | torch.nn.parallel.DistributedDataParallel)


def _check(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, extra: Mapping[str, Any]
) -> None:
    if not isinstance(module, torch.nn.Module):
        raise InvalidArgument(f"journal: a torch.nn.Module is needed, got {type(module).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidArgument(
            f"journal: a torch.optim.Optimizer is needed, got {type(optimizer).__name__}"
        )
    if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
        raise Unsupported("journal: ZeroRedundancyOptimizer: no rank has the whole state")
    check_optimizer("journal", optimizer, module)
    for one in _parameters_of(optimizer):
        if one.dtype not in KINDS or hasattr(one, "device_mesh"):
            what = "DTensor" if one.dtype in KINDS else one.dtype
            raise Unsupported(f"journal: a parameter is a {what}")
    for name, one in extra.items():
        if not (hasattr(one, "state_dict") and hasattr(one, "load_state_dict")):
            raise InvalidArgument(f"journal: extra '{name}' has no state_dict and load_state_dict")
    states_of(extra)  # says what cannot be kept
