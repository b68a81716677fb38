"""What `scant serve`, `run` and `chat` say to a user who has got something wrong, and to Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted_engine import ScriptedEngine

from scant import cli
from scant.serve import run_cli
from scant.serve.engine import Token

pytest.importorskip("tokenizers", reason="tokenizers is not installed")


@pytest.mark.parametrize("command", [["serve"], ["run", "hello"], ["chat"]])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "nothing: No such file or directory"),
        ("", "is a folder: scant pack makes a file of a model's folder"),
        ("text", "neither a packed file nor GGUF"),
        ("empty", "neither a packed file nor GGUF"),
    ],
)
def test_a_file_that_is_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], name: str, words: str
) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_text("")
    name_of, *rest = command
    assert cli.main([name_of, str(tmp_path / name), *rest]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith(f"scant {name_of}: ") and said.count("\n") == 1


def test_ctrl_c_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_cli, "main", main)
    assert cli.main(["run", "x", "y"]) == 130


def test_ctrl_c_in_an_answer_tells_how_fast_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted(ScriptedEngine):
        def poll(self, timeout_s: float) -> list[Token]:
            if self.requests[0].sent >= 2:
                raise KeyboardInterrupt
            return super().poll(timeout_s)

    engine = Interrupted("one two")
    assert run_cli.main(["x.scp", "hello"], lambda _: engine) == 130
    said = capsys.readouterr()
    assert said.out == "on …\n"
    assert said.err.startswith("2 tokens: ")
    assert engine.cancelled == [0]
