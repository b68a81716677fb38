"""Reads BurstGPT's and Azure's CSV and Mooncake's JSON lines, one row at a time.

A file's format is recognised by its first line. Memory does not depend on the number of rows.
A row that cannot be read is counted, and the first ones are named; it never ends the run unless
more than a stated share of rows is damaged.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

from scant.errors import Corrupt, InvalidArgument

__all__ = ["Request", "Selection", "Trace"]

_TOKENS_MAX = 10_000_000  # of a prompt or an answer: more is damage
_SECONDS_MAX = 1e11  # some 3,000 years
_BLOCKS_MAX = 1 << 16
_LINE_MAX = 1 << 20  # characters
_NAMED_MAX = 5  # damaged rows that are told with their reason
_JUDGED_FROM = 1000  # rows: of fewer a share says little before the end


class Request(NamedTuple):
    """One row: when it came, and how long it and its answer were."""

    at_s: float
    prompt_tokens: int
    answer_tokens: int
    model: str = ""
    log_type: str = ""
    blocks: tuple[int, ...] = ()  # names of the prompt's blocks of 512 tokens; equal: same text


@dataclass(frozen=True)
class Selection:
    """Which rows are wanted. Times are seconds after the trace's first row."""

    model: str | None = None
    log_type: str | None = None
    from_s: float = 0.0
    duration_s: float | None = None
    limit: int | None = None


_Parse = Callable[[str], Request]


