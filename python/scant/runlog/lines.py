"""One line of a run log as an object, checked; ``docs/run_log.md`` lists kinds and fields.

What comes from a file is not trusted: every field has its type or the line is refused, and texts
lose what would steer a terminal. Fields that are absent or null are None; unknown ones are skipped.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable
from typing import Any

from scant import amounts

__all__ = [
    "VERSION",
    "Guard",
    "Line",
    "NewerVersionError",
    "Note",
    "Plan",
    "Profile",
    "Row",
    "Run",
    "Served",
    "Steps",
    "parse",
]

VERSION = 1
# Numbers that are never 0 when they are known.
UNKNOWN_AT_0 = frozenset(
    ("step_s", "predicted_s", "predicted_bytes", "plain_s", "bytes_per_s", "rho", "dense_bytes")
)
_SHOWN = 40  # characters of a wrong value that an error repeats
_TEXT_CHARACTERS_MAX = 2000
_NUMBER_MAX = 1e18  # seconds, bytes, ratios: what lies beyond, either way, was never measured


@dataclasses.dataclass(frozen=True)
class Row:
    """A plan that was looked at, and what it was predicted to cost and keep."""

    text: str = "?"
    step_s: float | None = None
    exposed_s: float | None = None
    sent_bytes: float | None = None
    kept: float | None = None
    worth: float | None = None
    last_share: float | None = None
    last_bytes: float | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """What every line has; a line of a kind that this version does not know is only that."""

    step: int
    at_s: float


@dataclasses.dataclass(frozen=True)
class Run(Line):
    """``wrap()`` was called."""

    version: int
    scant: str = "?"
    started: str = "?"
    ranks: int | None = None
    tensors: int | None = None
    elements: int | None = None
    host: str = "?"
    pid: int | None = None
    serves: str | None = None  # a server's model; a training has none
    options: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Profile(Line):
    """What a choice rests on."""

    backward_s: float | None = None
    rest_s: float | None = None
    rho: float | None = None
    alpha_s: float | None = None
    bytes_per_s: float | None = None
    contention: float | None = None
    sending_s_per_byte: float | None = None
    slowest_rank: int | None = None
    plain_s: float | None = None

    @property
    def compute_s(self) -> float | None:
        """Of a step without communication."""
        if self.backward_s is None or self.rest_s is None:
            return None
        return self.backward_s + self.rest_s


@dataclasses.dataclass(frozen=True)
class Plan(Line):
    """A choice, also when it is the plan that runs already."""

    why: str = ""
    changed: bool = True
    chosen: Row = dataclasses.field(default_factory=Row)
    others: tuple[Row, ...] = ()
    points: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Steps(Line):
    """How the steps since the last agreement went; medians."""

    steps: int | None = None
    step_s: float | None = None
    backward_s: float | None = None
    exposed_s: float | None = None
    encode_s: float | None = None
    predicted_s: float | None = None
    sent_bytes: float | None = None
    predicted_bytes: float | None = None
    dense_bytes: float | None = None
    kept: float | None = None
    residual: float | None = None
    nonfinite: int | None = None
    samples: int | None = None
    plan: str | None = None
    measuring: bool = False
    bytes_per_s: float | None = None
    rho: float | None = None

    @property
    def error(self) -> float | None:
        """Predicted ÷ measured − 1; None where nothing was predicted."""
        if self.measuring or not self.step_s or self.predicted_s is None:
            return None
        return self.predicted_s / self.step_s - 1


@dataclasses.dataclass(frozen=True)
class Guard(Line):
    """The guard acted."""

    why: str = ""
    measured_s: float | None = None
    plain_s: float | None = None
    plan: str | None = None


@dataclasses.dataclass(frozen=True)
class Note(Line):
    """Anything else worth a word."""

    text: str = ""


@dataclasses.dataclass(frozen=True)
class Served(Line):
    """A period of a server."""

    period_s: float | None = None
    connections: int | None = None
    requests: int | None = None
    refused: int | None = None
    cancelled: int | None = None
    failed: int | None = None
    running: int | None = None
    waiting: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    tokens: int | None = None
    first_s: float | None = None
    token_s: float | None = None
    kv_used: float | None = None
    preempted: int | None = None
    cpu_s: float | None = None
    rss_bytes: float | None = None
    threads: int | None = None
    threads_of_answers: int | None = None
    threads_of_prompts: int | None = None
    answers_to_plain: float | None = None
    prompts_to_plain: float | None = None
    prompt_tokens_beside: int | None = None
    useful_share: float | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Of all answers."""
        return amounts.fold(self.tokens, self.period_s)


