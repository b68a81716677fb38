"""A small ResNet and pictures that it can learn: classes drawn by formula, nothing to download.

A class is a few smooth random patterns. A picture is one of them, moved, perhaps mirrored, in
another contrast, under noise and a pattern of no class; so a network must learn what does not
change.
"""

from __future__ import annotations

import torch
from torch import nn

CLASSES, PATTERNS, SIDE = 20, 2, 32
COARSE = 8  # patterns are smooth: drawn in so many points a side
SHIFT = 2  # pixels at most, in both directions
NOISE, CLUTTER = 0.5, 0.4  # standard deviations, beside the pattern's 1
GROUPS = 8  # of a norm


class Pictures:
    """Pictures and their classes, endless; the same seed of classes on every rank."""

    def __init__(self, seed: int = 7) -> None:
        draw = torch.Generator().manual_seed(seed)
        self._patterns = _smooth(CLASSES * PATTERNS, draw).view(CLASSES, PATTERNS, 3, SIDE, SIDE)

    def sample(self, draw: torch.Generator, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(pictures, classes)."""
        classes = torch.randint(CLASSES, (batch,), generator=draw)
        which = torch.randint(PATTERNS, (batch,), generator=draw)
        shifts = torch.randint(-SHIFT, SHIFT + 1, (batch, 2), generator=draw).tolist()
        mirrored = torch.rand(batch, generator=draw) < 0.5
        contrast = 0.6 + 0.8 * torch.rand(batch, 1, 1, 1, generator=draw)
        moved = [
            torch.roll(pattern.flip(2) if mirror else pattern, shift, dims=(1, 2))
            for pattern, mirror, shift in zip(
                self._patterns[classes, which], mirrored.tolist(), shifts, strict=True
            )
        ]
        noise = torch.randn(batch, 3, SIDE, SIDE, generator=draw)
        clutter = _smooth(batch, draw)
        return contrast * torch.stack(moved) + NOISE * noise + CLUTTER * clutter, classes


def _smooth(count: int, draw: torch.Generator) -> torch.Tensor:
    """Patterns of standard deviation 1."""
    coarse = torch.randn(count, 3, COARSE, COARSE, generator=draw)
    fine = nn.functional.interpolate(coarse, size=SIDE, mode="bicubic", align_corners=False)
    scaled: torch.Tensor = fine / fine.std(dim=(1, 2, 3), keepdim=True)
    return scaled


class Residual(nn.Module):
    """Two convolutions beside the identity, or beside a projection where the shape changes."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(GROUPS, outer)
        self.second = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, outer)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.around = nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm1(self.first(x)))
        out: torch.Tensor = torch.relu(self.around(x) + self.norm2(self.second(hidden)))
        return out


class ResNet(nn.Module):
    """Two blocks in each of four stages, 2.8 million parameters; the first convolution halves the
    picture. Norms of groups, since a rank's few pictures make poor means."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.GroupNorm(GROUPS, width), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        inner = width
        for stage in range(4):
            outer = width << stage
            blocks += [Residual(inner, outer, 2 if stage else 1), Residual(outer, outer, 1)]
            inner = outer
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inner, CLASSES)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features = self.blocks(self.stem(pictures)).mean((2, 3))
        logits: torch.Tensor = self.head(features)
        return logits
