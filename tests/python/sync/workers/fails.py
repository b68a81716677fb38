"""One rank ends by an exception while the others work: fails.py HOW.

HOW: ``uncaught`` at the end of the program, ``block`` out of a ``with`` block, ``exit`` by
``sys.exit``. A rank that gets an error prints it; rank 0 then lets it end the program, once rank 1
has its own: else rank 1 might hear of rank 0's end before that of rank 2.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from waiting import wait_until

import scant

how = sys.argv[1]
rank = int(os.environ["RANK"])
told = Path(os.environ["SCANT_STORE"] + ".told")


def work(communicator: scant.Communicator) -> None:
    data: Any = np.ones(1000, dtype=np.float32)
    communicator.all_reduce(data)
    if rank == 2:
        if how == "exit":
            sys.exit(3)
        raise ValueError("no more data\nin the folder")
    try:
        communicator.all_reduce(data)
    except scant.Error as error:
        print("@error", json.dumps([error.code, error.peer, str(error)]), flush=True)
        if rank == 0:
            wait_until(told.exists, "rank 1 has an error")
            raise
        told.touch()


store = scant.DirectoryStore(os.environ["SCANT_STORE"])
if how == "block":
    with scant.Communicator(store, rank, 3) as communicator:
        work(communicator)
else:
    work(scant.Communicator(store, rank, 3))
