"""What a base of the journal holds of a training, and how it gets back."""

from __future__ import annotations

import base64
import pathlib
import random
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch

from scant.errors import Mismatch, Unsupported
from scant.journal import tensor_files
from scant.torch.checkpoint.json_values import DTYPES, KINDS, as_json, decode, encode

__all__ = [
    "Source",
    "Tensors",
    "load",
    "random_states",
    "set_random_states",
    "set_settings",
    "settings_of",
    "shards",
    "tensors_of",
]

Source = tuple[str, bytes, list[tuple[int, int]]]


class Tensors:
    """Of a model and its optimizer, by name; ``values``: what is no tensor, as JSON."""

    def __init__(self) -> None:
        self.model: dict[str, torch.Tensor] = {}
        self.optimizer: dict[str, torch.Tensor] = {}
        self.values: dict[str, Any] = {}


def tensors_of(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """The tensors themselves, not copies."""
    found = Tensors()
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor):
            found.model[name] = value.detach()
        else:
            found.values[f"model {name}"] = as_json(value, f"the model's state '{name}'")
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                found.optimizer[f"{index}.{key}"] = value.detach()
            else:
                plain = _without_tensors(value, f"{index}.{key}", found.optimizer)
                found.values[f"optimizer {index}.{key}"] = plain
    for name, tensor in {**found.model, **found.optimizer}.items():
        if tensor.layout is not torch.strided or tensor.dtype not in KINDS:
            raise Unsupported(f"journal: '{name}' is a tensor of {tensor.dtype}, {tensor.layout}")
    return found


def _without_tensors(value: Any, name: str, into: dict[str, torch.Tensor]) -> Any:
    """A state as JSON; its tensors, which LBFGS has in lists, go into a file by these names."""
    if isinstance(value, torch.Tensor):
        into[name] = value.detach()
        return {"tensor_of": name}
    if isinstance(value, list):
        return [_without_tensors(one, f"{name}.{i}", into) for i, one in enumerate(value)]
    if not (value is None or isinstance(value, bool | int | float | str)):
        raise Unsupported(
            f"journal: the optimizer's state '{name}' is a {type(value).__name__}; tensors, plain "
            "values and lists of them can be kept"
        )
    return value


def _with_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """What _without_tensors() was given; its tensors are taken out."""
    if isinstance(value, dict):
        return tensors.pop(value["tensor_of"])
    if isinstance(value, list):
        return [_with_tensors(one, tensors) for one in value]
    return value


def shards(
    tensors: Mapping[str, torch.Tensor], ranks: int, of_first: Collection[str] = ()
) -> list[list[str]]:
    """Which rank writes which tensors: about equal bytes, the same split on every rank; these are
    for the first, where ranks have them unlike. Of tensors that share memory each is written,
    since loading copies into each."""
    loads = [0] * ranks
    names: list[list[str]] = [[] for _ in range(ranks)]
    for name in sorted(tensors, key=lambda one: (-tensors[one].nbytes, one)):
        least = 0 if name in of_first else loads.index(min(loads))
        loads[least] += tensors[name].nbytes
        names[least].append(name)
    return [sorted(of) for of in names]


def source(name: str, tensors: Mapping[str, torch.Tensor], keep: list[torch.Tensor]) -> Source:
    """A file of these tensors for the base writer, which reads their memory: ``keep`` gets what
    must live so long."""
    rows = [(key, KINDS[one.dtype], tuple(one.shape)) for key, one in tensors.items()]
    memory = []
    for one in tensors.values():
        one = one.contiguous()
        keep.append(one)
        memory.append((one.data_ptr(), one.nbytes))
    return name, tensor_files.head(rows), memory


# ---- settings and random states --------------------------------------------------------------


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the groups hold beside parameters, as JSON can."""
    return [
        {
            name: encode(value, f"the optimizer's setting '{name}'")
            for name, value in group.items()
            if name != "params"
        }
        for group in optimizer.param_groups
    ]


def set_settings(optimizer: torch.optim.Optimizer, settings: Sequence[Mapping[str, Any]]) -> None:
    """Back; tensors stay the tensors that they are."""
    if len(settings) != len(optimizer.param_groups):
        raise Mismatch(
            f"journal: of an optimizer with {len(settings)} parameter groups; this one has "
            f"{len(optimizer.param_groups)}"
        )
    for group, given in zip(optimizer.param_groups, settings, strict=True):
        for name, value in given.items():
            now = decode(value)
            if isinstance(now, torch.Tensor) and isinstance(group.get(name), torch.Tensor):
                group[name].copy_(now)
            else:
                group[name] = now


def random_states() -> dict[str, Any]:
    """Of torch, Python and NumPy (where it is used) in this process."""
    states: dict[str, Any] = {
        "torch": _text(bytes(torch.get_rng_state().numpy())),
        "python": random.getstate(),
    }
    cuda: Any = torch.cuda
    if cuda.is_available() and cuda.is_initialized():
        states["cuda"] = [_text(bytes(one.numpy())) for one in cuda.get_rng_state_all()]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, *rest = numpy.random.get_state()
        states["numpy"] = [name, keys.tolist(), *rest]
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Back, as far as this process has such generators."""
    torch.set_rng_state(_byte_tensor(states["torch"]))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    cuda = [_byte_tensor(one) for one in states.get("cuda", [])]
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
    if "numpy" in states:
        import numpy

        numpy.random.set_state(tuple(states["numpy"]))


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _byte_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


