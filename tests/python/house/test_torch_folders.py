"""The folders of scant.torch stand on each other in one order: backend, gradient, checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TORCH = Path(__file__).resolve().parents[3] / "python" / "scant" / "torch"
ORDER = ("backend", "gradient", "checkpoint")


@pytest.mark.parametrize("folder", ORDER)
def test_nothing_is_imported_from_above(folder: str) -> None:
    above = ORDER[ORDER.index(folder) + 1 :]
    files = sorted((TORCH / folder).glob("*.py"))
    assert len(files) > 5
    for file in files:
        imported = set(re.findall(r"(?:from|import) scant\.torch\.(\w+)", file.read_text()))
        assert imported <= set(ORDER), file
        assert not imported & set(above), file


def test_every_module_is_in_a_folder() -> None:
    assert [file.name for file in TORCH.glob("*.py")] == ["__init__.py"]
    assert sorted(path.parent.name for path in TORCH.glob("*/__init__.py")) == sorted(ORDER)
