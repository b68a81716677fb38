"""The ``torch.distributed`` backend. Importing this module registers the name ``"scant"``.

With Scant installed, torch imports it by itself (entry point ``torch.backends``), so an ordinary
script changes one word::

    dist.init_process_group("scant")

Those who keep gloo or NCCL for everything else give only the gradients to Scant::

    group = dist.new_group(backend="scant")
    model.register_comm_hook(group, scant.torch.ddp_hook)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist

if TYPE_CHECKING:
    from scant.torch.backend.options import Options
    from scant.torch.backend.process_group import ProcessGroup
    from scant.torch.gradient.hook import HookState, ddp_hook
    from scant.torch.gradient.wrap_options import WrapOptions
    from scant.torch.gradient.wrapped import Wrapped, wrap

__all__ = [
    "HookState",
    "Options",
    "ProcessGroup",
    "WrapOptions",
    "Wrapped",
    "ddp_hook",
    "wrap",
]

_LAZY = {
    "HookState": "scant.torch.gradient.hook",
    "Options": "scant.torch.backend.options",
    "ProcessGroup": "scant.torch.backend.process_group",
    "WrapOptions": "scant.torch.gradient.wrap_options",
    "Wrapped": "scant.torch.gradient.wrapped",
    "ddp_hook": "scant.torch.gradient.hook",
    "wrap": "scant.torch.gradient.wrapped",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'scant.torch' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def _create(backend_options: Any, options: Any) -> Any:
    from scant import planes
    from scant.torch.backend.process_group import create

    planes.need("sync")
    return create(backend_options, options)


def _register() -> None:
    # A torch without distributed support has no Backend class; it can still use the rest of Scant.
    if dist.is_available() and not hasattr(dist.Backend, "SCANT"):
        dist.Backend.register_backend("scant", _create, extended_api=True, devices=["cpu", "cuda"])


_register()
