"""Keeps the documents true: their links resolve and the commands they show run.

``links``: every relative link of every tracked *.md leads to a file, every anchor to a heading.
``commands``: each ``sh`` or ``console`` block of README.md, CONTRIBUTING.md and docs/ is run from
the root of the checkout with .venv on PATH (in ``console`` blocks, the lines after "$ "). Words
after the language refine that and are invisible in the rendered page:

    ```sh env=SCANT_DEMO_STEPS=2      a short form of a long command
    ```sh timeout=300                 seconds; 120 unless given
    ```sh skip="needs two machines"   not run; the reason is printed
    ```sh long                        slow, and tested elsewhere: run by ./dev check --long
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

TIMEOUT_S = 120
LANGUAGES = ("sh", "bash", "shell", "console")
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})\s*(.*)$")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HTML_LINK = re.compile(r"<(?:a|img)\b[^>]*?(?:href|src)=\"([^\"]+)\"")
REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s+<?(\S+?)>?(?:\s|$)")


class BadDocumentError(Exception):
    """A document that this program cannot read."""


@dataclass
class Block:
    """A fenced block of shell commands."""

    path: Path
    line: int
    language: str
    commands: str
    environment: dict[str, str] = field(default_factory=dict)
    skip: str = ""
    long: bool = False
    timeout_s: float = TIMEOUT_S


def split_fences(text: str) -> tuple[list[tuple[int, str]], list[tuple[int, str, list[str]]]]:
    """Lines outside of fenced blocks, and the blocks as (line, information, lines)."""
    prose: list[tuple[int, str]] = []
    blocks: list[tuple[int, str, list[str]]] = []
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if fence:
            closes = match and match[1].startswith(fence) and not match[2].strip()
            if closes:
                fence = ""
            else:
                blocks[-1][2].append(line)
        elif match:
            fence = match[1]
            blocks.append((number, match[2].strip(), []))
        else:
            prose.append((number, line))
    if fence:
        raise BadDocumentError(f"line {blocks[-1][0]}: the block never ends")
    return prose, blocks


def slug(heading: str) -> str:
    """The anchor that a heading gets: lower case, words joined by "-", punctuation dropped."""
    text = LINK.sub(lambda match: match[0][match[0].index("[") + 1 : match[0].index("]")], heading)
    text = re.sub(r"[`*]", "", text).strip().lower()
    return re.sub(r" ", "-", re.sub(r"[^\w\- ]", "", text))


def anchors(text: str) -> set[str]:
    """All anchors of a document; the second heading of one name gets "-1"."""
    found: set[str] = set()
    counts: dict[str, int] = {}
    for _, line in split_fences(text)[0]:
        found.update(re.findall(r"<a\s+(?:id|name)=\"([^\"]+)\"", line))
        match = re.match(r"^#{1,6}\s+(.*?)\s*#*$", line)
        if match:
            base = slug(match[1])
            count = counts.get(base, 0)
            counts[base] = count + 1
            found.add(base if count == 0 else f"{base}-{count}")
    return found


def links(text: str) -> Iterator[tuple[int, str]]:
    """Link targets with their lines; code spans do not count."""
    for number, line in split_fences(text)[0]:
        plain = re.sub(r"`[^`]*`", "", line)
        for pattern in (LINK, HTML_LINK, REFERENCE):
            for match in pattern.finditer(plain):
                yield number, match[1]


def broken_links(root: Path, documents: list[Path]) -> list[str]:
    """One sentence for each link that leads nowhere."""
    problems = []
    for path in documents:
        for number, target in links(path.read_text()):
            if re.match(r"^[a-z][a-z0-9+.-]*:", target):
                continue
            name, _, anchor = unquote(target).partition("#")
            goal = (path.parent / name).resolve() if name else path
            where = f"{path.relative_to(root)}:{number}"
            if not goal.is_relative_to(root):
                problems.append(f"{where}: {target} leads out of the repository")
            elif not goal.exists():
                problems.append(f"{where}: {target} does not exist")
            elif anchor and goal.suffix == ".md" and anchor not in anchors(goal.read_text()):
                problems.append(f"{where}: {target}: no heading '#{anchor}'")
    return problems


def shell_blocks(path: Path) -> list[Block]:
    """The blocks of one document that hold shell commands."""
    found = []
    for number, information, lines in split_fences(path.read_text())[1]:
        words = shlex.split(information)
        if not words or words[0] not in LANGUAGES:
            continue
        if words[0] == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        block = Block(path, number, words[0], "\n".join(lines))
        for word in words[1:]:
            key, equals, value = word.partition("=")
            if word == "long":
                block.long = True
            elif key == "env" and "=" in value:
                name, _, setting = value.partition("=")
                block.environment[name] = setting
            elif key == "skip" and value:
                block.skip = value
            elif key == "timeout" and value.isdigit():
                block.timeout_s = float(value)
            else:
                raise BadDocumentError(f"line {number}: no meaning for '{word}' {equals}")
        found.append(block)
    return found


def run_block(root: Path, block: Block) -> str:
    """Runs one block; an empty string when it succeeds, else what went wrong."""
    environment = dict(os.environ, **block.environment)
    environment["PATH"] = f"{root / '.venv/bin'}:{environment['PATH']}"
    environment.pop("SCANT_DEV_LOCKED", None)
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", block.commands],
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=block.timeout_s)
        problem = f"exit {process.returncode}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        problem = f"not done after {block.timeout_s:.0f} s"
    except BaseException:  # Ctrl-C does not reach another session
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return f"{problem}\n{output[-4000:]}" if problem else ""


def run_commands(root: Path, documents: list[Path], only: str, long: bool) -> list[str]:
    """Runs all blocks in order, printing each; the problems."""
    problems = []
    ran = skipped = 0
    for path in documents:
        for block in shell_blocks(path):
            where = f"{path.relative_to(root)}:{block.line}"
            if only and only not in where:
                continue
            shown = block.commands.strip().replace("\n", "; ")
            why_not = block.skip
            if block.long and not long:
                why_not = "slow: ./dev check --long runs it"
            if why_not:
                skipped += 1
                print(f"  skipped  {where}: {shown} ({why_not})", flush=True)
                continue
            begin = time.monotonic()
            problem = run_block(root, block)
            ran += 1
            word = "FAILED" if problem else "ok"
            print(f"  {word:8} {where}: {shown} ({time.monotonic() - begin:.1f} s)", flush=True)
            if problem:
                problems.append(f"{where}: {problem}")
    print(f"  {ran} blocks run, {skipped} skipped, {len(problems)} failed")
    return problems


def tracked_documents(root: Path) -> list[Path]:
    """Markdown files that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return sorted(path for name in names.splitlines() if (path := root / name).is_file())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Checks links and commands of the documents.")
    parser.add_argument("what", choices=["links", "commands"])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--only", default="", help="part of FILE:LINE")
    parser.add_argument("--long", action="store_true", help="blocks marked as long, too")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    documents = tracked_documents(root)
    try:
        if arguments.what == "links":
            problems = broken_links(root, documents)
        else:
            shown = [
                path
                for path in documents
                if path.parent == root or path.is_relative_to(root / "docs")
            ]
            problems = run_commands(root, shown, arguments.only, arguments.long)
    except BadDocumentError as error:
        problems = [str(error)]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
