"""A server's log, as `scant top` and `scant explain` tell it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scant import cli
from scant.runlog.lines import Served, parse

RUN = {
    "kind": "run", "step": 0, "at_s": 0.0, "version": 1, "scant": "0.1.0",
    "started": "2026-03-02T09:15:04+00:00", "host": "h", "pid": 7, "serves": "small",
    "options": {"address": "127.0.0.1:8000"},
}  # fmt: skip
PERIOD = {
    "kind": "served", "step": 40, "at_s": 10.0, "period_s": 10.0, "connections": 3, "requests": 5,
    "refused": 2, "cancelled": 1, "failed": 0, "running": 1, "waiting": 4, "prompt_tokens": 600,
    "cached_tokens": 200, "tokens": 1000, "first_s": 0.25, "token_s": 0.02, "kv_used": 0.5,
    "preempted": 6, "cpu_s": 15.0, "rss_bytes": 3e8,
}  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    second = PERIOD | {"step": 90, "at_s": 20.0, "tokens": 3000, "requests": 7}
    path.write_text("".join(json.dumps(line) + "\n" for line in (RUN, PERIOD, second)))
    return path


def test_top_shows_the_newest_period(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--once", str(log)]) == 0
    shown = capsys.readouterr().out
    for text in ("serves small", "1 running, 4 waiting, 3 connections", "7 answered", "2 refused",
                 "300 a second", "prompts 600, of these 200", "250 ms to the first token",
                 "50.0 %", "6 paused", "1.50 cores", "100 to 300 tokens/s"):  # fmt: skip
        assert text in shown, text


def test_top_has_something_to_say_before_the_first_period(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps(RUN) + "\n")
    assert cli.main(["top", "--once", str(path)]) == 0
    assert "nothing reported yet" in capsys.readouterr().out
    assert cli.main(["explain", str(path)]) == 0
    assert "0 requests answered" in capsys.readouterr().out


def test_explain_adds_all_periods(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", str(log)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "12 requests answered, 4 refused, 2 cancelled, 0 failed" in told
    assert "4,000 tokens generated: 200 a second in the mean, 300 in the fastest period" in told
    assert "133 for each CPU second" in told
    assert "1,200 tokens of prompts, of which 400 did not have to run" in told


def test_what_the_engine_chose_is_told_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.jsonl"
    chosen = PERIOD | {
        "threads": 4, "threads_of_answers": 2, "threads_of_prompts": 4, "answers_to_plain": 0.83,
        "prompts_to_plain": 1.0, "prompt_tokens_beside": 96, "useful_share": 0.998,
    }  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in (RUN, chosen)))
    for command in (["explain", str(path)], ["top", "--once", str(path)]):
        assert cli.main(command) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert "answers run on 2 of 4 threads, which takes 83.0 % of their time" in told
        assert "prompts run on all 4 threads" in told
        assert "96 tokens of prompts may run in a step beside answers" in told


def test_what_is_missing_is_unknown_and_wrong_types_are_refused() -> None:
    line = parse(json.dumps({"kind": "served", "step": 1, "at_s": 2.0, "tokens": None}).encode())
    assert isinstance(line, Served)
    assert line.tokens is None and line.tokens_per_s is None
    with pytest.raises(ValueError, match="requests must be a whole number"):
        parse(json.dumps(PERIOD | {"requests": "many"}).encode())


def test_the_page_of_a_server_shows_what_it_served(log: Path, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    assert cli.main(["explain", str(log), "-o", str(page)]) == 0
    shown = page.read_text()
    for text in ("Scant server of", "12 requests answered", "Tokens answered", "Resident memory"):
        assert text in shown, text
    for of_a_training in ("Step time", "No plan is in the log", "The guard"):
        assert of_a_training not in shown, of_a_training
    page.unlink()
    log.write_text(json.dumps(RUN) + "\n")
    assert cli.main(["explain", str(log), "-o", str(page)]) == 0
    assert "No period was reported yet" in page.read_text()
