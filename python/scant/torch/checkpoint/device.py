"""Tensors of a GPU as memory that the journal's threads can read."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["HostCopies"]


class HostCopies:
    """Copies by a stream beside the model's, into pinned memory that is kept for the next ones."""

    def __init__(self) -> None:
        self._pinned: dict[int, torch.Tensor] = {}  # by what is copied there
        self._stream: Any = None
        self._arrived: Any = None  # what says that all copies have come

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself on the CPU; else its copy, once ``arrived()``."""
        if tensor.device.type == "cpu":
            return tensor
        pinned = self._pinned.get(tensor.data_ptr())
        if pinned is None or pinned.shape != tensor.shape or pinned.dtype != tensor.dtype:
            pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._pinned[tensor.data_ptr()] = pinned
        cuda: Any = torch.cuda
        if self._stream is None:
            self._stream = cuda.Stream(tensor.device)
        self._stream.wait_stream(cuda.current_stream(tensor.device))
        with cuda.stream(self._stream):
            pinned.copy_(tensor, non_blocking=True)
            self._arrived = cuda.Event()
            self._arrived.record(self._stream)
        return pinned

    def arrived(self) -> bool:
        """Whether the copies may be read."""
        return self._arrived is None or bool(self._arrived.query())

    def wait(self) -> None:
        """Until they may."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None

    @property
    def nbytes(self) -> int:
        """Of pinned memory."""
        return sum(one.nbytes for one in self._pinned.values())
