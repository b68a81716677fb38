"""A rank of a benchmark among the others: its groups, and numbers that go to rank 0.

Runs in the workers that harness.run_workers() begins.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import torch
import torch.distributed as dist

Groups = dict[str, Any]


def join() -> Groups:
    """All ranks, by gloo and by scant; torch computes in one thread."""
    import scant.torch  # noqa: F401  (registers the backend)

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    return {"gloo": dist.group.WORLD, "scant": dist.new_group(backend="scant")}


def tell(text: str) -> None:
    if dist.get_rank() == 0:
        print(f"  {text}", file=sys.stderr, flush=True)


def everyones(value: Any, groups: Groups) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value, group=groups["gloo"])
    return found


def hand_in(plan: dict[str, Any], part: dict[str, Any], own: Any, groups: Groups) -> None:
    """Rank 0 writes a line: this part, and in `by_rank` the numbers of all ranks."""
    found = everyones(own, groups)
    if dist.get_rank() == 0:
        with pathlib.Path(plan["results"]).open("a") as file:
            print(json.dumps({**part, "by_rank": found}), file=file)
