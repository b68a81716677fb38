"""Scant without torch: a sum of NumPy arrays, and what a mistake looks like.

SCANT_STORE names a directory that all ranks see; RANK and WORLD_SIZE come from any launcher.
"""

from __future__ import annotations

import numpy as np

import scant


def main() -> None:
    """Add up, gather, and let one rank pass a wrong array."""
    with scant.Communicator.from_env() as comm:
        total = comm.all_reduce(np.full(4, comm.rank + 1, dtype=np.float32))
        table = comm.all_gather(np.array([comm.rank, comm.rank**2]))
        if comm.rank == 0:
            print("sum:", total)
            print("table:", table.tolist())
        try:
            comm.all_reduce(np.zeros((4, 4))[:, ::2])
        except scant.InvalidArgument as error:
            if comm.rank == 0:
                print("refused:", error)


if __name__ == "__main__":
    main()
