"""What the benchmarks train: a model, its samples and its loss.

Every rank draws samples of its own; the held-out ones are the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import harness
import images
import torch
from captured import BATCH, BLOCK, RATE

IMAGES_RATE = 1e-3  # AdamW's
HELD_OUT_BYTES = 100_000
HELD_OUT_DRAW = 99
HELD_OUT_WINDOWS, HELD_OUT_PICTURES = 64, 256


class Task(Protocol):
    def model(self) -> torch.nn.Module: ...
    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer: ...
    def loss(self, model: torch.nn.Module, draw: torch.Generator) -> torch.Tensor: ...
    def held_out_loss(self, model: torch.nn.Module) -> float: ...


class Text:
    """The example's transformer on its text."""

    def __init__(self, quick: bool) -> None:
        self._example: Any = harness.load_example()
        text = self._example.load_text()
        self._text, self._held_out = text[:-HELD_OUT_BYTES], text[-HELD_OUT_BYTES:]
        self._layers = 1 if quick else 4
        self._batch = 1 if quick else BATCH

    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=RATE)

    def model(self) -> torch.nn.Module:
        made: torch.nn.Module = self._example.CharTransformer(layers=self._layers, block=BLOCK)
        return made

    def loss(self, model: torch.nn.Module, draw: torch.Generator) -> torch.Tensor:
        return self._loss(model, self._example.sample(self._text, draw, self._batch, BLOCK))

    def _loss(self, model: torch.nn.Module, window: torch.Tensor) -> torch.Tensor:
        logits = model(window[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())

    @torch.no_grad()
    def held_out_loss(self, model: torch.nn.Module) -> float:
        draw = torch.Generator().manual_seed(HELD_OUT_DRAW)
        windows = self._example.sample(self._held_out, draw, HELD_OUT_WINDOWS, BLOCK)
        return float(self._loss(model, windows))


class Images:
    """The ResNet of bench/images.py."""

    def __init__(self, quick: bool) -> None:
        self._pictures = images.Pictures()
        self._width = 8 if quick else 32
        self._batch = 2 if quick else 16

    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=IMAGES_RATE)

    def model(self) -> torch.nn.Module:
        return images.ResNet(self._width)

    def loss(self, model: torch.nn.Module, draw: torch.Generator) -> torch.Tensor:
        return self._loss(model, *self._pictures.sample(draw, self._batch))

    def _loss(
        self, model: torch.nn.Module, pictures: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(pictures), classes)

    @torch.no_grad()
    def held_out_loss(self, model: torch.nn.Module) -> float:
        draw = torch.Generator().manual_seed(HELD_OUT_DRAW)
        return float(self._loss(model, *self._pictures.sample(draw, HELD_OUT_PICTURES)))


# By name; made with whether the run is a quick one.
TASKS: dict[str, Callable[[bool], Task]] = {"transformer": Text, "resnet": Images}
