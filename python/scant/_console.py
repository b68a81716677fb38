"""Where the console command begins: Ctrl-C ends it quietly even while its modules load.

So this module imports nothing by itself.
"""

from __future__ import annotations

__all__ = ["main"]

_INTERRUPTED = 130  # what a shell reports of a program that SIGINT ended


def main() -> int:
    """The command ``scant``; returns the exit status."""
    try:
        from scant import cli

        return cli.main()
    except KeyboardInterrupt:
        return _INTERRUPTED
