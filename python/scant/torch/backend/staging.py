"""CUDA tensors go through pinned host memory, copied on a side stream of their device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["copy_from_device", "pinned_like", "side_stream"]

_side_streams: dict[int, torch.cuda.Stream] = {}


def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of this device on which all copies to and from the host are made."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    stream = _side_streams.get(index)
    if stream is None:
        make: Any = torch.cuda.Stream
        stream = _side_streams[index] = make(device=index)
    return stream


def pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous pinned host tensor of the same shape and dtype."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)


def copy_from_device(
    tensors: Sequence[torch.Tensor], device: torch.device, side: torch.cuda.Stream
) -> tuple[list[torch.Tensor], torch.cuda.Event]:
    """Host copies of these tensors, and the event after which they are complete."""
    written = torch.cuda.current_stream(device).record_event()
    hosts = []
    with torch.cuda.stream(side):
        side.wait_event(written)
        for tensor in tensors:
            host = pinned_like(tensor)
            host.copy_(tensor, non_blocking=True)
            # The allocator must not hand this memory out again before the side stream has read it.
            tensor.record_stream(side)
            hosts.append(host)
        return hosts, side.record_event()
