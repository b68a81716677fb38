"""Request logs of servers, read as a stream: for `scant replay`, and for whoever plans a fleet.

In Python since their users are; nothing here knows of a server.
"""

from __future__ import annotations

from scant.traces.reading import Request, Selection, Trace
from scant.traces.synthetic import Shape, synthetic

__all__ = ["Request", "Selection", "Shape", "Trace", "synthetic"]
