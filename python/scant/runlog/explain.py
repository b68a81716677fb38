"""``scant explain run.jsonl``: what a run chose and why, in words and as a page."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence

from scant.errors import reason
from scant.runlog.history import History
from scant.runlog.reader import BadLogError, read
from scant.runlog.words import tell

__all__ = ["main", "terminal"]


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="scant explain",
        description="Tell what a run of scant.torch.wrap(model, log=...) or scant serve --log "
        "chose, and why.",
    )
    parser.add_argument("log", help="the run log")
    parser.add_argument("-o", "--output", help="also write this HTML page, with plots")
    arguments = parser.parse_args(argv)
    at = arguments.log
    try:
        history = History.of(read(at))
        with terminal():
            print(tell(history))
        if arguments.output is not None:
            from scant.runlog.picture import draw

            at = arguments.output
            draw(history).write(at)
            with terminal():
                print(f"\n{at}")
    except BadLogError as error:
        print(f"scant explain: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        print(f"scant explain: {at}: {reason(error)}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Prints whatever letters the terminal has, and ends quietly when nobody reads any more."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
