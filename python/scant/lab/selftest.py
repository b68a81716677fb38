"""``scant lab --selftest``: builds two hosts, measures the link, compares with what was asked."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time

from scant.lab.errors import LabError
from scant.lab.lab import Lab, RankProcess, python_command
from scant.lab.options import LinkOptions
from scant.lab.units import format_duration, format_rate, format_share

_BLAST_SECONDS = 2.0
_ROUND_TRIPS = 50
_DATAGRAMS = 4000
_WAIT_SECONDS = 90.0
_SAMPLE_SECONDS = 0.02
_BLAST_BEGUN_BYTES = 20_000


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one link was asked for and what it gave; rates in bits per second."""

    link: LinkOptions
    base_seconds: float  # round trip of the same hosts without delay
    rate: float
    round_trip_seconds: float
    loss: float

    def ratios(self) -> dict[str, float]:
        """Measured ÷ asked; the rate only where no loss holds TCP back."""
        found = {}
        if self.link.up and not self.link.loss.mean:
            found["rate"] = self.rate / min(self.link.up, self.link.down or self.link.up)
        if self.link.delay_seconds:
            trip = self.round_trip_seconds - self.base_seconds
            found["rtt"] = trip / (2 * self.link.delay_seconds)
        if self.link.loss.mean:
            found["loss"] = self.loss / self.link.loss.mean
        return found

    def rows(self) -> list[list[str]]:
        ratios = self.ratios()
        asked_rate = min(self.link.up or 0, self.link.down or 0)
        rows = [
            ["rate, wire", format_rate(asked_rate), format_rate(self.rate)],
            [
                "round trip",
                format_duration(2 * self.link.delay_seconds),
                format_duration(self.round_trip_seconds),
            ],
            ["loss", format_share(self.link.loss.mean), format_share(self.loss)],
        ]
        names = ("rate", "rtt", "loss")
        for row, name in zip(rows, names, strict=True):
            row.append(f"{ratios[name]:.3f}" if name in ratios else "—")
        return rows

    def good(self) -> bool:
        """Rate within 5 %, round trip within 10 %, loss within 50 % (it is a random sample)."""
        bounds = {"rate": 0.05, "rtt": 0.10, "loss": 0.50}
        return all(abs(ratio - 1) <= bounds[name] for name, ratio in self.ratios().items())


def _start_probe(
    lab: Lab, seconds: float, trips: int, datagrams: int, size: int = 1
) -> list[RankProcess]:
    numbers = (seconds, trips, datagrams, size)
    return lab.run(
        python_command("scant.lab.probe", *map(str, numbers)),
        ranks=[0, 1],
        stdout=subprocess.PIPE,
    )


def _finish_probe(processes: list[RankProcess]) -> dict[str, float]:
    codes = [process.wait(_WAIT_SECONDS) for process in processes]
    output = processes[1].stdout
    if any(codes) or output is None:
        raise LabError(f"the probe failed with exit codes {codes}")
    found: dict[str, float] = json.loads(output.read())
    return found


def probe(lab: Lab, seconds: float, trips: int, datagrams: int, size: int = 1) -> dict[str, float]:
    """Run the probe program on hosts 0 and 1 of a lab; returns what it printed."""
    return _finish_probe(_start_probe(lab, seconds, trips, datagrams, size))


def blast_rate(lab: Lab, seconds: float) -> float:
    """Wire bits per second that reach host 0 from host 1 in a TCP blast, by the kernel's counter.

    Counted from a fifth to nine tenths of the blast, when the link is busy throughout.
    """
    before = lab.bytes()[0][1]
    processes = _start_probe(lab, seconds, 0, 0)
    samples: list[tuple[float, int]] = []
    begin = None
    while processes[1].poll() is None:
        received = lab.bytes()[0][1] - before
        now = time.monotonic()
        if begin is None and received > _BLAST_BEGUN_BYTES:
            begin = now
        if begin is not None and 0.2 * seconds <= now - begin <= 0.9 * seconds:
            samples.append((now, received))
        time.sleep(_SAMPLE_SECONDS)
    _finish_probe(processes)
    if len(samples) < 2:
        raise LabError("the blast was too short to be measured")
    (first, low), (last, high) = samples[0], samples[-1]
    return (high - low) * 8 / (last - first)


def measure(link: LinkOptions, ipv6: bool = False, mode: str = "auto") -> Measured:
    """Measure one kind of link between two hosts."""
    with Lab(2, dataclasses.replace(link, delay_seconds=0), ipv6=ipv6, mode=mode) as lab:
        base = probe(lab, 0, _ROUND_TRIPS, 0)["round_trip_median_seconds"]
        if link.delay_seconds:
            for host in range(2):
                lab.set_link(host, link)
        found = probe(lab, 0, _ROUND_TRIPS, _DATAGRAMS)
        rate = blast_rate(lab, _BLAST_SECONDS)
        losses = [counters.loss for counters in lab.counters() if counters.loss]
    seen = sum(loss.passed_packets + loss.lost_packets for loss in losses)
    lost = sum(loss.lost_packets for loss in losses)
    return Measured(
        link=link,
        base_seconds=base,
        rate=rate,
        round_trip_seconds=found["round_trip_median_seconds"],
        loss=lost / seen if seen else 0.0,
    )
