"""docs/measured.md and the README's table come from rows: what is typed by hand is noticed."""

from __future__ import annotations

import importlib
import pathlib
import sys
from typing import Any

import pytest

pytest.importorskip("torch")

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Any:
    """The tool, on copies of both documents."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    module: Any = importlib.import_module("measured")
    for name in ("README", "DOCUMENT"):
        copy = tmp_path / getattr(module, name).name
        copy.write_text(getattr(module, name).read_text())
        monkeypatch.setattr(module, name, copy)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "origin", lambda path, rows: f"{len(rows)} rows of {path.name}")
    monkeypatch.setattr(sys, "argv", ["measured.py"])
    assert module.main() == 0  # as this fixture writes them
    return module


@pytest.mark.parametrize("name", ["README", "DOCUMENT"])
def test_a_figure_typed_by_hand_is_noticed(
    name: str, measured: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["measured.py", "--check"])
    assert measured.main() == 0
    path: pathlib.Path = getattr(measured, name)
    row = next(line for line in path.read_text().splitlines() if line.startswith("| transformer"))
    path.write_text(path.read_text().replace(row, row.replace("1", "7", 1)))
    capsys.readouterr()
    assert measured.main() == 1
    told = capsys.readouterr()
    assert f"+{row}" in told.out
    assert "run python bench/measured.py" in told.err
    assert row not in path.read_text(), "a check writes nothing"


def test_a_readme_without_its_place_is_refused(measured: Any) -> None:
    measured.README.write_text("# Scant\n")
    with pytest.raises(SystemExit, match=r"README.md has no lines '<!-- figures: begin"):
        measured.main()


def test_rows_of_an_unknown_benchmark_are_refused(
    measured: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "machine").mkdir()
    (tmp_path / "machine" / "speed.jsonl").write_text("{}\n")
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="no report for speed; there are: train, convergence"):
        measured.document()
