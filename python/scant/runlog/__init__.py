"""The run log: what a training did and why, written by rank 0, read by people and programs.

``docs/run_log.md`` has the grammar. :class:`Watch` takes a line to all that want it,
:class:`RunLog` to a file; :func:`read` and :class:`Follower` give the lines back, and
:class:`History` puts them in order.
"""

from __future__ import annotations

from scant.runlog.history import History
from scant.runlog.lines import VERSION, Guard, Line, Note, Plan, Profile, Row, Run, Steps, parse
from scant.runlog.reader import BadLogError, Follower, read
from scant.runlog.watch import Watch
from scant.runlog.writer import RunLog

__all__ = [
    "VERSION",
    "BadLogError",
    "Follower",
    "Guard",
    "History",
    "Line",
    "Note",
    "Plan",
    "Profile",
    "Row",
    "Run",
    "RunLog",
    "Steps",
    "Watch",
    "parse",
    "read",
]
