"""The report's page and plots, and the demo's summary of two runs."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
import xml.etree.ElementTree as ElementTree

import pytest

from scant.demo.summary import Demo, Run, Tuning, build_page, table, target_of
from scant.report import Page, Series, bar_plot, bytes_label, line_plot, ratio_plot
from scant.report.cli import main as report_main
from scant.report.plot import log_ticks, ticks
from scant.report.text import render


def make_run(backend: str, step_s: float, sent: list[int]) -> Run:
    rows = [
        {"step": i, "loss": 3.0 - 0.1 * i, "step_s": step_s, "wall_s": step_s * (i + 1)}
        for i in range(12)
    ]
    return Run(backend, rows, sent, 2.0)


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert all(0.13 <= tick <= 0.87 for tick in ticks(0.13, 0.87))
    assert ticks(5, 5) == [5]


@pytest.mark.parametrize("name", ["plain", 'a <b> & "c"'])
def test_plots_are_wellformed_whatever_the_names(name: str) -> None:
    svg = line_plot(name, [Series(name, [1, 2, 3], [1.0, 4.0, 2.0])], name, name)
    root = ElementTree.fromstring(svg)
    assert len(root.findall(".//polyline")) == 1
    assert len(ElementTree.fromstring(bar_plot(name, [name], [3.0], name)).findall("rect")) == 1
    assert "no data" in line_plot(name, [], "x", "y")


def test_a_point_lies_where_the_axes_say() -> None:
    svg = line_plot("t", [Series("s", [0, 10], [0, 10])], "x", "y", from_zero=True)
    found = re.search(r'points="([\d.]+),([\d.]+) ([\d.]+),([\d.]+)"', svg)
    assert found is not None
    x0, y0, x1, y1 = map(float, found.groups())
    assert (x0, x1) == (64.0, 704.0)
    assert y0 == 274.0
    assert y1 < y0


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (100, "100 B"), (1 << 10, "1 KiB"), (3 << 19, "1.5 MiB"), (64 << 20, "64 MiB")],
)
def test_sizes_are_written_in_powers_of_two(size: int, text: str) -> None:
    assert bytes_label(size) == text


def test_log_ticks_are_round_and_inside() -> None:
    assert log_ticks(0.6, 5.5) == pytest.approx([0.7, 1, 1.5, 2, 3, 5])
    assert log_ticks(0.15, 20) == pytest.approx([0.2, 0.5, 1, 2, 5, 10, 20])
    assert log_ticks(0.001, 50) == pytest.approx([0.001, 0.01, 0.1, 1, 10])


def test_twice_and_half_lie_equally_far_from_the_line_at_one() -> None:
    series = [Series("s", [1 << 10, 1 << 16, 1 << 20, 0], [2.0, 0.5, 4.0, 1.0])]
    root = ElementTree.fromstring(ratio_plot("t", series, "a ÷ b"))
    (line,) = root.findall("line[@class='one']")
    one = float(line.attrib["y1"])
    places = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.findall("circle")]
    (x0, y0), (x1, y1), (x2, y2) = places  # a size of 0 has no place on a logarithmic axis
    assert y0 < one < y1  # above 1 is up
    assert y1 - one == pytest.approx(one - y0, abs=0.2)
    assert one - y2 == pytest.approx(2 * (one - y0), abs=0.2)
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.6, abs=0.01)
    texts = [text.text for text in root.findall("text")]
    assert {"1 KiB", "64 KiB", "1 MiB", "0.5", "1", "2"} <= set(texts)


def test_ratio_plot_of_one_point_or_none() -> None:
    root = ElementTree.fromstring(ratio_plot("t", [Series("s", [1024], [1.0])], "y"))
    assert len(root.findall("circle")) == 1
    assert "no data" in ratio_plot("t", [Series("s", [0], [1.0])], "y")


def test_labels_of_close_sizes_do_not_overlap() -> None:
    sizes = [1 << power for power in range(31)]
    root = ElementTree.fromstring(ratio_plot("t", [Series("s", sizes, [1.0] * 31)], "y"))
    labels = [t for t in root.findall("text") if (t.text or "").endswith("B")]
    places = [float(t.attrib["x"]) for t in labels]
    assert len(places) > 5
    assert all(b - a >= 56 for a, b in itertools.pairwise(places))


@pytest.mark.parametrize("count", [1, 3, 9])
def test_legend_keeps_clear_of_the_unit_and_of_itself(count: int) -> None:
    names = [f"even budget 0.0{i}, after Adam" for i in range(count)]
    unit = "nats a byte"
    svg = line_plot("t", [Series(name, [0, 1], [0, 1]) for name in names], "x", unit)
    root = ElementTree.fromstring(svg)
    top = float(root.attrib["viewBox"].split()[1])
    font = 7.0  # of a letter, about as wide as any font draws it
    rows: dict[str, list[tuple[float, float]]] = {}
    for text in root.findall("text"):
        if text.text in (*names, unit):
            x, y = float(text.attrib["x"]), text.attrib["y"]
            assert float(y) - 12 >= top
            rows.setdefault(y, []).append((x, x + font * len(text.text)))
    assert sum(len(row) for row in rows.values()) == count + 1
    for row in rows.values():
        row.sort()
        assert row[-1][1] <= 720
        assert all(a[1] + 18 <= b[0] for a, b in itertools.pairwise(row))  # a line's key between
    keys = {line.attrib["class"] for line in root.findall("line")}
    assert {f"key {line.attrib['class']}" for line in root.findall("polyline")} <= keys


def test_page_holds_everything_and_nothing_from_outside(tmp_path: pathlib.Path) -> None:
    runs = [make_run("gloo", 0.5, [20_000_000] * 2), make_run("scant", 0.25, [10_000_000] * 2)]
    build_page(Demo("two hosts", runs=runs)).write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r'(src|href)="', text)
    embedded = re.search(r'id="demo">(.*?)</script>', text, re.DOTALL)
    assert embedded is not None
    assert [run["backend"] for run in json.loads(embedded[1])["runs"]] == ["gloo", "scant"]
    assert list(tmp_path.iterdir()) == [tmp_path / "page.html"]


def test_table_puts_ratios_first() -> None:
    runs = [make_run("gloo", 0.5, [24_000_000] * 2), make_run("scant", 0.25, [])]
    runs[0].link_mb_per_s = 60.0  # of too few steps to be shown
    head, rows = table(Demo(runs=runs, limit_mb_per_s=125.0))
    assert head == ["", "gloo", "scant"]
    assert [row[0] for row in rows[:3]] == [
        f"{what}, gloo ÷ this" for what in ("time to the same loss", "step time", "CPU a step")
    ]
    shown = {row[0]: row[1:] for row in rows}
    assert shown["step time, gloo ÷ this"] == ["1.00×", "2.00×"]
    assert shown["sent by a host, MB a step"] == ["2.00", "–"]
    assert shown["a host sends, MB/s (limit 125)"] == ["–", "–"]
    assert "2.00×" in render(head, rows)


def descent(backend: str, slope: float, step_s: float, steps: int = 40) -> Run:
    rows = [
        {"step": i, "loss": 5.0 - slope * i, "step_s": step_s, "wall_s": 1.0 + step_s * (i + 1)}
        for i in range(steps)
    ]
    return Run(backend, rows, [], 2.0)


def test_time_to_the_loss_that_the_first_way_has_after_four_fifths_of_its_steps() -> None:
    gloo = descent("gloo", 0.1, 0.5)
    target = target_of(gloo.losses)
    # The mean of steps 13 to 32, counted from 1; losses of 3.8 to 1.9.
    assert target == pytest.approx(2.85)
    assert gloo.seconds_to(target) == pytest.approx(1.0 + 0.5 * 32)
    # Half the slope never comes there; twice the slope after 22 steps, slower ones.
    assert descent("slow", 0.05, 0.1).seconds_to(target) is None
    fast = descent("fast", 0.2, 0.6)
    assert fast.seconds_to(target) == pytest.approx(1.0 + 0.6 * 22)
    runs = [gloo, descent("slow", 0.05, 0.1), fast]
    gloo.link_mb_per_s = 60.0
    shown = {row[0]: row[1:] for row in table(Demo(runs=runs))[1]}
    assert shown["seconds to a loss of 2.850"] == ["17.0", "–", "14.2"]
    assert shown["time to the same loss, gloo ÷ this"] == ["1.00×", "–", "1.20×"]
    assert shown["a host sends, MB/s (no limit)"] == ["60.0", "–", "–"]
    page = build_page(Demo(runs=runs)).html()
    bars = re.search(r'aria-label="Time to the same loss">(.*?)</svg>', page, re.DOTALL)
    assert bars is not None
    assert bars[1].count("<rect") == 2


def test_a_short_training_has_no_target() -> None:
    assert target_of([3.0] * 19) is None
    assert target_of([3.0] * 20) == 3.0
    run = descent("gloo", 0.1, 0.5, steps=19)
    assert run.seconds_to(target_of(run.losses)) is None
    assert "Time to" not in build_page(Demo(runs=[run])).html()


def test_bars_without_a_value_keep_their_place() -> None:
    root = ElementTree.fromstring(bar_plot("t", ["a", "b", "c"], [2.0, None, 1.0], "s"))
    assert [bar.attrib["class"] for bar in root.findall("rect")] == ["fill0", "fill2"]
    assert [text.text for text in root.findall("text")].count("–") == 1
    assert "no data" in bar_plot("t", ["a"], [None], "s")


def test_script_text_cannot_end_the_script() -> None:
    page = Page("t", "l")
    page.data("d", {"x": "</script><b>"})
    assert "</script><b>" not in page.html()


def recorded_demo() -> str:
    demo = Demo("s", runs=[make_run(backend, 0.5, []) for backend in ("gloo", "scant")])
    demo.bucket = Tuning("buckets", [(1, 0.4), (5, 0.3)], 5, "the fastest")
    return json.dumps(demo.to_json())


def test_cli_draws_a_recorded_run(tmp_path: pathlib.Path) -> None:
    recorded = tmp_path / "demo.json"
    recorded.write_text(recorded_demo())
    assert report_main([str(recorded), "-o", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    assert text.startswith("<!doctype html>")
    assert "1: 400 ms, 5: 300 ms. Taken: 5, the fastest." in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "not JSON (line 1"),
        (b"{", "not JSON (line 1"),
        (b"\xff\xfe\0", "not a text file"),
        (b'{"case": 1}\n{"case": 2}\n', "more than one JSON value (the second in line 2)"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "not a recorded demo"),
        (b"{}", "not a recorded demo (no 'runs')"),
        (b'{"runs": [], "setting": "s"}', "not a recorded demo"),
        (b'{"runs": [{}], "setting": "s"}', "not a recorded demo (no 'backend')"),
        (b'{"runs": "ab", "setting": "s"}', "not a recorded demo"),
        (recorded_demo().replace('"s"', "1").encode(), "not a recorded demo"),
        (recorded_demo().replace("0.5", '"x"').encode(), "not a recorded demo"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_cli_says_in_one_line_what_is_wrong_with_the_file(
    content: bytes | None, said: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = tmp_path / "rows.jsonl"
    if content is not None:
        recorded.write_bytes(content)
    assert report_main([str(recorded), "-o", str(tmp_path / "r.html")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"scant report: {recorded}: ")
    assert said in line
    assert not (tmp_path / "r.html").exists()


def test_cli_names_an_output_that_cannot_be_written(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = tmp_path / "demo.json"
    recorded.write_text(recorded_demo())
    full = pathlib.Path("/dev/full")
    folder = tmp_path / "folder"
    folder.mkdir()
    absent = tmp_path / "absent" / "r.html"
    reasons = {full: "No space left", folder: "Is a directory", absent: "No such file"}
    for output, reason in reasons.items():
        assert report_main([str(recorded), "-o", str(output)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"scant report: {output}: {reason}")
    assert full.is_char_device()  # written to, not replaced
    assert sorted(tmp_path.iterdir()) == [recorded, folder]
