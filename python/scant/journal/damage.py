"""What is said of a log that cannot be read to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["damage_of"]


def damage_of(state: Mapping[str, Any] | None) -> str | None:
    """The damage that ends a base's log, in a sentence; None where there is none.

    ``state`` is what ``JournalFolder.state`` gives.
    """
    end = state["end"] if state is not None else None
    if state is None or end is None or not end["damaged"]:
        return None
    return (
        f"{end['segment']} at byte {end['offset']}: entry {end['sequence']} and what follows "
        f"cannot be used; whole until step {state['step']}"
    )