class Trace:
    """The rows of a file; iterate once. The counts are those of the rows read so far."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        selection: Selection | None = None,
        *,
        strict: bool = False,
        damaged_max: float = 0.01,
    ) -> None:
        self.path = os.fspath(path)
        self.rows = 0  # behind the head, damaged ones included
        self.damaged = 0
        self.failed = 0  # rows that tell of a failure: their answer has no token
        self.named: list[str] = []
        self._selection = selection or Selection()
        self._strict = strict
        self._damaged_max = damaged_max
        with self._open() as file:
            head = file.readline(_LINE_MAX)
        self.format, self.resolution_s, self._parse, self._has_head = _recognised(head, self.path)
        if self._selection.model is not None and self.format != "BurstGPT":
            raise InvalidArgument(f"{self.path}: a trace of {self.format} names no models")
        if self._selection.log_type is not None and self.format != "BurstGPT":
            raise InvalidArgument(f"{self.path}: a trace of {self.format} has no log types")

    def _open(self) -> IO[str]:
        return open(self.path, encoding="utf-8", errors="replace", newline="\n")  # noqa: PTH123

    def __iter__(self) -> Iterator[Request]:
        wanted = self._selection
        return itertools.islice(self._selected(), wanted.limit)

    def _selected(self) -> Iterator[Request]:
        wanted = self._selection
        end_s = None if wanted.duration_s is None else wanted.from_s + wanted.duration_s
        first_s: float | None = None
        for request in self._all():
            if first_s is None:
                first_s = request.at_s
            at_s = request.at_s - first_s
            if end_s is not None and at_s >= end_s:
                return
            if request.answer_tokens == 0:
                self.failed += 1
                continue
            if at_s < wanted.from_s:
                continue
            if wanted.model is not None and request.model != wanted.model:
                continue
            if wanted.log_type is not None and request.log_type != wanted.log_type:
                continue
            yield request._replace(at_s=at_s)

    def _all(self) -> Iterator[Request]:
        last_s = float("-inf")
        with self._open() as file:
            if self._has_head:
                file.readline(_LINE_MAX)
            number = int(self._has_head)
            while line := file.readline(_LINE_MAX):
                number += 1
                if line.isspace():
                    continue
                self.rows += 1
                try:
                    if not line.endswith("\n") and len(line) >= _LINE_MAX:
                        while (rest := file.readline(_LINE_MAX)) and not rest.endswith("\n"):
                            pass
                        raise ValueError(f"longer than {_LINE_MAX} characters")
                    request = self._parse(line)
                    if request.at_s < last_s:
                        raise ValueError("earlier than the row before")
                except (ValueError, RecursionError) as error:
                    self._damage(number, str(error))
                    continue
                last_s = request.at_s
                yield request
        self._judge()

    def _damage(self, number: int, why: str) -> None:
        text = f"{self.path}, line {number}: {why}"
        if self._strict:
            raise Corrupt(text)
        self.damaged += 1
        if len(self.named) < _NAMED_MAX:
            self.named.append(text)
        if self.rows >= _JUDGED_FROM:
            self._judge()

    def _judge(self) -> None:
        if self.damaged > self._damaged_max * self.rows:
            raise Corrupt(
                f"{self.path}: {self.damaged} of {self.rows} rows are damaged, more than "
                f"{self._damaged_max:.3g} of them; the first: {self.named[0]}"
            )


def _recognised(head: str, path: str) -> tuple[str, float, _Parse, bool]:
    names = [name.strip().lower() for name in head.lstrip("\ufeff").strip().split(",")]
    if {"timestamp", "request tokens", "response tokens"} <= set(names):
        return "BurstGPT", 1.0, _burstgpt(names), True
    if {"timestamp", "contexttokens", "generatedtokens"} <= set(names):
        return "Azure", 0.0, _azure(names), True
    if head.lstrip().startswith("{") and '"input_length"' in head:
        return "Mooncake", 0.0, _mooncake, False
    raise InvalidArgument(
        f"{path}: no known trace; its first line must be BurstGPT's (Timestamp, Request tokens, "
        "Response tokens), Azure's (TIMESTAMP, ContextTokens, GeneratedTokens) or an object of "
        "Mooncake's (timestamp, input_length, output_length)"
    )


def _count(text: str, what: str) -> int:
    short = text.strip()
    if short.endswith(".0"):
        short = short[:-2]
    if not (short.isascii() and short.isdigit()) or len(short) > 9 or int(short) > _TOKENS_MAX:
        raise ValueError(f"{what} is {short[:40]!r}, no count of tokens")
    return int(short)


def _time(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"the time is {text[:40]!r}, no number") from None
    if not 0 <= value <= _SECONDS_MAX:
        raise ValueError(f"the time {text[:40]!r} is out of range")
    return value


def _cells(line: str, count: int) -> list[str]:
    cells = line.rstrip("\r\n").split(",")
    if len(cells) != count:
        raise ValueError(f"{len(cells)} columns where the head has {count}")
    return cells


def _burstgpt(names: list[str]) -> _Parse:
    columns = len(names)
    time, prompt = names.index("timestamp"), names.index("request tokens")
    answer = names.index("response tokens")
    model = names.index("model") if "model" in names else None
    log_type = names.index("log type") if "log type" in names else None

    def parse(line: str) -> Request:
        cells = _cells(line, columns)
        return Request(
            _time(cells[time]),
            _count(cells[prompt], "Request tokens"),
            _count(cells[answer], "Response tokens"),
            "" if model is None else cells[model].strip(),
            "" if log_type is None else cells[log_type].strip(),
        )

    return parse


def _azure(names: list[str]) -> _Parse:
    columns = len(names)
    time, prompt = names.index("timestamp"), names.index("contexttokens")
    answer = names.index("generatedtokens")

    def parse(line: str) -> Request:
        cells = _cells(line, columns)
        whole, _, part = cells[time].strip().partition(".")
        part = part.partition("+")[0]
        try:
            moment = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.timezone.utc)
            at_s = moment.timestamp() + (float(f"0.{part}") if part else 0.0)
        except (ValueError, OverflowError):
            raise ValueError(f"the time is {cells[time][:40]!r}, no date and time") from None
        return Request(
            at_s,
            _count(cells[prompt], "ContextTokens"),
            _count(cells[answer], "GeneratedTokens"),
        )

    return parse


def _mooncake(line: str) -> Request:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg}") from None
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    found = []
    for name in ("timestamp", "input_length", "output_length"):
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e14:
            raise ValueError(f"{name} is {str(value)[:40]!r}, no number in range")
        found.append(value)
    if max(found[1:]) > _TOKENS_MAX or any(value != int(value) for value in found[1:]):
        raise ValueError("a length is no count of tokens")
    blocks = row.get("hash_ids", [])
    if not isinstance(blocks, list) or len(blocks) > _BLOCKS_MAX:
        raise ValueError("hash_ids is no list of numbers")
    if not all(type(block) is int for block in blocks):
        raise ValueError("hash_ids has what is no whole number")
    return Request(found[0] / 1e3, int(found[1]), int(found[2]), blocks=tuple(blocks))
