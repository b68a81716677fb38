"""What worker programs share: running their cases, and small helpers."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

RANK = int(os.environ.get("RANK", "0"))
SIZE = int(os.environ.get("WORLD_SIZE", "1"))


class Skip(Exception):  # noqa: N818 - it is no error
    """Raised by a case that cannot run here."""


@contextlib.contextmanager
def raises(kind: type[BaseException], *words: str) -> Iterator[None]:
    """The block must raise this exception, and its text must contain these words."""
    try:
        yield
    except kind as error:
        for word in words:
            assert word in str(error), f"{word!r} is not in {error!s}"
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


def run_cases(namespace: dict[str, Any], between: Callable[[], object]) -> None:
    """Run every ``case_*`` of the worker; ``between`` keeps the ranks together.

    A failed case ends the program: the ranks may no longer agree on what comes next.
    """
    wanted = sys.argv[1:]
    for name, case in list(namespace.items()):
        if not name.startswith("case_") or (wanted and name not in wanted):
            continue
        failed = False
        try:
            case()
            outcome = "ok"
        except Skip as reason:
            outcome = f"skip: {reason}"
        except SystemExit:
            raise  # a forked child that leaves
        except BaseException:
            outcome = traceback.format_exc()
            failed = True
        # One write, so that lines of other threads cannot come between.
        record = json.dumps({"name": name, "outcome": outcome})
        sys.stdout.write(f"@case {record}\n")
        sys.stdout.flush()
        if failed:
            # No goodbyes: the others must not wait for this rank.
            os._exit(1)
        between()
