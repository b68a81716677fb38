"""``scant report RUN.json -o page.html``: draws the page of a recorded demo again."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from scant.errors import reason
from scant.report.page import Page

# What indexing, arithmetic and formatting raise on values of the wrong shape.
_WRONG_SHAPE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="scant report", description="Draw the HTML page of a recorded `./dev demo`."
    )
    parser.add_argument("run", help="demo.json in the folder that the demo wrote")
    parser.add_argument("-o", "--output", default="report.html", help="(report.html)")
    arguments = parser.parse_args(argv)
    at = arguments.run
    try:
        page = _draw(_read(at), at)
        at = arguments.output
        page.write(at)
    except OSError as error:
        print(f"scant report: {at}: {reason(error)}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"scant report: {error}", file=sys.stderr)
        return 1
    print(arguments.output)
    return 0


def _read(path: str) -> Any:
    """The file as JSON; ValueError in a person's words."""
    expected = "expected the demo.json that ./dev demo writes"
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file; {expected}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = f"not JSON (line {error.lineno}: {error.msg})"
        if error.msg == "Extra data":
            what = f"more than one JSON value (the second in line {error.lineno})"
        raise ValueError(f"{path}: {what}; {expected}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: JSON nested too deeply; {expected}") from error


def _draw(recorded: Any, path: str) -> Page:
    from scant.demo.summary import Demo, build_page

    try:
        return build_page(Demo.from_json(recorded))
    except _WRONG_SHAPE as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: JSON, but not a recorded demo ({what})") from error
