"""Whether the sources still compile some at a time, as ./dev demo compiles them from nothing.

Two files of one room may not give two things of their own the same name. Only the front end runs:
warnings and code are the ordinary build's business.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def complaints(row: dict[str, str]) -> str:
    """What the compiler says against one batch of sources."""
    words = shlex.split(row["command"])
    output = words.index("-o")
    del words[output : output + 2]
    if Path(words[0]).name == "ccache":
        del words[0]
    done = subprocess.run(
        [*words, "-fsyntax-only", "-w"],
        cwd=row["directory"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr if done.returncode else ""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compiles the batches of a SCANT_UNITY build.")
    parser.add_argument("--build", type=Path, required=True, help="configured with SCANT_UNITY")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    rows = json.loads((arguments.build / "compile_commands.json").read_text())
    batches = [row for row in rows if "/Unity/" in row["file"]]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = [text for text in pool.map(complaints, batches) if text]
    print("".join(found), end="")
    print(f"{len(batches)} batches, {len(found)} do not compile")
    return 1 if found or not batches else 0


if __name__ == "__main__":
    sys.exit(main())
