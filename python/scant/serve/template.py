"""A model's chat template: messages become the text of a prompt.

The template is a program that came with a model, so it runs in a narrow sandbox with limits
(sandbox.py). Any thread may render.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from scant.errors import InvalidArgument
from scant.serve.text import need

__all__ = ["ChatTemplate", "TemplateError"]

TEMPLATE_CHARACTERS_MAX = 1 << 20
_OUTPUT_CHARACTERS_MAX = 1 << 23
_SECONDS_MAX = 2.0
_MESSAGE_CHARACTERS_MAX = 300
_DATE_CHARACTERS_MAX = 100


class TemplateError(InvalidArgument):
    """The template refused the messages, or could not be rendered."""


class _Budget(threading.local):
    """Until when the template of this thread may run."""

    end_s: float = 0.0


class ChatTemplate:
    """A template, compiled. Raises :class:`TemplateError` where it cannot be."""

    def __init__(
        self,
        source: str,
        *,
        bos: str | None = None,
        eos: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if len(source) > TEMPLATE_CHARACTERS_MAX:
            raise TemplateError(f"chat template: longer than {TEMPLATE_CHARACTERS_MAX} characters")
        need("jinja2")
        from scant.serve import sandbox

        self._clock = clock
        self._budget = _Budget()
        self._names = {"bos_token": bos or "", "eos_token": eos or ""}
        environment = sandbox.Sandbox(self._check_time)
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        try:
            self._template = environment.compiled(source)
        except Exception as error:  # whatever Jinja's compiler makes of a stranger's text
            raise TemplateError(f"chat template: {_told(error)}") from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, generation: bool = True, **more: Any
    ) -> str:
        """The prompt of these messages; `generation` adds what an answer begins with."""
        self._budget.end_s = self._clock() + _SECONDS_MAX
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(
                messages=messages, add_generation_prompt=generation, **self._names, **more
            ):
                size += len(part)
                if size > _OUTPUT_CHARACTERS_MAX:
                    raise TemplateError(f"it prints more than {_OUTPUT_CHARACTERS_MAX:,} letters")
                parts.append(part)
        except Exception as error:  # a template is a program: anything can go wrong in it
            raise TemplateError(f"chat template: {_told(error)}") from error
        return "".join(parts)

    def _check_time(self) -> None:
        if self._clock() > self._budget.end_s:
            raise TemplateError(f"it ran for more than {_SECONDS_MAX:g} s")


def _told(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it calls itself too deeply"
    text = str(error) or type(error).__name__
    return text if len(text) <= _MESSAGE_CHARACTERS_MAX else text[:_MESSAGE_CHARACTERS_MAX] + "…"


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    if len(format) > _DATE_CHARACTERS_MAX:
        raise TemplateError(f"the form of a date has more than {_DATE_CHARACTERS_MAX} characters")
    return datetime.datetime.now().astimezone().strftime(format)
