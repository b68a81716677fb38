"""What a link can be asked for, and the grammar of ``--host`` and ``--loss-burst``.

A link belongs to a host. ``up`` is what the host sends, ``down`` what it receives; delay and
loss act on what the host sends, so each frame meets them once between two hosts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from scant.lab.errors import UsageError
from scant.lab.units import (
    DELAY_MAX_SECONDS,
    RATE_MAX_BITS_PER_SECOND,
    RATE_MIN_BITS_PER_SECOND,
    format_duration,
    format_rate,
    format_share,
    parse_delay,
    parse_rate,
    parse_share,
    parse_size,
)

HOSTS_MAX = 250  # one /24 of addresses, and a counters message that fits one datagram

_FRAME_BYTES = 1514
_BURST_SECONDS = 0.0003  # what may pass at once; the kernel's timers are up to 0.1 ms late
_BURST_MIN_FRAMES = 3
_SUPER_FRAME_SECONDS = 0.0002  # below the burst, so that a late timer loses no tokens
_QUEUE_SECONDS = 0.02
_QUEUE_MIN_BYTES = 96_000
_SUPER_FRAME_MAX_BYTES = 65_536


@dataclasses.dataclass(frozen=True)
class Loss:
    """Gilbert–Elliott loss, per frame; uniform loss is the case that never leaves "good"."""

    good: float = 0.0
    bad: float = 1.0
    to_bad: float = 0.0
    to_good: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise UsageError(f"loss {field.name}: {value} is not within 0 and 1")
        if self.to_bad > 0 and self.to_good == 0 and self.bad > 0:
            raise UsageError("loss r: 0 would never leave the bad state")

    @staticmethod
    def uniform(share: float) -> Loss:
        return Loss(good=share)

    @property
    def mean(self) -> float:
        """The long-run share of frames lost."""
        if self.to_bad == 0:
            return self.good
        bad_share = self.to_bad / (self.to_bad + self.to_good)
        return bad_share * self.bad + (1 - bad_share) * self.good

    def describe(self) -> str:
        if self.to_bad == 0:
            return format_share(self.good)
        return (
            f"{format_share(self.mean)} in bursts of {1 / self.to_good:.3g} frames "
            f"(p={self.to_bad:g} r={self.to_good:g} bad={self.bad:g} good={self.good:g})"
        )


@dataclasses.dataclass(frozen=True)
class LinkOptions:
    """One host's link. ``None`` rates mean that nothing shapes that direction.

    Rates count Ethernet frames as the kernel does: payload plus all headers, the 14 bytes of
    Ethernet included, preamble and checksum not.
    """

    rate_bits_per_second: int | None = None
    up_bits_per_second: int | None = None  # overrides the rate for what the host sends
    down_bits_per_second: int | None = None  # overrides the rate for what the host receives
    delay_seconds: float = 0.0
    loss: Loss = dataclasses.field(default_factory=Loss)
    queue_bytes: int | None = None  # per direction; None: 20 ms of the rate, at least 96 kB

    def __post_init__(self) -> None:
        for name in ("rate_bits_per_second", "up_bits_per_second", "down_bits_per_second"):
            value = getattr(self, name)
            if value is not None and not (
                RATE_MIN_BITS_PER_SECOND <= value <= RATE_MAX_BITS_PER_SECOND
            ):
                raise UsageError(f"{name}: {value} is out of range")
        if not 0 <= self.delay_seconds <= DELAY_MAX_SECONDS:
            raise UsageError(f"delay_seconds: {self.delay_seconds} is out of range")
        if self.queue_bytes is not None and self.queue_bytes < 2 * _FRAME_BYTES:
            raise UsageError(f"queue: {self.queue_bytes} bytes do not hold two frames")

    @property
    def up(self) -> int | None:
        return self.up_bits_per_second or self.rate_bits_per_second

    @property
    def down(self) -> int | None:
        return self.down_bits_per_second or self.rate_bits_per_second

    def queue_for(self, rate: int) -> int:
        """The drop-tail queue in front of the shaper, bytes."""
        if self.queue_bytes is not None:
            return self.queue_bytes
        return max(_QUEUE_MIN_BYTES, int(rate / 8 * _QUEUE_SECONDS))

    def describe(self) -> str:
        parts = []
        if self.up == self.down:
            parts.append(format_rate(self.up) if self.up else "no rate limit")
        else:
            parts.append(f"up {format_rate(self.up) if self.up else 'unlimited'}")
            parts.append(f"down {format_rate(self.down) if self.down else 'unlimited'}")
        if self.delay_seconds:
            parts.append(f"delay {format_duration(self.delay_seconds)}")
        if self.loss.mean:
            parts.append(f"loss {self.loss.describe()}")
        return ", ".join(parts)


def burst_for(rate: int) -> int:
    """Bytes the token bucket holds; also what a message gains after the link was idle.

    A smaller bucket loses tokens whenever the timer is late, a larger one lets more of a message
    pass unshaped. At 1 Gb/s these 37 kB hold the rate within 2 % on a busy machine.
    """
    return max(_BURST_MIN_FRAMES * _FRAME_BYTES, int(rate / 8 * _BURST_SECONDS))


def super_frame_for(rate: int | None) -> int:
    """Largest segmentation-offload frame that a host may send."""
    if rate is None:
        return _SUPER_FRAME_MAX_BYTES
    size = max(2 * _FRAME_BYTES, int(rate / 8 * _SUPER_FRAME_SECONDS))
    return min(_SUPER_FRAME_MAX_BYTES, size)


def parse_loss_burst(text: str, name: str = "--loss-burst") -> Loss:
    """``p=0.1%,r=10%[,bad=100%][,good=0%]``: into and out of the bad state, per frame."""
    keys = {"p": "to_bad", "r": "to_good", "bad": "bad", "good": "good"}
    found: dict[str, float] = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or key not in keys:
            raise UsageError(f"{name}: {item!r} is not one of p=, r=, bad=, good=")
        found[keys[key]] = parse_share(value, f"{name} {key}")
    if "to_bad" not in found or "to_good" not in found:
        raise UsageError(f"{name}: both p= and r= are needed")
    return Loss(**found)


def change_link(link: LinkOptions, items: Iterable[str], name: str) -> LinkOptions:
    """Apply ``key=value`` settings: rate, up, down, delay, loss, p, r, bad, good, queue."""
    changes: dict[str, object] = {}
    burst = []
    for item in items:
        key, equals, value = item.partition("=")
        key = key.strip()
        where = f"{name} {key}"
        if not equals:
            raise UsageError(f"{name}: {item!r} is not key=value")
        if key == "rate":
            changes["rate_bits_per_second"] = parse_rate(value, where)
        elif key in ("up", "down"):
            changes[f"{key}_bits_per_second"] = parse_rate(value, where)
        elif key == "delay":
            changes["delay_seconds"] = parse_delay(value, where)
        elif key == "loss":
            changes["loss"] = Loss.uniform(parse_share(value, where))
        elif key in ("p", "r", "bad", "good"):
            burst.append(item)
        elif key == "queue":
            changes["queue_bytes"] = parse_size(value, where)
        else:
            known = "rate up down delay loss p r bad good queue"
            raise UsageError(f"{name}: setting {key!r} is unknown (known: {known})")
    if burst:
        if "loss" in changes:
            raise UsageError(f"{name}: loss= and p=,r= exclude each other")
        changes["loss"] = parse_loss_burst(",".join(burst), name)
    return dataclasses.replace(link, **changes)  # type: ignore[arg-type]


def parse_hosts(text: str, count: int, name: str, what: str = "host") -> list[int]:
    """``2``, ``0,2``, ``1-3`` or ``all``, checked against the number of hosts (or ranks)."""
    if text == "all":
        return list(range(count))
    hosts: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not low.isascii() or not low.isdigit() or (dash and not high.isdigit()):
            raise UsageError(f"{name}: {part!r} is not a {what} number")
        first, last = int(low), int(high) if dash else int(low)
        for host in (first, last):
            if host >= count:
                raise UsageError(f"{name}: {what} {host} is outside 0 to {count - 1}")
        if last < first:
            raise UsageError(f"{name}: {part!r} runs backwards")
        hosts.update(range(first, last + 1))
    return sorted(hosts)


def parse_host_override(text: str, count: int) -> tuple[list[int], list[str]]:
    """``2:rate=100mbit,delay=10ms`` → hosts and settings."""
    hosts, colon, settings = text.partition(":")
    if not colon or not settings:
        raise UsageError(f"--host: {text!r} is not HOSTS:key=value,…")
    return parse_hosts(hosts, count, "--host"), settings.split(",")
