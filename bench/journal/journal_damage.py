"""Faults for a journal's folder, and which state must be the newest after each.

What is expected follows from the listing before the damage alone: entries that are gone end the log
of every base before them, a damaged base is passed over for an older one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import random
import subprocess
from collections.abc import Iterator

from scant import _scant

ENTRY_HEADER_BYTES = 40
SEGMENT_HEADER_BYTES = 48


@dataclasses.dataclass(frozen=True)
class Entry:
    sequence: int
    step: int
    segment: str
    first: int  # byte of the segment
    end: int


@dataclasses.dataclass(frozen=True)
class Base:
    step: int
    folder: str
    entries: tuple[Entry, ...]  # behind it, without a gap


@dataclasses.dataclass(frozen=True)
class Damage:
    """What was done, and what must be found then. ``newest`` None: nothing can be restored."""

    text: str
    newest: int | None
    named: str = ""  # what restore() and verify have to name; empty: the fault leaves no trace


def listing(path: pathlib.Path) -> list[Base]:
    """All whole bases with what their logs hold."""
    folder = _scant.JournalFolder(str(path), False)
    found = []
    for base in folder.look()["bases"]:
        if base["problem"]:
            continue
        entries = tuple(
            Entry(sequence, step, segment, offset, offset + ENTRY_HEADER_BYTES + length)
            for sequence, step, length, segment, offset in folder.state(base["step"])["entries"]
        )
        found.append(Base(base["step"], base["folder"], entries))
    return found


def newest(bases: list[Base], gone: set[int] | None = None, without: str = "") -> int | None:
    """The last step that can be reached when these entries and this base's folder are gone."""
    reached = []
    for base in bases:
        if base.folder == without:
            continue
        step = base.step
        for entry in base.entries:
            if gone and entry.sequence in gone:
                break
            step = entry.step
        reached.append(step)
    return max(reached, default=None)


def _segments(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path.glob("log-*.scj"))


def _gone(bases: list[Base], segment: str, from_byte: int = 0) -> set[int]:
    """Entries that end behind this byte of a segment."""
    return {
        entry.sequence
        for base in bases
        for entry in base.entries
        if entry.segment == segment and entry.end > from_byte
    }


def torn(path: pathlib.Path, draw: random.Random) -> Damage:
    """The last segment ends at a random byte, as after a write that a power cut interrupted."""
    bases, segment = listing(path), _segments(path)[-1]
    size = segment.stat().st_size
    at = draw.randrange(size)
    with segment.open("r+b") as file:
        file.truncate(at)
    gone = _gone(bases, segment.name, at if at >= SEGMENT_HEADER_BYTES else 0)
    return Damage(f"{segment.name} cut from {size} to {at} bytes", newest(bases, gone))


def missing(path: pathlib.Path, draw: random.Random) -> Damage:
    """A segment is deleted; where a later one holds entries, its lack is seen."""
    bases, segments = listing(path), _segments(path)
    segment = draw.choice(segments)
    segment.unlink()
    gone = _gone(bases, segment.name)
    seen = any(
        entry.sequence > max(gone) and entry.segment != segment.name
        for base in bases
        for entry in base.entries
        if gone and base.entries[0].sequence <= max(gone)
    )
    named = f"entry {min(gone)}" if seen and gone else ""
    return Damage(f"{segment.name} deleted", newest(bases, gone), named)


def flipped(path: pathlib.Path, draw: random.Random) -> Damage:
    """One bit of a random file that counts."""
    bases = listing(path)
    files = [one for base in bases for one in sorted((path / base.folder).iterdir())]
    used = {entry.segment for base in bases for entry in base.entries}
    files += [one for one in _segments(path) if one.name in used]
    files.append(path / "MANIFEST")
    file = draw.choice([one for one in files if one.stat().st_size > 0])
    content = bytearray(file.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << (bit % 8)
    file.write_bytes(content)
    text = f"bit {bit} of {file.relative_to(path)} flipped"
    if file.parent != path:
        return Damage(text, newest(bases, None, file.parent.name), file.parent.name)
    if file.name == "MANIFEST":
        return Damage(text, newest(bases), file.name)
    at = bit // 8 if bit // 8 >= SEGMENT_HEADER_BYTES else 0
    return Damage(text, newest(bases, _gone(bases, file.name, at)), file.name)


@contextlib.contextmanager
def small_disk(path: pathlib.Path, size: int) -> Iterator[None]:
    """A file system of its own in memory; needs root."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def enlarge(path: pathlib.Path) -> None:
    """Room again, as when somebody has deleted other files."""
    subprocess.run(["mount", "-o", "remount,size=64m", path], check=True)
