"""Names of points: ``"q4"``, ``"1% q4"``, ``"rank 8 of q8, q1"``."""

from __future__ import annotations

import re
from typing import NamedTuple

from scant import _scant

__all__ = ["Point", "named"]

_PERCENT = r"(?P<percent>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)%"
_ELEMENTS = re.compile(rf"(?:{_PERCENT} )?(?P<values>[a-z0-9]+)")
_RANKED = re.compile(
    rf"rank (?P<rank>[1-9][0-9]*)(?: of (?P<factors>[a-z0-9]+))?"
    rf"(?:(?(factors),) (?:{_PERCENT} )?(?P<values>[a-z0-9]+))?"
)
_FACTORS = "q8"  # where nothing is said
_VALUES = {**{name: name for name in _scant.value_kind_names}, "fp16": "f16"}


class Point(NamedTuple):
    """How a tensor is sent: some directions as factors, and elements of the rest or of all."""

    density: float  # of the elements; 0 with a rank: the rest is not sent
    values: str
    rank: int = 0
    factors: str = _FACTORS

    @property
    def text(self) -> str:
        """The values and the factors as one word of the extension: ``"rank 8 of q8, q1"``."""
        if not self.rank:
            return self.values
        return f"rank {self.rank} of {self.factors}" + (f", {self.values}" if self.density else "")


def named(name: str) -> Point | str:
    """The point of a name; or what is wrong with it, a text in which ``{}`` stands for the name."""
    match = _RANKED.fullmatch(name) or _ELEMENTS.fullmatch(name)
    found = match.groupdict() if match else {}
    rank, factors = int(found.get("rank") or 0), found.get("factors") or _FACTORS
    alone = rank > 0 and not found["values"]
    values = "f32" if alone else found.get("values") or ""
    if values not in _VALUES or factors not in _VALUES:
        return "no '{}'"
    density = 0.0 if alone else float(found["percent"] or 100) / 100
    if rank > _scant.rank_max:
        return f"the rank of '{{}}' is above {_scant.rank_max}"
    if not alone and not 0 < density <= 1:
        return "the density of '{}' does not lie above 0 and up to 100 %"
    return Point(density, _VALUES[values], rank, _VALUES[factors])
