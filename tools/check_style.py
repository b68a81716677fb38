"""Rules of size that no linter has: lines of 100 columns, files of 500 lines, functions of 70.

A longer file or function must say why: "Long:" in the head comment of the file (its first 15
lines) permits both. Every C++ and Python source starts with a comment or docstring; x.cc may leave
that to x.h.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS_MAX = 100
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
HEAD_LINES = 15
# A brace that opens a body: ends a line that is no type, namespace, initialiser or control flow.
NOT_A_FUNCTION = re.compile(
    r"^\s*(namespace|class|struct|enum|union|extern|if|else|for|while|switch|do|try|catch|case)\b"
)


def python_functions(text: str) -> list[tuple[str, int, int]]:
    """(name, first line, lines) of each function."""
    return [
        (node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def without_comments(text: str) -> str:
    """C++ text with comments and literals blanked, lines kept."""
    pattern = re.compile(
        r"//[^\n]*|/\*.*?\*/|R\"(\w*)\(.*?\)\1\"|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'",
        re.DOTALL,
    )
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def cpp_functions(text: str) -> list[tuple[str, int, int]]:
    """(name, first line, lines) of each function body, found by its braces.

    A body is a brace pair whose opening follows ")" and qualifiers at the depth of a namespace or
    class; lambdas and blocks inside count as part of the function around them.
    """
    found = []
    lines = without_comments(text).splitlines()
    stack: list[tuple[str, str, int]] = []  # kind of brace, name, line
    head = ""
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("#"):
            continue
        for character in line:
            if character == "{":
                inside = any(kind == "function" for kind, _, _ in stack)
                kind = "block"
                if not inside and "(" in head and not NOT_A_FUNCTION.match(head):
                    kind = "function"
                name = re.search(r"([\w:~]+)\s*\(", head)
                stack.append((kind, name[1] if name else "?", number))
                head = ""
            elif character == "}":
                if stack:
                    kind, label, first = stack.pop()
                    if kind == "function":
                        found.append((label, first, number - first + 1))
                head = ""
            elif character == ";":
                head = ""
            else:
                head += character
        head += " "
    return found


def problems_of(path: Path) -> list[str]:
    """One sentence for each broken rule of one file."""
    text = path.read_text()
    lines = text.splitlines()
    name = path.relative_to(ROOT)
    problems = [
        f"{name}:{number}: {len(line)} columns, at most {COLUMNS_MAX}"
        for number, line in enumerate(lines, 1)
        if len(line) > COLUMNS_MAX and "http" not in line
    ]
    if not lines:
        return problems
    first = next((line for line in lines if line.strip() and not line.startswith("#!")), "")
    told_in_header = path.suffix == ".cc" and path.with_suffix(".h").exists()
    if not first.startswith(("//", "# ", '"""', 'r"""')) and not told_in_header:
        problems.append(f"{name}:1: no comment at the head says what this file is for")
    if any("Long:" in line for line in lines[:HEAD_LINES]):
        return problems
    if len(lines) > FILE_LINES_MAX:
        problems.append(f"{name}: {len(lines)} lines, at most {FILE_LINES_MAX}")
    functions = python_functions(text) if path.suffix == ".py" else cpp_functions(text)
    problems += [
        f"{name}:{line}: {label} has {count} lines, at most {FUNCTION_LINES_MAX}"
        for label, line, count in functions
        if count > FUNCTION_LINES_MAX
    ]
    return problems


def main() -> int:
    """Checks every C++ and Python file that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    command += ["--", "*.cc", "*.h", "*.py"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = sorted(path for name in set(names.splitlines()) if (path := ROOT / name).is_file())
    problems = [problem for path in paths for problem in problems_of(path)]
    for problem in problems:
        print(problem)
    print(f"{len(paths)} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
