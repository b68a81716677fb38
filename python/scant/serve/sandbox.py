"""Jinja's immutable sandbox, narrowed to what templates of chats use, with every size bounded.

Jinja's own sandbox keeps a template from the program around it, but not from taking all memory or
all time. Here each text and list that a template makes is measured first, and each round of a loop
and each call looks at a clock. Needs jinja2: imported by template.py alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Template, nodes, pass_environment
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Environment
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["Sandbox", "TooMuchError"]

_SIZE_MAX = 1 << 23  # characters of a text, elements of a list
_RANGE_MAX = 10_000
_INDENT_MAX = 16
_NUMBER_MAX = 1 << 64

_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "reverse", "round", "safe", "select", "selectattr", "sort", "string", "striptags", "sum",
    "title", "trim", "truncate", "unique", "upper", "wordcount",
)  # fmt: skip
_METHODS_OF_TEXT = {
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal",
    "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip",
    "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition",
    "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
}  # fmt: skip


class TooMuchError(Exception):
    """A limit of a template. It cannot catch this: Jinja has no word for it."""


class _Compiler(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        """`a ~ b` is no operator to the sandbox: let it be measured as well."""
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """`{% generation %}` marks what a training learns from; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """For one template; `check_time` raises when it has run too long."""

    intercepted_binops = frozenset(("+", "*", "%", "**"))
    code_generator_class = _Compiler

    def __init__(self, check_time: Callable[[], None]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        self._check_time = check_time
        self.globals = {
            "dict": dict,
            "namespace": self.globals["namespace"],
            "range": _range,
        }
        self.filters = {name: self.filters[name] for name in _FILTERS}
        self.filters.update(join=_join, replace=_replace, tojson=_to_json)

    def compiled(self, source: str) -> Template:
        """The template. Each round of a loop and each call of a macro looks at the clock."""
        tree = self.parse(source)
        looks: tuple[type[Any], ...] = (nodes.For, nodes.Macro, nodes.CallBlock)
        found: Any
        for found in list(tree.find_all(looks)):
            step = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
            look = nodes.ExprStmt(step, lineno=found.lineno)
            look.set_environment(self)
            look.set_lineno(found.lineno, override=True)
            found.body.insert(0, look)
        return self.from_string(tree)

    def step(self) -> None:
        """Called by what `compiled` has put in."""
        self._check_time()

    def concatenated(self, parts: Sequence[Any]) -> str:
        """What `~` makes."""
        return _joined("", parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self._check_time()
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise TooMuchError(f"the operator {operator} is not for templates of chats")
        if operator == "+":
            _check_size(_size_of(left) + _size_of(right))
        if operator == "*":
            numbers = [abs(one) for one in (left, right) if isinstance(one, int)]
            if len(numbers) == 2 and max(numbers) > _NUMBER_MAX:
                raise TooMuchError("a number of more than 64 bits")
            for many, times in ((left, right), (right, left)):
                _check_size(_size_of(many) * (times if isinstance(times, int) else 0))
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and callable(value) and attr not in _METHODS_OF_TEXT:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Any:
        """Jinja would let `format` through in a form that cannot leak, but can fill memory."""
        if getattr(value, "__name__", "") in ("format", "format_map"):
            raise TooMuchError("format is not for templates of chats")
        return None

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._check_time()
        own = getattr(obj, "__self__", None)
        if isinstance(own, str) and obj.__name__ == "replace":
            return _replace(own, *args, **kwargs)
        if isinstance(own, str) and obj.__name__ == "join":
            return _joined(own, *args, **kwargs)
        return super().call(context, obj, *args, **kwargs)


def _check_size(size: float) -> None:
    if size > _SIZE_MAX:
        raise TooMuchError(f"a value of more than {_SIZE_MAX:,} characters or elements")


def _size_of(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def _range(*bounds: int) -> range:
    found = range(*bounds)
    if len(found) > _RANGE_MAX:
        raise TooMuchError(f"a range of more than {_RANGE_MAX:,} numbers")
    return found


def _replace(text: Any, old: str, new: str, *most: Any) -> str:
    text = str(text)
    _check_size(len(text) + text.count(old) * len(new))
    replaced: str = text.replace(old, new, *most)
    return replaced


def _joined(between: str, parts: Any) -> str:
    found = [str(part) for part in parts]
    _check_size(sum(map(len, found)) + len(between) * len(found))
    return between.join(found)


@pass_environment
def _join(
    environment: Environment, parts: Any, between: str = "", attribute: str | None = None
) -> str:
    if attribute is not None:
        parts = [environment.getattr(part, attribute) for part in parts]
    return _joined(str(between), parts)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    """As models were trained with: letters stay, nothing is escaped for HTML."""
    if indent is not None and not 0 <= indent <= _INDENT_MAX:
        raise TooMuchError(f"an indent beyond {_INDENT_MAX}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
