"""What a run leaves behind: the table for people, the JSON for programs (schema in docs/lab.md)."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scant import amounts
from scant.lab.errors import UsageError
from scant.lab.lab import Lab, RankProcess
from scant.lab.network import LinkCounters
from scant.lab.options import LinkOptions
from scant.lab.units import format_duration, format_rate

SCHEMA = "scant-lab-report/1"
_RESERVED_BYTES = 1 << 20  # more than the report of the largest lab with many events


class ReportFile:
    """A report path proved writable, with disk space reserved, before the run starts.

    The space is held by an unnamed file, so that a killed lab leaves nothing; finish() gives it
    its name.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._fd = -1
        self._spare: Path | None = None
        name = f"--report {path}"
        try:
            if self._path.exists() and not stat.S_ISREG(self._path.stat().st_mode):
                raise UsageError(f"{name}: exists and is not a file")
            if self._path.exists() and not os.access(self._path, os.W_OK):
                raise UsageError(f"{name}: {os.strerror(errno.EACCES)}")
            self._fd = self._open()
            # Written, not only allocated: some file systems find out that they are full at write.
            _write_all(self._fd, bytes(_RESERVED_BYTES))
            os.fsync(self._fd)
        except OSError as error:
            self.abandon()
            raise UsageError(f"{name}: {error.strerror}") from error

    def _open(self) -> int:
        folder = self._path.parent
        try:
            return os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
        self._spare = folder / f".{self._path.name}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(self._spare, flags, 0o644)

    def finish(self, report: dict[str, Any]) -> None:
        """Write and publish under the path, replacing an older report at once or not at all."""
        data = json.dumps(report, indent=1).encode() + b"\n"
        os.lseek(self._fd, 0, os.SEEK_SET)
        _write_all(self._fd, data)
        os.ftruncate(self._fd, len(data))
        if self._spare is None:
            self._spare = self._path.parent / f".{self._path.name}.{os.getpid()}"
            # src_dir_fd makes Python call linkat, which alone can follow the link to the file.
            folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.link(str(self._fd), self._spare, src_dir_fd=folder, follow_symlinks=True)
            finally:
                os.close(folder)
        self._spare.replace(self._path)
        self._spare = None
        os.close(self._fd)
        self._fd = -1

    def abandon(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._spare is not None:
            with suppress(OSError):
                self._spare.unlink()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def honest_notes(lab: Lab, counters: Sequence[LinkCounters]) -> list[str]:
    """What a reader of the figures must know."""
    if not lab.isolated:
        return [
            "loopback: no namespaces, so no shaped links, delay, loss or byte counts per link; "
            "the rate is SCANT_RATE_LIMIT, which only Scant's own transport obeys"
        ]
    notes = [
        "bytes are Ethernet frames with all headers, without preamble and checksum; "
        "frames of segmentation offload are counted as the wire frames that they stand for",
        "after idling, a link lets 0.3 ms of its rate (at least 3 frames) pass at once",
    ]
    if any(link.loss for link in counters):
        notes.append(
            f"loss decisions depend on seed {lab.seed} and the frame's number on its link; "
            "which frame has which number depends on timing"
        )
    late = [link.relay for link in counters if link.relay]
    if late:
        overruns = sum(relay.overruns for relay in late)
        notes.append(
            "delay by a user-space relay; beyond the delay asked for, batches were late by "
            f"{max(r.late_mean_us for r in late):.0f} µs on average on the worst link, "
            f"{max(r.late_p99_us for r in late):.0f} µs at the 99th percentile"
        )
        if overruns:
            notes.append(f"the relay lost {overruns} frames that it could not hold")
    if lab.mode == "user":
        notes.append("built in a user namespace: ranks see themselves as root")
    return notes


def _link_settings(link: LinkOptions) -> dict[str, Any]:
    found: dict[str, Any] = {
        "up_bits_per_second": link.up,
        "down_bits_per_second": link.down,
        "delay_seconds": link.delay_seconds,
        "loss": {**dataclasses.asdict(link.loss), "mean": link.loss.mean},
    }
    if link.up:
        found["up_queue_bytes"] = link.queue_for(link.up)
    if link.down:
        found["down_queue_bytes"] = link.queue_for(link.down)
    return found


def _rank_result(process: RankProcess, scripted: bool) -> dict[str, Any]:
    seconds = None
    if process.ended is not None:
        seconds = round(process.ended - process.started, 6)
    return {
        "rank": process.rank,
        "host": process.host,
        "exit_code": process.returncode,
        "ended_by_event": scripted,
        "seconds": seconds,
        "cpu_user_seconds": process.cpu_user_seconds,
        "cpu_system_seconds": process.cpu_system_seconds,
    }


def build_report(
    lab: Lab,
    first_links: Sequence[LinkOptions],
    counters: Sequence[LinkCounters],
    command: Sequence[str],
    seconds: float,
    exit_code: int,
    events: list[dict[str, Any]],
    scripted: set[int],
) -> dict[str, Any]:
    links = []
    for host, settings in enumerate(first_links):
        link: dict[str, Any] = {
            "host": host,
            "address": lab.address(host),
            "asked": _link_settings(settings),
            "at_end": _link_settings(lab.links[host]),
        }
        if host < len(counters):
            found = counters[host]
            link["up"] = dataclasses.asdict(found.up)
            link["down"] = dataclasses.asdict(found.down)
            link["loss"] = dataclasses.asdict(found.loss) if found.loss else None
            link["relay"] = dataclasses.asdict(found.relay) if found.relay else None
        links.append(link)
    return {
        "schema": SCHEMA,
        "command": list(command),
        "seconds": round(seconds, 6),
        "exit_code": exit_code,
        "hosts": lab.hosts,
        "processes_per_host": lab.processes_per_host,
        "mode": lab.mode,
        "shaper": lab.methods.shaper if lab.isolated else None,
        "delay_method": lab.methods.delay if lab.isolated else None,
        "ipv6": lab.ipv6,
        "seed": lab.seed,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "congestion_control": _congestion_control(),
        "links": links,
        "ranks": [_rank_result(p, p.rank in scripted) for p in lab.processes],
        "events": events,
        "notes": honest_notes(lab, counters),
    }


def _congestion_control() -> str | None:
    """The default that new namespaces inherit."""
    try:
        path = Path("/proc/sys/net/ipv4/tcp_congestion_control")
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def end_table(report: dict[str, Any]) -> str:
    """The run in a screenful: one row per host."""
    codes: dict[int, list[str]] = {}
    for rank in report["ranks"]:
        codes.setdefault(rank["host"], []).append(str(rank["exit_code"]))
    rows = []
    seconds = max(report["seconds"], 1e-9)
    for link in report["links"]:
        row = [f"host {link['host']}"]
        for way in ("up", "down"):
            if way in link:
                count = link[way]["bytes"]
                row += [amounts.size(count), format_rate(count * 8 / seconds)]
            else:
                row += ["—", "—"]
        drops = sum(link[way]["dropped_packets"] for way in ("up", "down") if way in link)
        loss = link.get("loss")
        row += [str(drops), str(loss["lost_packets"] if loss else 0)]
        row.append(",".join(codes.get(link["host"], ["—"])))
        rows.append(row)
    header = ["", "sent", "mean", "received", "mean", "queue drops", "lost", "exit"]
    duration = format_duration(report["seconds"])
    return (
        f"{text_table(header, rows)}\n{duration}, exit code {report['exit_code']}; "
        "means are over the whole run, start of the ranks included"
    )
