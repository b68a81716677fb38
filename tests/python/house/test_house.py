"""The programs that guard the repository: documents, results of tests, sizes of functions."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


def load(name: str) -> ModuleType:
    """A program of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f"house_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


check_docs = load("check_docs")
check_style = load("check_style")
test_summary = load("test_summary")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """An empty git checkout."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def run_check(root: Path, *what: str) -> subprocess.CompletedProcess[str]:
    """Runs check_docs.py on another root."""
    command = [sys.executable, str(ROOT / "tools/check_docs.py"), *what, "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("link", "word"),
    [
        ("[a](b.md)", ""),
        ("[a](b.md#second-heading)", ""),
        ("[a](b.md#twice-1)", ""),
        ("[a](#top)", ""),
        ("[a](https://example.org/none)", ""),
        ("`[a](none.md)`", ""),
        ("[a](none.md)", "none.md does not exist"),
        ("[a](b.md#none)", "no heading '#none'"),
        ("[a](#none)", "no heading '#none'"),
        ("![a](none.svg)", "none.svg does not exist"),
        ("[a](../outside.md)", "leads out of the repository"),
        ('<img src="none.png">', "none.png does not exist"),
        ("[a]: none.md", "none.md does not exist"),
    ],
)
def test_links(checkout: Path, link: str, word: str) -> None:
    """Links and anchors resolve or are named with their line."""
    (checkout / "b.md").write_text("# B\n\n## Second `heading`!\n\n## Twice\n\n## Twice\n")
    (checkout / "a.md").write_text(f"# Top\n\n{link}\n\n```text\n[a](not/a/link.md)\n```\n")
    done = run_check(checkout, "links")
    assert done.returncode == (1 if word else 0), done.stderr
    assert word in done.stderr
    if word:
        assert "a.md:3" in done.stderr


@pytest.mark.parametrize(
    ("block", "good", "shown"),
    [
        ("```sh\ntouch ran\n```", True, "ran"),
        ("```console\n$ touch ran\nfalse\n```", True, "ran"),
        ("```sh env=NAME=ran\ntouch $NAME\n```", True, "ran"),
        ("```sh\nfalse\ntouch ran\n```", False, ""),
        ('```sh skip="two machines"\nfalse\n```', True, ""),
        ("```python\nfalse\n```", True, ""),
        ("```sh timeout=1\nsleep 60\n```", False, ""),
        ("```sh long\nfalse\n```", True, ""),
        ("```sh whatever=1\ntouch ran\n```", False, ""),
        ("```sh\ntouch ran\n", False, ""),
    ],
)
def test_commands(checkout: Path, block: str, good: bool, shown: str) -> None:
    """Blocks run as a reader would run them; tags are obeyed, unknown ones refused."""
    (checkout / "README.md").write_text(f"# Top\n\n{block}\n")
    done = run_check(checkout, "commands")
    assert (done.returncode == 0) == good, done.stdout + done.stderr
    assert (checkout / "ran").exists() == bool(shown)
    if "skip=" in block:
        assert "two machines" in done.stdout
    if " long" in block:
        assert "./dev check --long" in done.stdout
        done = run_check(checkout, "commands", "--long")
        assert done.returncode != 0


def write_results(folder: Path) -> None:
    """Results of a C++ program that passed, one that crashed, a plain one, and of pytest."""
    cpp = folder / "dev"
    cpp.mkdir(parents=True)
    (cpp / "ctest.xml").write_text(
        "<testsuite>"
        '<testcase name="good_test" status="run"/>'
        '<testcase name="crash_test" status="fail"><failure message=""/></testcase>'
        '<testcase name="plain" status="run"/>'
        "</testsuite>"
    )
    (cpp / "good_test.xml").write_text(
        '<testsuites><testsuite name="S">'
        '<testcase name="a" classname="S" status="run" result="completed"/>'
        '<testcase name="b" classname="S" status="run" result="skipped">'
        '<skipped message="x.cc:7&#10;no such CPU"/></testcase>'
        "</testsuite></testsuites>"
    )
    (folder / "python").mkdir()
    (folder / "python/pytest.xml").write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.t" name="ok"/>'
        '<testcase classname="tests.t" name="gpu"><skipped message="no GPU"/></testcase>'
        "</testsuite></testsuites>"
    )


def summarise(folder: Path, allowed: str) -> tuple[int, list[str]]:
    """Exit status and lines of test_summary.py."""
    (folder.parent / "allowed.txt").write_text(allowed)
    command = [sys.executable, str(ROOT / "tools/test_summary.py"), str(folder)]
    command += ["--allowed-skips", str(folder.parent / "allowed.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout.splitlines()


def test_summary_counts_cases(tmp_path: Path) -> None:
    """Cases are counted one by one; a crash without a failed case is one failure."""
    folder = tmp_path / "results"
    write_results(folder)
    status, lines = summarise(folder, "* 9 whatever\n")
    assert status == 1
    assert lines[-1] == "3 passed, 1 failed, 2 skipped"
    assert "skipped: dev:good_test.S.b: no such CPU" in lines
    assert any(line.startswith("failed:  dev:crash_test") for line in lines)


@pytest.mark.parametrize(
    ("allowed", "status"),
    [
        ("*:good_test.S.b 1 CPU\npython:tests.t.gpu 1 GPU\n", 0),
        ("* 2 any\n", 0),
        ("* 1 any\n", 1),
        ("# nothing\n", 1),
    ],
)
def test_summary_allows_only_listed_skips(tmp_path: Path, allowed: str, status: int) -> None:
    """A skip that no line covers, or one too many, is a failure of its own."""
    folder = tmp_path / "results"
    write_results(folder)
    (folder / "dev/ctest.xml").write_text(
        '<testsuite><testcase name="good_test" status="run"/></testsuite>'
    )
    got, lines = summarise(folder, allowed)
    assert got == status, lines
    assert lines[-1] == "2 passed, 0 failed, 2 skipped"


def test_summary_of_nothing_fails(tmp_path: Path) -> None:
    """No result is no success."""
    (tmp_path / "results").mkdir()
    status, lines = summarise(tmp_path / "results", "")
    assert status == 1
    assert lines[-1] == "0 passed, 0 failed, 0 skipped"


def test_function_sizes() -> None:
    """Bodies are measured whole, with blocks, lambdas and strings with braces inside."""
    text = """// Head.
namespace a {
struct B {
  int c() const { return 1; }
};
void d(int e) {
  if (e) {
    auto f = [](int g) { return g; };
  }
  const char* h = "}";
}
}  // namespace a
"""
    assert check_style.cpp_functions(text) == [("c", 4, 1), ("d", 6, 6)]
    assert check_style.python_functions("def a():\n    b = 1\n    return b\n") == [("a", 1, 3)]


def test_anchor_of_heading() -> None:
    """The rule by which a heading becomes an anchor."""
    assert check_docs.slug("What `a_b` costs: α–β, 2 steps") == "what-a_b-costs-αβ-2-steps"
