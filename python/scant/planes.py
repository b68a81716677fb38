"""Which planes this build has: ``SCANT_PLANES`` of CMake chooses them (docs/python.md)."""

from __future__ import annotations

from scant import _scant
from scant.errors import Unsupported

__all__ = ["need"]


def need(plane: str) -> None:
    """Raises :class:`scant.Unsupported` where the extension was built without this plane."""
    if plane not in _scant.planes:
        raise Unsupported(
            f"this build of scant lacks the plane {plane!r}; it has: "
            f"{', '.join(_scant.planes) or 'none'}. "
            f"Build with -DSCANT_PLANES='{';'.join((*_scant.planes, plane))}'"
        )
