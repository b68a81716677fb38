"""The loop of work: what ./dev test --only selects, what clang-tidy looks at, what a step shows."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from test_house import ROOT, load

run_tidy = load("run_tidy")
select_tests = load("select_tests")

PROGRAMS = [
    select_tests.Program(name, frozenset(labels.split()), (f"src/{name}",))
    for name, labels in (
        ("codec_record_test", "codec property"),
        ("record_fuzz", "codec fuzz"),
        ("address_record_fuzz", "net sync fuzz"),
        ("net_wire_test", "net sync unit"),
        ("sim_seeds_long", "sim sync long"),
    )
]


def programs_of(only: str) -> list[str]:
    chosen = select_tests.select(only, PROGRAMS, select_tests.read_python())
    return [program.name for program in chosen.programs]


def files_of(only: str) -> set[str]:
    chosen = select_tests.select(only, PROGRAMS, select_tests.read_python())
    return {f"{path.parent.name}/{path.stem}" for path in chosen.python}


def test_only_takes_labels_before_names() -> None:
    assert programs_of("codec") == ["codec_record_test", "record_fuzz"]
    assert programs_of("net") == ["address_record_fuzz", "net_wire_test"]
    assert programs_of("sync") == ["address_record_fuzz", "net_wire_test", "sim_seeds_long"]
    assert programs_of("fuzz") == ["record_fuzz", "address_record_fuzz"]
    assert programs_of("record_fuzz") == ["record_fuzz"]
    assert programs_of("record_f") == ["record_fuzz", "address_record_fuzz"]
    assert programs_of("long") == ["sim_seeds_long"]  # by its name
    assert programs_of("python") == programs_of("nothing of this name") == []


def test_only_takes_python_tests_by_folder_or_name() -> None:
    assert files_of("net") == files_of("fuzz") == files_of("record_fuzz") == set()
    assert {"lab/test_lab_run", "lab/test_lab_parse"} < files_of("lab")
    assert all(file.startswith("lab/") for file in files_of("lab"))
    assert files_of("lab_parse") == {"lab/test_lab_parse"}
    assert files_of("only_takes_python") == {"house/test_loop"}
    # A case of a worker is a test of the file that launches it.
    assert "sync/test_collectives" in files_of("case_broadcast")
    everything = {path for files in select_tests.read_python().values() for path in files}
    assert len(files_of("python")) == len(everything)


def test_a_selection_is_lines_for_the_shell() -> None:
    chosen = select_tests.select("codec_record_test", PROGRAMS, {})
    assert chosen.lines() == ["ctest ^(codec_record_test)$", "targets src/codec_record_test"]
    lab = select_tests.select("lab", [], select_tests.read_python()).lines()
    assert lab[-1] == "package sources"
    assert select_tests.select("journal", [], select_tests.read_python()).lines()[-1] == (
        "package built"
    )


@pytest.mark.parametrize("folder", sorted(select_tests.OF_SOURCES_ALONE))
def test_tests_of_sources_alone_load_no_extension(folder: str) -> None:
    files = [str(path) for path in select_tests.read_python()[folder]]
    imports = "import sys\nsys.modules['scant._scant'] = None\n" + "\n".join(
        line
        for file in files
        for line in re.findall(
            r"^(?:from|import) scant.*?(?: \(.*?\n\)|$)", Path(file).read_text(), re.M | re.S
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    done = subprocess.run(
        ["python3", "-c", imports], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose main has sources a, b, c with their headers, changed in this order."""
    monkeypatch.setattr(run_tidy, "ROOT", tmp_path)
    git(tmp_path, "init", "-q", "-b", "main")
    for name in "abc":
        write(tmp_path, f"src/room/{name}.h", "// a header\nint value();\n")
        write(tmp_path, f"src/room/{name}.cc", f'#include "room/{name}.h"\n')
        commit(tmp_path, name)
    return tmp_path


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def commit(folder: Path, words: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", words)


def looked_at(folder: Path) -> list[str]:
    """Names of the sources that clang-tidy takes."""
    sources = sorted((folder / "src").glob("**/*.cc"))
    units = [run_tidy.Unit(source, folder, ("c++",)) for source in sources]
    return [unit.source.name for unit in run_tidy.changed_units(units)]


def test_tidy_takes_what_changed_last_on_main(
    history: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert looked_at(history) == ["c.cc", "b.cc", "a.cc"]
    monkeypatch.setattr(run_tidy, "LAST_MAX", 1)
    assert looked_at(history) == ["c.cc"]
    write(history, "src/room/a.h", "// edited\n")  # stands for the source that includes it
    assert looked_at(history) == ["a.cc"]
    commit(history, "header")
    assert looked_at(history) == ["a.cc"]
    git(history, "mv", "src/room/b.cc", "src/room/d.cc")  # moved, not changed
    commit(history, "move")
    assert looked_at(history) == ["a.cc"]


def test_tidy_takes_all_that_a_branch_changed(
    history: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_tidy, "LAST_MAX", 1)
    git(history, "checkout", "-q", "-b", "work")
    for name in "ab":
        write(history, f"src/room/{name}.cc", f'#include "room/{name}.h"\nint x;\n')
    commit(history, "both")
    write(history, "src/room/new.cc", "int y;\n")
    assert sorted(looked_at(history)) == ["a.cc", "b.cc", "new.cc"]


def in_shell(commands: str, folder: Path) -> list[str]:
    """A program that sources what ./dev sources."""
    bash = shutil.which("bash")
    assert bash is not None
    return [
        bash,
        "-c",
        f'root={folder}; cd {folder}; source "{ROOT}/tools/dev/common.sh"; {commands}',
    ]


@pytest.mark.parametrize(
    ("columns", "shown"),
    [(40, "[12/99] Building some/object.o"), (20, "[12/9..some/object.o"), (7, "")],
)
def test_a_step_fits_its_line_and_keeps_the_end(tmp_path: Path, columns: int, shown: str) -> None:
    command = in_shell(f'fit "[12/99] Building some/object.o" {columns}', tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == shown


def running_in(group: int) -> list[str]:
    """Programs of a process group; those over, that nobody has waited for yet, do not count."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, of_group = rest.split()[:3]
        if int(of_group) == group and state != "Z":
            found.append(name)
    return found


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("echo $$ >pid.partial; mv pid.partial pid\nsleep 1000\n")
    master, slave = pty.openpty()
    shell = subprocess.Popen(
        in_shell("step work 'some work' bash work", tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    said = b""
    while not (tmp_path / "pid").exists():
        said += os.read(master, 4096)  # each line of progress comes within a second
    os.killpg(shell.pid, signal.SIGINT)
    assert shell.wait(60) == 130
    os.close(master)
    group = int((tmp_path / "pid").read_text())
    assert running_in(group) == []


def assert_cpp_test(name: str) -> None:
    """PROGRAM.SUITE.CASE: a program of some room, and a suite that one of its sources has."""
    program, _, case = name.partition(".")
    lists = "".join(path.read_text() for path in ROOT.glob("src/*/CMakeLists.txt"))
    assert any(fnmatchcase(one, program) for one in re.findall(r"scant_test\((\w+)", lists))
    suite = case.partition(".")[0].rpartition("/")[2]
    assert any(f"({suite}, " in path.read_text() for path in ROOT.glob("src/**/*_test.cc"))


def test_every_allowed_skip_names_a_test_that_is_there() -> None:
    allowed = load("test_summary").read_allowed(ROOT / "tests/allowed_skips.txt")
    assert allowed
    for allowance in allowed:
        suite, _, name = allowance.pattern.partition(":")
        if suite != "python":
            assert_cpp_test(name)
            continue
        *folders, file, test = name.split(".")
        text = (ROOT.joinpath(*folders) / f"{file}.py").read_text()
        assert re.search(rf"^def {re.escape(test.rstrip('*'))}", text, re.MULTILINE) or test == "*"
