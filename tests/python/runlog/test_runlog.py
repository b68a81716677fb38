"""The run log: written, read and followed."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import made_up_run
import pytest
from run_lines import RUN, STEPS, write_lines

from scant.errors import InvalidArgument
from scant.runlog import Follower, History, Plan, Run, RunLog, Steps, read
from scant.runlog.words import tell

# -- writing --------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    lines = list(made_up_run.lines())
    with RunLog(path) as log:
        for line in lines:
            log.write(line)
    assert [json.loads(text) for text in path.read_text().splitlines()] == lines
    found = read(path)
    assert len(found) == len(lines)
    assert isinstance(found[0], Run)
    assert found[0].options == {"plan": "auto", "fidelity_min": "0.9", "check_every": "100"}
    plans = [line for line in found if isinstance(line, Plan)]
    assert plans[0].others[0].worth == lines[3]["others"][0]["worth"]
    assert list(tmp_path.iterdir()) == [path]


def test_every_line_is_there_at_once_and_an_older_log_until_the_first(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("older")
    with RunLog(path) as log:
        assert path.read_text() == "older"
        log.write(RUN)
        assert len(read(path)) == 1
        log.write(STEPS)
        assert len(read(path)) == 2
        log.close()
        log.write(STEPS)  # closed: nothing, and no error
    assert len(read(path)) == 2
    with RunLog(path):
        pass  # nothing was written: nothing is replaced
    assert len(read(path)) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_leads_to_the_log_that_is_replaced(tmp_path: pathlib.Path) -> None:
    link, path = tmp_path / "newest.jsonl", tmp_path / "run.jsonl"
    path.write_text("older")
    link.symlink_to(path)
    with RunLog(link) as log:
        log.write(RUN)
    assert link.is_symlink()
    assert len(read(path)) == 1


class Number:
    """As NumPy's and torch's: no number to json."""

    def item(self) -> float:
        return 0.25


def test_odd_numbers_are_written_as_json_has_them(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    with RunLog(path) as log:
        log.write(RUN)
        log.write({**STEPS, "rho": math.inf, "residual": math.nan, "kept": Number()})
    assert "Infinity" not in path.read_text()
    steps = read(path)[1]
    assert isinstance(steps, Steps)
    assert (steps.rho, steps.residual, steps.kept) == (None, None, 0.25)


def unwritable(tmp_path: pathlib.Path) -> Iterator[tuple[Any, str]]:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    yield tmp_path / "absent" / "run.jsonl", "No such file"
    yield tmp_path / "folder", "Is a directory"
    yield tmp_path / "pipe", "No such device"  # nobody reads it: opening must not wait
    yield "a\0b", "null"
    yield "", "a path is expected"
    yield 7, "a path is expected, got 7"


def test_a_path_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    for path, why in unwritable(tmp_path):
        with pytest.raises(InvalidArgument, match=re.escape(why)) as caught:
            RunLog(path)
        assert str(caught.value).startswith("log: ")
        assert repr(os.fspath(path) if isinstance(path, os.PathLike) else path) in str(caught.value)


def test_a_full_disk_ends_the_log_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    log = RunLog("/dev/full")
    log.write(RUN)
    log.write(STEPS)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("scant: the run log /dev/full ends here, training goes on: No space")


def test_half_a_line_is_taken_back(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.jsonl"
    log = RunLog(path)
    log.write(RUN)
    real = os.write

    def half(fd: int, data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return real(fd, data[: len(data) // 2])

    monkeypatch.setattr("scant.runlog.writer.os.write", half)
    log.write(STEPS)
    monkeypatch.undo()
    assert "No space left" in capfd.readouterr().err
    assert path.read_bytes().endswith(b"\n")
    assert len(read(path)) == 1


def test_what_no_json_can_hold_ends_the_log_with_a_word(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    circle: dict[str, Any] = dict(STEPS)
    circle["plan"] = circle
    with RunLog(tmp_path / "run.jsonl") as log:
        log.write(RUN)
        log.write(circle)
        log.write(STEPS)
    assert "training goes on" in capfd.readouterr().err
    assert len(read(tmp_path / "run.jsonl")) == 1


# -- reading --------------------------------------------------------------------------------------


def test_unknown_kinds_and_fields_are_skipped_and_absent_ones_are_unknown(
    tmp_path: pathlib.Path,
) -> None:
    new = {"kind": "weather", "step": 3, "at_s": 1, "sun": True}
    path = write_lines(tmp_path / "r", {**RUN, "colour": "red"}, new, {**STEPS, "rho": None})
    history = History.of(read(path))
    assert history.run is not None
    assert history.run.elements is None
    assert [one.rho for one in history.steps] == [None]
    assert "–" in tell(history)


def test_numbers_may_come_as_c_doubles(tmp_path: pathlib.Path) -> None:
    """Counts with a point; 0 where nothing was predicted or measured yet."""
    nothing = {"predicted_s": 0.0, "rho": 0, "bytes_per_s": 0.0, "exposed_s": 0.0}
    (_, line) = read(write_lines(tmp_path / "r", RUN, {**STEPS, "steps": 20.0, **nothing}))
    assert isinstance(line, Steps)
    assert (line.steps, line.predicted_s, line.rho, line.bytes_per_s) == (20, None, None, None)
    assert (line.exposed_s, line.error) == (0.0, None)


def test_a_last_line_without_an_end_is_left_out(tmp_path: pathlib.Path) -> None:
    path = write_lines(tmp_path / "r", RUN, STEPS)
    whole = path.read_bytes()
    second = len(json.dumps(RUN)) + 1
    for cut in range(second, len(whole)):
        path.write_bytes(whole[:cut])
        assert len(read(path)) == 1, cut


# -- following ------------------------------------------------------------------------------------


def test_follower_waits_for_the_rest_of_a_line_and_notices_another_run(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "run.jsonl"
    with Follower(path) as follower:
        assert follower.poll() == []
        text = json.dumps(RUN) + "\n"
        path.write_text(text[:10])
        assert follower.poll() == []
        with path.open("a") as file:
            file.write(text[10:])
        assert [type(line) for line in follower.poll()] == [Run]
        assert follower.poll() == []
        with RunLog(path) as log:
            assert follower.poll() == []
            log.write(RUN)
            assert [type(line) for line in follower.poll()] == [Run]
            log.write(STEPS)
            assert [type(line) for line in follower.poll()] == [Steps]
        path.write_text(text)  # the same file, cut and begun again
        assert [type(line) for line in follower.poll()] == [Run]
        path.unlink()
        assert follower.poll() == []
