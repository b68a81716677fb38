"""``scant explain`` and ``scant top``: words, page, live view, and files that are no logs."""

from __future__ import annotations

import itertools
import json
import math
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import made_up_run
import pytest
from run_lines import RUN, STEPS, write_lines

from scant.amounts import duration, number, rate, share, size, span
from scant.report import point_plot
from scant.report.text import sparkline
from scant.runlog import BadLogError, History, Profile, RunLog, Steps, read
from scant.runlog.explain import main as explain_main
from scant.runlog.picture import draw
from scant.runlog.top import main as top_main
from scant.runlog.top import snapshot
from scant.runlog.words import tell

PATIENCE_S = 240.0  # for what takes a second on an idle machine


@pytest.fixture
def run_log(tmp_path: pathlib.Path) -> pathlib.Path:
    """The made-up run."""
    return write_lines(tmp_path / "run.jsonl", *made_up_run.lines())


# -- files that are no logs -----------------------------------------------------------------------


def line_of(**fields: Any) -> bytes:
    return (json.dumps(RUN) + "\n" + json.dumps({**STEPS, **fields}) + "\n").encode()


HOSTILE = [
    (b"", "empty; expected a run log"),
    (b"\n", "line 1: not JSON"),
    (b"{", "line 1: has no end"),
    (b"hello\n", "line 1: not JSON (Expecting value, column 1); expected a run log"),
    (b"\xff\xfe\0\n", "line 1: not UTF-8 text"),
    (b"\0" * 100 + b"\n", "line 1: not JSON"),
    (b"[" * 100_000 + b"\n", "line 1: JSON nested too deeply"),
    (b"9" * 5000 + b"\n", "line 1: "),
    (b"x" * (1 << 20) + b"x" * 9, "line 1: longer than 1048576 bytes"),
    (b'{"runs": [], "setting": "s"}\n', "line 1: no kind"),
    (b"[1]\n", "line 1: a JSON object is expected, got [1]"),
    (json.dumps(STEPS).encode() + b"\n", "line 1: no run begins here"),
    (
        json.dumps({**RUN, "version": 9}).encode() + b"\n",
        "line 1: this log is of version 9; this scant reads up to 1: upgrade scant",
    ),
    (json.dumps({**RUN, "version": 0}).encode() + b"\n", "line 1: there is no version 0"),
    (json.dumps({**RUN, "version": "1"}).encode() + b"\n", "line 1: version must be a whole num"),
    (json.dumps({**RUN, "version": True}).encode() + b"\n", "line 1: version must be a whole"),
    (json.dumps({**RUN, "options": [1]}).encode() + b"\n", "line 1: options must be an object"),
    (line_of() + line_of(), "line 3: a second run begins"),
    (line_of(step=None), "line 2: no step"),
    (line_of(step=-1), "line 2: step and at_s count from 0"),
    (line_of(step=1.5), "line 2: step must be a whole number, got 1.5"),
    (line_of(step=10**30), "line 2: step must be a whole number"),
    (line_of(at_s=math.inf), "line 2: at_s must be a number of seconds, got Infinity"),
    (line_of(step_s="fast"), 'line 2: step_s must be a number, got "fast"'),
    (line_of(step_s=True), "line 2: step_s must be a number, got true"),
    (line_of(plan=["q4"]), "line 2: plan must be a text"),
    (line_of(measuring=1), "line 2: measuring must be true or false"),
    (line_of(kind="plan", chosen=3), "line 2: chosen must be an object, got 3"),
    (line_of(kind="plan", others={}), "line 2: others must be a list"),
    (line_of(kind="plan", others=[[]]), "line 2: others must be an object, got [[]]"),
    (line_of(kind="plan", others=[{"kept": "x"}]), 'line 2: kept must be a number, got "x"'),
    (line_of(kind="plan", points={"q4": []}), "line 2: points must be a number"),
    (line_of(kind=["steps"]), "line 2: no kind"),
]


