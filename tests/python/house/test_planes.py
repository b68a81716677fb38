"""A build without a plane: what needs it says so in one line; what does not goes on."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import scant
from scant import _scant, communicator, planes, store
from scant import cli as command
from scant.journal import cli

LACKING = (
    "this build of scant lacks the plane 'journal'; it has: sync. "
    "Build with -DSCANT_PLANES='sync;journal'"
)


@pytest.fixture
def built_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the extension look like one of these planes."""

    def look(*names: str) -> None:
        monkeypatch.setattr(planes, "_scant", types.SimpleNamespace(planes=names))

    return look


def test_this_build_has_every_plane() -> None:
    assert _scant.planes == ("sync", "journal", "serve")
    for plane in _scant.planes:
        planes.need(plane)


def test_an_absent_plane_is_named_with_those_that_are_there(built_with: Any) -> None:
    built_with("sync")
    planes.need("sync")
    with pytest.raises(scant.Unsupported) as found:
        planes.need("journal")
    assert str(found.value) == LACKING
    built_with()
    with pytest.raises(scant.Unsupported, match=r"it has: none\. .*-DSCANT_PLANES='sync'$"):
        planes.need("sync")


def test_what_users_call_asks_for_its_plane(built_with: Any, tmp_path: Path) -> None:
    built_with("journal")
    with pytest.raises(scant.Unsupported, match="lacks the plane 'sync'"):
        communicator.Communicator(None, 0, 1)
    with pytest.raises(scant.Unsupported, match="lacks the plane 'sync'"):
        getattr(store, "DirectoryStore")  # noqa: B009 - the access is what is tested
    pytest.importorskip("torch")
    from scant.torch import WrapOptions

    with pytest.raises(scant.Unsupported, match="lacks the plane 'sync'"):
        WrapOptions()
    built_with("sync")
    with pytest.raises(scant.Unsupported, match="lacks the plane 'journal'"):
        scant.Journal(tmp_path / "journal")


def test_the_command_says_so_too(built_with: Any, capsys: pytest.CaptureFixture[str]) -> None:
    built_with("sync")
    assert cli.main(["ls", "anywhere"]) == 2
    assert capsys.readouterr().err == f"scant journal: {LACKING}\n"


def test_commands_of_models_say_so_too(built_with: Any, capsys: pytest.CaptureFixture[str]) -> None:
    built_with("sync")
    for words in (["pack", "a", "b"], ["unpack", "a", "b", "--to", "hf"], ["ls", "a"]):
        assert command.main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"scant {words[0]}: this build of scant lacks the plane 'serve'; ")