_KINDS: dict[str, type[Line]] = {
    "run": Run,
    "profile": Profile,
    "plan": Plan,
    "served": Served,
    "steps": Steps,
    "guard": Guard,
    "note": Note,
}


class NewerVersionError(ValueError):
    """A run log all right, but of a version that is to come."""


def parse(text: bytes) -> Line:
    """A line without its end; ValueError says what is wrong with it."""
    try:
        value = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise ValueError("not JSON that can be read") from error
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is expected, got {_short(value)}")
    kind = value.get("kind")
    if not isinstance(kind, str):
        raise ValueError("no kind")
    if kind == "run":
        _check_version(value.get("version"))
    line: Line = _build(_KINDS.get(kind, Line), value)
    if line.step < 0 or not line.at_s >= 0:
        raise ValueError("step and at_s count from 0")
    return line


def _check_version(version: object) -> None:
    if isinstance(version, bool) or not isinstance(version, int):
        raise ValueError(f"version must be a whole number, got {_short(version)}")
    if version > VERSION:
        raise NewerVersionError(
            f"this log is of version {_short(version)}; this scant reads up to {VERSION}: "
            "upgrade scant"
        )
    if version < 1:
        raise ValueError(f"there is no version {_short(version)}; the first is 1")


def _build(kind: type[Any], value: dict[str, Any]) -> Any:
    found = {}
    readers = _readers(kind)
    for field in dataclasses.fields(kind):
        given = value.get(field.name)
        if field.name in UNKNOWN_AT_0 and given == 0 and given is not False:
            given = None
        if given is not None:
            try:
                found[field.name] = readers[field.name](given)
            except _WrongTypeError as error:
                raise ValueError(f"{field.name} must be {error}, got {_short(given)}") from None
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"no {field.name}")
    return kind(**found)


class _WrongTypeError(Exception):
    """Says what was expected."""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _WrongTypeError("a number")
    try:
        number = float(value)
    except OverflowError:
        return None
    if not abs(number) <= _NUMBER_MAX:
        return None
    return number if abs(number) >= 1 / _NUMBER_MAX else 0.0


def _time(value: object) -> float:
    number = _number(value)
    if number is None:
        raise _WrongTypeError("a number of seconds")
    return number


def _whole(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
        raise _WrongTypeError("a whole number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _WrongTypeError("a text")
    return clean(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _WrongTypeError("true or false")
    return value


def _row(value: object) -> Row:
    if not isinstance(value, dict):
        raise _WrongTypeError("an object")
    row: Row = _build(Row, value)
    return row


def _rows(value: object) -> tuple[Row, ...]:
    if not isinstance(value, list):
        raise _WrongTypeError("a list")
    return tuple(_row(one) for one in value)


def _shares(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise _WrongTypeError("an object")
    return {clean(name): _number(share) or 0.0 for name, share in value.items()}


def _options(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _WrongTypeError("an object")
    return {
        clean(name): clean(one if isinstance(one, str) else json.dumps(one))
        for name, one in value.items()
    }


_READERS: dict[Any, Callable[[object], Any]] = {
    int: _whole,
    float: _time,
    str: _text,
    bool: _flag,
    int | None: _whole,
    float | None: _number,
    str | None: _text,
    Row: _row,
    tuple[Row, ...]: _rows,
    dict[str, float]: _shares,
    dict[str, str]: _options,
}
_readers_of: dict[type[Any], dict[str, Callable[[object], Any]]] = {}


def _readers(kind: type[Any]) -> dict[str, Callable[[object], Any]]:
    """By field, from its annotation."""
    if kind not in _readers_of:
        hints = typing.get_type_hints(kind)
        _readers_of[kind] = {name: _READERS[hint] for name, hint in hints.items()}
    return _readers_of[kind]


def clean(text: str) -> str:
    """Without characters that would steer a terminal or a page, and not endless."""
    shown = text[:_TEXT_CHARACTERS_MAX]
    return "".join(c if c.isprintable() else "\ufffd" for c in shown)


def _short(value: object) -> str:
    try:
        text = clean(json.dumps(value))
    except (ValueError, RecursionError):
        text = "a value too long to show"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
