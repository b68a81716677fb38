"""Timed events: what happens to links and ranks while the command runs.

    event  = TIME verb
    verb   = "rate" [HOSTS] RATE | "up-rate" [HOSTS] RATE | "down-rate" [HOSTS] RATE
           | "delay" [HOSTS] TIME | "loss" [HOSTS] SHARE | "loss-burst" [HOSTS] p=…,r=…
           | "down" HOSTS | "up" HOSTS
           | "kill" RANKS | "stop" RANKS | "cont" RANKS | "signal" RANKS NAME

HOSTS and RANKS are ``2``, ``0,2``, ``1-3`` or ``all``. A file holds one event per line, ``#``
starts a comment. Parsing checks everything, so that a run never fails half-way for a typo.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterable
from pathlib import Path

from scant.lab.errors import UsageError
from scant.lab.lab import Lab
from scant.lab.options import LinkOptions, change_link, parse_hosts
from scant.lab.units import parse_duration

_LINK_VERBS = {
    "rate": "rate",
    "up-rate": "up",
    "down-rate": "down",
    "delay": "delay",
    "loss": "loss",
    "loss-burst": None,
}
_PLUG_VERBS = {"down": False, "up": True}
_RANK_VERBS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "cont": signal.SIGCONT}


@dataclasses.dataclass(frozen=True)
class Event:
    """One parsed event; exactly one of settings, plugged and signal is set."""

    at_seconds: float
    text: str
    targets: tuple[int, ...]
    settings: tuple[str, ...] = ()
    plugged: bool | None = None
    signal: signal.Signals | None = None

    def needs_isolation(self) -> bool:
        return self.signal is None

    def apply(self, lab: Lab) -> None:
        if self.signal is not None:
            for process in lab.processes:
                if process.rank in self.targets:
                    process.send_signal(self.signal)
            return
        for host in self.targets:
            if self.plugged is not None:
                lab.set_plugged(host, self.plugged)
            else:
                lab.set_link(host, change_link(lab.links[host], self.settings, self.text))


def parse_event(text: str, hosts: int, ranks: int, name: str = "--at") -> Event:
    where = f"{name} {text!r}"
    words = text.split()
    if len(words) < 2:
        raise UsageError(f"{where}: write TIME VERB …")
    at = parse_duration(words[0], f"{where} time")
    verb, arguments = words[1], words[2:]
    if verb in _LINK_VERBS:
        return _link_event(at, text, verb, arguments, hosts, where)
    if verb in _PLUG_VERBS:
        _expect(arguments, 1, "HOSTS", where)
        targets = parse_hosts(arguments[0], hosts, where)
        return Event(at, text, tuple(targets), plugged=_PLUG_VERBS[verb])
    if verb in _RANK_VERBS or verb == "signal":
        expected = "RANKS NAME" if verb == "signal" else "RANKS"
        _expect(arguments, len(expected.split()), expected, where)
        targets = parse_hosts(arguments[0], ranks, where, "rank")
        number = _RANK_VERBS.get(verb) or _signal_number(arguments[1], where)
        return Event(at, text, tuple(targets), signal=number)
    known = " ".join([*_LINK_VERBS, *_PLUG_VERBS, *_RANK_VERBS, "signal"])
    raise UsageError(f"{where}: verb {verb!r} is unknown (known: {known})")


def _expect(arguments: list[str], count: int, what: str, where: str) -> None:
    if len(arguments) != count:
        raise UsageError(f"{where}: expected {what} after the verb")


def _signal_number(text: str, where: str) -> signal.Signals:
    name = text.upper()
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError as error:
        raise UsageError(f"{where}: signal {text!r} is unknown") from error


def _link_event(
    at: float, text: str, verb: str, arguments: list[str], hosts: int, where: str
) -> Event:
    if len(arguments) not in (1, 2):
        raise UsageError(f"{where}: expected [HOSTS] VALUE after the verb")
    targets = parse_hosts(arguments[0] if len(arguments) == 2 else "all", hosts, where)
    key = _LINK_VERBS[verb]
    settings = tuple(arguments[-1].split(",")) if key is None else (f"{key}={arguments[-1]}",)
    change_link(LinkOptions(), settings, where)  # checks the value
    return Event(at, text, tuple(targets), settings=settings)


def parse_events(texts: Iterable[str], path: str | None, hosts: int, ranks: int) -> list[Event]:
    """All events in order of time; equal times keep the order in which they were written."""
    events = [parse_event(text, hosts, ranks) for text in texts]
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--events {path}: {error}") from error
        for number, line in enumerate(lines, 1):
            text = line.partition("#")[0].strip()
            if text:
                name = f"--events {path} line {number}"
                events.append(parse_event(text, hosts, ranks, name))
    return sorted(events, key=lambda event: event.at_seconds)
