"""Arrays and records that the tests of scant.codec share."""

from __future__ import annotations

from typing import Any

import numpy as np

from scant import codec

SHAPE = (70, 130)  # three dense blocks, the last one cut
DENSITIES = [1.0, 0.2, 0.01]


def gradients(steps: int, shape: tuple[int, ...] = SHAPE, seed: int = 5) -> list[Any]:
    """Gaussian f32 arrays; tests name the seed when they fail."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(steps)]


def integers(steps: int, seed: int = 6) -> list[Any]:
    """Small whole numbers, whose sums and differences f32 holds exactly."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-64, 65, SHAPE).astype(np.float32) for _ in range(steps)]


def made(steps: int = 1, **options: Any) -> list[codec.Record]:
    """Records of as many steps of one encoder."""
    encoder = codec.Encoder(SHAPE, **options)
    return [encoder.encode(gradient) for gradient in gradients(steps)]
