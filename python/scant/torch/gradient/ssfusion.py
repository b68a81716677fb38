"""SSFusion's plan (ICDE 2026): small tensors of a buffer go whole, within the buffer's budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from scant import _scant

__all__ = ["cut_off", "ssfusion"]


def cut_off(sizes: Sequence[int], entries: float) -> int:
    """The largest of 0 and the sizes up to which all together are fewer than ``entries``."""
    largest = whole = 0
    for size, count in sorted(Counter(sizes).items()):
        whole += size * count
        if whole >= entries:
            break
        largest = size
    return largest


def ssfusion(
    layout: _scant.GradientLayout,
    density: float,
    values: str,
    buffer_bytes: int,
    first_buffer_bytes: int,
) -> _scant.FusionPlan:
    """Every rank's largest to every rank; a buffer's entries are ``density`` of its elements.

    What is whole needs no selection and counts in the budget, so that bytes hardly depend on the
    cut-off: the cheapest is the largest that leaves something for the other tensors.
    """
    frame = _scant.FusionPlan.uniform(
        layout, "gather", 1.0, values, buffer_bytes, first_buffer_bytes, 0
    )
    whole = (1.0, "bf16" if values.startswith("q") else values, 1.0, "f32")
    elements_of = [elements for _, _, elements in layout.parts]
    buffers = []
    for path, first, parts, _ in frame.buffers:
        sizes = elements_of[first : first + parts]
        budget = density * sum(sizes)
        limit = cut_off(sizes, budget)
        taken = sum(size for size in sizes if size <= limit)
        rest = ((budget - taken) / (sum(sizes) - taken), values, 1.0, "f32")
        buffers.append((path, parts, [whole if size <= limit else rest for size in sizes]))
    return _scant.FusionPlan.make(layout, buffers)
