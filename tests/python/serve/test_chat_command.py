"""`scant chat`: an answer ends, whatever the model would go on with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from model_folders import folder

from scant.serve import chat_cli

pytest.importorskip("tokenizers", reason="tokenizers is not installed")


def test_an_answer_has_at_most_so_many_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from scant import cli

    file = tmp_path / "a.scp"
    assert cli.main(["pack", str(folder(tmp_path / "model", "llama", "F32")), str(file)]) == 0
    lines: Iterator[str] = iter(["abc"])

    def read(_: str) -> str:
        for line in lines:
            return line
        raise EOFError

    capsys.readouterr()
    assert chat_cli.main([str(file), "--max-tokens", "3", "--threads", "1"], read=read) == 0
    told = capsys.readouterr()
    assert "(3 tokens: " in told.err and " …\n" in told.out