# ---- loading ---------------------------------------------------------------------------------


def as_tensor(found: tensor_files.Tensor) -> torch.Tensor:
    """A copy of its own."""
    if not found.data.nbytes:
        return torch.empty(found.shape, dtype=DTYPES[found.kind])
    flat = torch.frombuffer(bytearray(found.data), dtype=DTYPES[found.kind])
    return flat.reshape(found.shape)


@torch.no_grad()
def load(
    folder: pathlib.Path,
    files: Iterable[str],
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    values: Mapping[str, Any],
    settings: Sequence[Mapping[str, Any]],
) -> None:
    """The tensors of a base into the model and its optimizer."""
    model: dict[str, torch.Tensor] = {}
    states: dict[str, torch.Tensor] = {}
    for name in files:
        kind = name.split("-", 1)[0]
        if kind in ("model", "optimizer") and name.endswith(".safetensors"):
            into = model if kind == "model" else states
            for key, one in tensor_files.read(folder / name).items():
                into[key] = as_tensor(one)
    _load_model(module, model, values)
    _load_optimizer(optimizer, states, values, settings)


def _load_model(
    module: torch.nn.Module, found: Mapping[str, torch.Tensor], values: Mapping[str, Any]
) -> None:
    wanted = module.state_dict(keep_vars=True)
    names = {name for name, value in wanted.items() if isinstance(value, torch.Tensor)}
    if names != set(found):
        missing, other = sorted(names - set(found)), sorted(set(found) - names)
        raise Mismatch(
            f"journal: of another model: it lacks {missing[:3] or 'nothing'} and has "
            f"{other[:3] or 'nothing'} besides"
        )
    for name in names:
        if wanted[name].shape != found[name].shape:
            raise Mismatch(
                f"journal: of another model: '{name}' is {tuple(found[name].shape)} there and "
                f"{tuple(wanted[name].shape)} here"
            )
        wanted[name].copy_(found[name])
    extra = {
        key.removeprefix("model "): one for key, one in values.items() if key.startswith("model ")
    }
    own = {id(one) for one in [*module.parameters(), *module.buffers()]}
    if extra or any(id(wanted[name]) not in own for name in names):  # what modules make themselves
        module.load_state_dict({**found, **extra})


def _load_optimizer(
    optimizer: torch.optim.Optimizer,
    found: Mapping[str, torch.Tensor],
    values: Mapping[str, Any],
    settings: Sequence[Mapping[str, Any]],
) -> None:
    """By the optimizer's own load_state_dict, which knows where its tensors belong."""
    state: dict[int, dict[str, Any]] = {}
    tensors = dict(found)
    for name, value in values.items():
        if name.startswith("optimizer "):
            index, key = name.removeprefix("optimizer ").split(".", 1)
            state.setdefault(int(index), {})[key] = _with_tensors(value, tensors)
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    if len(settings) != len(optimizer.param_groups):
        set_settings(optimizer, settings)  # says what is wrong
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    set_settings(optimizer, settings)
    _undo_rounding(optimizer, state)


def _undo_rounding(
    optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Any]]
) -> None:
    """load_state_dict rounds states to their parameters' type, also those that were wider, and lays
    them out as they come."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for index, values in state.items():
        loaded = optimizer.state[parameters[index]]
        for key, value in values.items():
            now = loaded.get(key)
            if not (isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor)):
                continue
            parameter = parameters[index]
            if now.shape == parameter.shape and now.stride() != parameter.stride():
                # Fused steps add in the order of memory.
                like = torch.empty_like(parameter, dtype=value.dtype, device=now.device)
                loaded[key] = like.copy_(value)
            elif now.dtype != value.dtype:
                loaded[key] = value.to(now.device)
