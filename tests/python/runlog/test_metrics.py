"""Gauges, the endpoint for Prometheus, and the lines of a run on their way to those who watch."""

from __future__ import annotations

import http.client
import math
import pathlib
import re
import socket
import sys
import threading
import types
from typing import Any

import made_up_run
import pytest
from run_lines import RUN, STEPS

import scant
from scant import metrics
from scant.runlog import Watch, read

PATIENCE_S = 30


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, type and text of an answer, over a real socket."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def gauges_of(text: str) -> dict[str, float]:
    """By name, from Prometheus text; every line must be of its grammar."""
    found = {}
    for line in text.splitlines():
        assert re.fullmatch(
            r"# (HELP|TYPE) [a-z_:]+ .+|[a-z_:]+(\{[^}]*\})? (-?[0-9][0-9.e+-]*|NaN|[+-]Inf)", line
        ), line
        name, _, value = line.partition(" ")
        if not line.startswith("#") and "{" not in line:
            found[name] = float(value)
    return found


def test_prometheus_finds_counters_and_gauges() -> None:
    metrics.set_gauges({"scant_rho": 5.25, "scant_other": 3, "odd": math.inf, "odder": math.nan})
    try:
        with metrics.serve(0) as endpoint:
            status, kind, text = ask(endpoint.port, "/metrics")
            assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
            assert text.startswith(scant.counters_prometheus()[:40])
            found = gauges_of(text)
            assert (found["scant_rho"], found["scant_other"], found["odd"]) == (5.25, 3, math.inf)
            assert math.isnan(found["odder"])
            assert "# TYPE scant_rho gauge\n" in text
            metrics.set_gauges({"scant_rho": 6, "scant_other": None})
            found = gauges_of(ask(endpoint.port, "/metrics?x=1")[2])
            assert found["scant_rho"] == 6
            assert "scant_other" not in found
            assert ask(endpoint.port, "/metrics", "HEAD")[0::2] == (200, "")
            for path in ("/", "/metrics/", "/metric", "/x/metrics"):
                assert ask(endpoint.port, path)[0] == 404
            assert ask(endpoint.port, "/metrics", "POST")[0] == 501
    finally:
        metrics.set_gauges(dict.fromkeys(metrics.gauges()))
    assert metrics.gauges() == {}


def test_a_port_in_use_is_named_and_given_back_by_close() -> None:
    first = metrics.serve(0)
    with pytest.raises(scant.InvalidArgument, match=rf"127\.0\.0\.1 port {first.port}: .*in use"):
        metrics.serve(first.port)
    first.close()
    first.close()
    again = metrics.serve(first.port)
    assert again.port == first.port
    again.close()
    assert not [one for one in threading.enumerate() if one.name == "scant-metrics"]


@pytest.mark.parametrize(
    ("port", "host"), [(-1, "::1"), (65536, "::1"), ("x", "::1"), (0, "nowhere.invalid"), (0, "")]
)
def test_a_port_or_host_that_cannot_be_is_named(port: Any, host: str) -> None:
    with pytest.raises(scant.InvalidArgument, match="metrics"):
        metrics.serve(port, host)


@pytest.mark.parametrize("name", ["", "a b", "a-b", "9a", 'a{b="c"}', "a\n", 7])
def test_names_that_prometheus_has_not_are_refused(name: Any) -> None:
    with pytest.raises(scant.InvalidArgument, match="name"):
        metrics.set_gauges({name: 1.0})
    with pytest.raises(scant.InvalidArgument, match="scant_rho must be a number, got 'x'"):
        metrics.set_gauges({"scant_rho": "x"})  # type: ignore[dict-item]


def test_who_sends_rubbish_or_goes_away_stops_nobody() -> None:
    with metrics.serve(0) as endpoint:
        for rubbish in (b"", b"\0" * 70_000, b"GET\r\n\r\n", b"GET /metrics HTTP/9\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", endpoint.port), PATIENCE_S) as peer:
                peer.sendall(rubbish)
        assert ask(endpoint.port, "/metrics")[0] == 200


def test_who_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_ANSWER_S", 0.2)
    with (
        metrics.serve(0) as endpoint,
        socket.create_connection(("127.0.0.1", endpoint.port), PATIENCE_S) as peer,
    ):
        peer.sendall(b"GET /met")
        assert peer.recv(100) == b""
        monkeypatch.undo()
        assert ask(endpoint.port, "/metrics")[0] == 200


