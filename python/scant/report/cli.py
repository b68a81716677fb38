"""``scant report RUN.json -o page.html``: draws the page of a recorded demo again."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="scant report", description="Draw the HTML page of a recorded `./dev demo`."
    )
    parser.add_argument("run", help="demo.json in the folder that the demo wrote")
    parser.add_argument("-o", "--output", default="report.html")
    arguments = parser.parse_args(argv)
    from scant.demo.summary import Run, build_page

    try:
        with pathlib.Path(arguments.run).open(encoding="utf-8") as file:
            recorded = json.load(file)
        runs = [Run.from_json(entry) for entry in recorded["runs"]]
        build_page(runs, recorded["setting"]).write(arguments.output)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"scant report: {arguments.run}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(arguments.output)
    return 0