@pytest.mark.parametrize(("content", "said"), HOSTILE, ids=[said for _, said in HOSTILE])
@pytest.mark.parametrize("command", [explain_main, top_main])
def test_what_is_no_log_is_named_with_its_line(
    command: Callable[[list[str]], int],
    content: bytes,
    said: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadLogError):
        read(path)
    assert command([str(path), *(["--once"] if command is top_main else [])]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: {said}" in line
    assert len(line) < 300


@pytest.mark.parametrize("name", ["absent", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(
    name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"{tmp_path}/{name}"
    assert explain_main([path]) == 1
    assert top_main([path, "--once"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["scant explain", "scant top"]
    assert all(path in line for line in lines)


def test_endless_and_odd_numbers_are_unknown(tmp_path: pathlib.Path) -> None:
    odd = {"step_s": 10**400, "kept": math.nan, "sent_bytes": -math.inf, "exposed_s": -1e300}
    path = write_lines(tmp_path / "r", RUN, {**STEPS, **odd, "at_s": 1e17})
    history = History.of(read(path))
    assert history.steps[0].step_s is None
    assert "–" in tell(history)
    assert "–" in "\n".join(snapshot(history, str(path)))
    assert draw(history).html()


ODD = [None, True, 0, -1, 1e308, -1e308, 1e-320, 10**18, "", "x", [], {}, [1], {"a": 1}, math.nan]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_fields_hold_is_shown_or_refused(seed: int, tmp_path: pathlib.Path) -> None:
    draw_odd = random.Random(seed)
    shown = 0
    for _ in range(60):
        lines = [dict(line) for line in made_up_run.lines(until=80)]
        for _ in range(draw_odd.randint(1, 2)):
            line = draw_odd.choice(lines)
            if draw_odd.random() < 0.3 and isinstance(line.get("chosen"), dict):
                line = line["chosen"]
            line[draw_odd.choice(sorted(line))] = draw_odd.choice(ODD)
        path = write_lines(tmp_path / "r", *lines)
        try:
            history = History.of(read(path))
        except BadLogError as error:
            assert str(error).startswith(f"{path}: line ")
            continue
        shown += 1
        assert tell(history)
        assert snapshot(history, str(path))
        assert "nan" not in draw(history).html()
    assert 0 < shown < 60


def test_texts_cannot_steer_the_terminal_or_the_page(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e</script><!--<script><b>\ud800" + "long " * 1000
    chosen = {"text": evil, "step_s": 1.0, "kept": 0.9}
    path = write_lines(
        tmp_path / "r",
        {**RUN, "host": evil, "started": evil, "options": {evil: evil}},
        {"kind": "plan", "step": 1, "at_s": 1, "why": evil, "chosen": chosen, "points": {evil: 1}},
        {**STEPS, "plan": evil},
        {"kind": "guard", "step": 20, "at_s": 4, "why": evil, "plan": evil},
        {"kind": "note", "step": 20, "at_s": 4, "text": evil},
    )
    page = tmp_path / "page.html"
    assert explain_main([str(path), "-o", str(page)]) == 0
    assert top_main([str(path), "--once"]) == 0
    shown = capsys.readouterr().out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e\ud800]", shown)
    html = page.read_text()
    assert html.count("<script") == html.count("</script>") == 1
    assert "<b>" not in html
    assert "<!--" not in html


# -- live ----------------------------------------------------------------------------------------


class Program:
    """A command of scant as a process whose lines are read as they come."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scant.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        )
        self.deadline = threading.Timer(PATIENCE_S, self.process.kill)
        self.deadline.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.deadline.cancel()
        self.process.kill()
        self.process.communicate(timeout=PATIENCE_S)

    def line(self) -> str:
        """The next; empty when the program has ended or was killed at the deadline."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C: exit status and the rest of what was printed."""
        self.process.send_signal(signal.SIGINT)
        rest, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, rest


def test_top_prints_a_line_for_each_line_until_interrupted(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    lines = list(made_up_run.lines(until=40))
    with Program("top", str(path), "--interval", "0.05") as top:
        assert top.line() == f"scant top: waiting for {path}\n"
        with RunLog(path) as log:
            log.write(lines[0])
            assert top.line().startswith("run of 2026-03-02 09:15:04 UTC: 4 ranks, 38 tensors")
            for line in lines[1:5]:
                log.write(line)
            assert top.line().startswith("step 20: 34")
            assert top.line().startswith("step 20: plan: 2 bytes an element in 1 buffer: worth")
            assert re.match(r"step 40: 3\d\d ms \(predicted 343 ms, plain 344 ms\)", top.line())
        with RunLog(path) as log:  # the training begins again
            log.write({**lines[0], "ranks": 8})
            assert "8 ranks" in top.line()
        assert top.interrupt() == (0, "")


def test_top_redraws_a_terminal_in_place(run_log: pathlib.Path) -> None:
    lines = run_log.read_text().splitlines(keepends=True)
    run_log.write_text("".join(lines[:5]))
    parent, child = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "scant.cli", "top", str(run_log), "--interval", "0.05"],
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "60", "LINES": "30"},
    )
    os.close(child)
    deadline = threading.Timer(PATIENCE_S, process.kill)  # reading ends then with an error
    deadline.start()
    try:
        shown = ""
        while "step 40 " not in shown:
            shown += os.read(parent, 4096).decode("utf-8", "ignore")
        with run_log.open("a") as file:
            file.write("".join(lines[5:]))
        while "step 1,200 " not in shown:
            shown += os.read(parent, 4096).decode("utf-8", "ignore")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
        assert "Traceback" not in shown
        (first, *others) = shown.split("\x1b[J")
        assert "\x1b[" in first and "A\r" not in first
        assert any(re.match(r"\x1b\[\d+A\r", one) for one in others)
        drawn = first.replace("\x1b[K", "").splitlines()
        assert all(len(line) <= 60 for line in drawn)
    finally:
        deadline.cancel()
        process.kill()
        process.wait(PATIENCE_S)
        os.close(parent)


def test_top_waits_for_a_log_and_ends_at_one_that_is_none(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    with Program("top", str(path), "--interval", "0.05") as top:
        assert "waiting" in top.line()
        path.write_text("hello\n")
        assert f"scant top: {path}: line 1: not JSON" in top.line()
        assert top.process.wait(PATIENCE_S) == 1


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "fast", "1e9"])
def test_top_refuses_an_interval_out_of_bounds(
    interval: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        top_main(["run.jsonl", f"--interval={interval}"])
    assert f"{interval!r} is no number from 0.05 to 3600" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["explain"], ["top", "--once"]])
def test_ends_quietly_when_nobody_reads_and_in_any_letters(
    command: list[str], run_log: pathlib.Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-m", "scant.cli", command[0], str(run_log), *command[1:]]
    done = subprocess.run(
        arguments, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=PATIENCE_S, env=ascii_only
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "? " in done.stdout  # where ρ stood


# -- words and picture ----------------------------------------------------------------------------


def test_explain_tells_what_was_chosen_and_why(
    run_log: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain_main([str(run_log)]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 100 for line in text.splitlines())
    for words in (
        "4 ranks, 38 tensors, 3,241,984 elements (13.0 MB of f32 gradients)",
        "The run of 2026-03-02 09:15:04 UTC",
        "1,200 steps in",
        "The candidates at step 1,200, the chosen one first",
        "compute: 340 ms a step, of which backward is 210 ms and the rest 130 ms",
        "rank 2 is slowest",
        "3 plans, looked at again 6 times without a change",
        "At step 400: 0.26 bytes an element in 1 buffer",
        "why: worth 5.20 times plain",
        "next best: 0.26 bytes an element in 2 buffers, a step 368 µs longer (+0.1 %)",
        "off by 1.2 % at the median of 59 stretches",
        "worst: −68.2 % at step 400, 343 ms predicted, 1.08 s measured",
        "step 600: the residual grew for 200 steps",
        "plan: 2 bytes an element in 1 buffer",
        "9.73 MB a step instead of 19.5 MB, 2.00× less",
        "step 1,200: parameters compared: alike",
    ):
        assert words in text
    (row,) = re.findall(r"plain in 4 buffers .*", text)
    assert row.split()[4:] == ["344", "ms", "4.40", "ms", "19.5", "MB", "100", "%", "99.5", "%"]


def test_the_law_of_exposed_time_is_told_where_the_log_has_what_it_needs(
    tmp_path: pathlib.Path,
) -> None:
    at = {"step": 5, "at_s": 1.0}
    profile = {"kind": "profile", "rho": 5.0, "backward_s": 0.2, "rest_s": 0.121, **at}
    chosen = {"text": "a plan", "last_share": 1 / 16, "last_bytes": 0.52}
    plan = {"kind": "plan", "changed": True, "chosen": chosen, **at}
    text = " ".join(tell(History.of(read(write_lines(tmp_path / "r", RUN, profile, plan)))).split())
    assert "the last buffer has 6.2 % of the elements, at 0.52 bytes each" in text
    assert "its transfer of 13.0 ms" in text  # 1.25 · 1/16 · 0.52 · 321 ms
    for missing in ("last_share", "last_bytes"):
        old = {**plan, "chosen": {**chosen, missing: None}}
        told = tell(History.of(read(write_lines(tmp_path / "r", RUN, profile, old))))
        assert "At step 5: a plan" in told
        assert "last buffer" not in told


def test_a_run_that_has_just_begun_is_told_too(tmp_path: pathlib.Path) -> None:
    history = History.of(read(write_lines(tmp_path / "r", RUN)))
    text = tell(history)
    for words in ("nothing yet", "no step was predicted yet", "never had to act", "no step was re"):
        assert words in text
    assert "No step was reported yet" in draw(history).html()
    assert "none reported yet" in "\n".join(snapshot(history, "r"))


def test_measured_under_profiling_is_no_prediction() -> None:
    steps = Steps(step=1, at_s=1, step_s=0.2, predicted_s=0.1)
    assert steps.error == -0.5
    assert Steps(step=1, at_s=1, step_s=0.2, predicted_s=0.1, measuring=True).error is None
    assert Steps(step=1, at_s=1, step_s=0.0, predicted_s=0.1).error is None
    assert Profile(step=1, at_s=1, backward_s=0.2).compute_s is None


def plots(html: str) -> dict[str, ElementTree.Element]:
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    return {svg.attrib["aria-label"]: svg for svg in found}


def test_page_shows_the_run_step_by_step(run_log: pathlib.Path, tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.html"
    assert explain_main([str(run_log), "-o", str(page)]) == 0
    html = page.read_text()
    assert not re.search(r'(src|href)="', html)
    found = plots(html)
    lines = {name: len(svg.findall("polyline")) for name, svg in found.items()}
    assert lines == {
        "Step time": 3,
        "Exposed communication": 1,
        "Sent by a rank": 2,
        "Energy kept": 1,
        "Link rate": 1,
        "Candidates": 0,
    }
    marks = [line for line in found["Step time"].findall("line") if line.get("class") == "mark"]
    assert len(marks) == 4  # three plans and the guard
    candidates = found["Candidates"]
    (ring,) = [one for one in candidates.findall("circle") if one.get("class") == "ring"]
    assert len(candidates.findall("circle")) == 14
    assert "chosen" in [text.text for text in candidates.findall("text")]
    # Nothing that was looked at lies further left: the made-up planner takes the fastest.
    assert float(ring.attrib["cx"]) == min(
        float(one.attrib["cx"]) for one in candidates.findall("circle")
    )
    embedded = re.search(r'id="run">(.*?)</script>', html, re.DOTALL)
    assert embedded is not None
    assert len(json.loads(embedded[1])["steps"]) == 60


def test_a_long_run_is_drawn_with_its_spikes(tmp_path: pathlib.Path) -> None:
    lines = [{**STEPS, "step": i, "step_s": 5.0 if i == 7777 else 1.0} for i in range(1, 20_001)]
    history = History.of(read(write_lines(tmp_path / "r", RUN, *lines)))
    (measured,) = plots(draw(history).html())["Step time"].findall("polyline")
    points = [tuple(map(float, one.split(","))) for one in measured.attrib["points"].split()]
    assert len(points) <= 800
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert sum(y < min(y for _, y in points) + 1 for _, y in points) == 1


def test_candidates_alike_are_drawn_and_labels_do_not_hide_each_other() -> None:
    svg = ElementTree.fromstring(point_plot("t", [(1, 1, "a"), (1, 1, "b")], 1, "x", "y"))
    assert "b, a" in [one.text for one in svg.findall("text")]
    near = [(1 + 0.02 * i, 1 + i % 2, f"name {i} of some length") for i in range(24)]
    texts = ElementTree.fromstring(point_plot("t", near, 4, "x", "y")).findall("text")
    drawn = [
        (float(one.attrib["y"]), float(one.attrib["x"]), 7 * len(one.text))
        for one in texts
        if one.text and one.text.startswith("name")
    ]
    assert 0 < len(drawn) < 24
    for a, b in itertools.combinations(sorted(drawn), 2):
        assert b[0] - a[0] >= 13 or abs(b[1] - a[1]) >= (a[2] + b[2]) / 2
    assert "no data" in point_plot("t", [], 0, "x", "y")


# -- small parts ----------------------------------------------------------------------------------


def test_sparkline_goes_from_the_least_to_the_most() -> None:
    assert sparkline([]) == ""
    assert sparkline([2, 2]) == "▄▄"
    assert sparkline([1, 2, 3, 8]) == "▁▂▃█"


@pytest.mark.parametrize(
    ("got", "text"),
    [
        (duration(0.34), "340 ms"),
        (duration(2.04), "2.04 s"),
        (duration(0.00036), "360 µs"),
        (duration(0), "0 ms"),
        (duration(None), "–"),
        (duration(0.99996), "1.00 s"),
        (size(860_000), "860 kB"),
        (size(1_234_567), "1.23 MB"),
        (size(2.5e9), "2.50 GB"),
        (size(999_700), "1.00 MB"),
        (size(999.4), "999 B"),
        (size(0), "0 B"),
        (size(None), "–"),
        (rate(12.5e6), "100 Mb/s"),
        (rate(1.25e8), "1.00 Gb/s"),
        (rate(0), "0 b/s"),
        (share(0.99996), "99.99 %"),
        (share(0.9996), "99.96 %"),
        (share(1.0004), "100.0 %"),
        (share(1.0), "100 %"),
        (share(0.972), "97.2 %"),
        (span(59.9), "59 s"),
        (span(312), "5 min 12 s"),
        (span(7385), "2 h 3 min"),
        (span(1e300), "ages"),
        (number(12_400), "12,400"),
        (number(-0.05), "-0.0500"),
        (number(0.99996), "1.00"),
        (number(1e-300), "1e-300"),
        (number(-1e300), "-1e+300"),
    ],
)
def test_amounts(got: str, text: str) -> None:
    assert got == text