class Board:
    """Stands in for TensorBoard's writer."""

    made: list[Board]

    def __init__(self, log_dir: str) -> None:
        self.folder = log_dir
        self.scalars: dict[tuple[str, int], float] = {}
        self.texts: dict[tuple[str, int], str] = {}
        self.closed = False
        self.made.append(self)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        if value < 0:
            raise RuntimeError("the disk is full")
        self.scalars[tag, step] = value

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.texts[tag, step] = text

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> type[Board]:
    """torch.utils.tensorboard with a writer that remembers."""
    Board.made = []
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Board


def test_a_line_reaches_file_prometheus_and_tensorboard(
    tmp_path: pathlib.Path, board: type[Board]
) -> None:
    lines = list(made_up_run.lines())
    with Watch(tmp_path / "run.jsonl", 0, tmp_path / "board") as watch:
        assert watch
        assert watch.metrics_port
        for line in lines:
            watch.write(line)
        found = gauges_of(ask(watch.metrics_port, "/metrics")[2])
    last = [line for line in lines if line["kind"] == "steps"][-1]
    plain = [line["plain_s"] for line in lines if "plain_s" in line]
    assert found["scant_step_seconds"] == last["step_s"]
    assert found["scant_energy_kept_ratio"] == last["kept"]
    assert found["scant_link_bytes_per_second"] == last["bytes_per_s"]
    assert found["scant_sent_bytes_per_step"] == last["sent_bytes"]
    assert found["scant_plain_step_seconds"] == plain[-1]
    assert (found["scant_guard_events"], found["scant_steps"]) == (1, 1200)
    assert len(read(tmp_path / "run.jsonl")) == len(lines)
    (one,) = board.made
    assert one.closed
    assert one.scalars["scant/step_s", 1200] == last["step_s"]
    assert one.scalars["scant/rho", 1200] == last["rho"]
    assert ("scant/predicted_s", 20) not in one.scalars  # null: not yet known
    assert one.texts["scant/plan", 400].startswith("0.26 bytes an element in 1 buffer: worth 5.2")
    assert ("scant/guard", 600) in one.texts
    assert metrics.gauges() == {}


def test_what_is_not_known_is_not_shown() -> None:
    with Watch(metrics_port=0) as watch:
        watch.write({**STEPS, "rho": 5.0, "predicted_s": 0.0, "exposed_s": 0.0})
        watch.write({**STEPS, "rho": None, "kept": math.nan, "exposed_s": 0.0})
        watch.write({"kind": "profile", "step": 20, "at_s": 1, "plain_s": 0.0})
        found = metrics.gauges()
    assert found == {
        "scant_exposed_seconds": 0.0,
        "scant_guard_events": 0,
        "scant_step_seconds": 0.1,
        "scant_steps": 20,
    }


def test_a_sink_that_fails_leaves_the_others(
    tmp_path: pathlib.Path, board: type[Board], capfd: pytest.CaptureFixture[str]
) -> None:
    watch = Watch(log=tmp_path / "run.jsonl", tensorboard=tmp_path / "board")
    watch.write(RUN)
    watch.write({**STEPS, "rho": -1.0})
    watch.write(STEPS)
    watch.close()
    watch.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "scant: TensorBoard ends here, training goes on: the disk is full"
    assert board.made[0].closed
    assert len(read(tmp_path / "run.jsonl")) == 3


def test_opening_all_or_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with metrics.serve(0) as other:
        port = other.port
    with pytest.raises(scant.InvalidArgument, match="pip install tensorboard"):
        Watch(log=tmp_path / "run.jsonl", metrics_port=port, tensorboard=tmp_path)
    assert list(tmp_path.iterdir()) == []
    metrics.serve(port).close()  # was given back
    nobody = Watch()
    assert not nobody
    nobody.write(RUN)
    nobody.close()


def test_tensorboard_reads_what_was_written(tmp_path: pathlib.Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    lines = list(made_up_run.lines())
    with Watch(tensorboard=tmp_path) as watch:
        for line in lines:
            watch.write(line)
    events = reader.EventAccumulator(str(tmp_path))
    events.Reload()
    (first, *_, last) = events.Scalars("scant/kept")
    assert (first.step, last.step) == (20, 1200)
    assert last.value == pytest.approx([one["kept"] for one in lines if "kept" in one][-1])
