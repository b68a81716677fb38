"""The README's pictures: what they show of rows whose figures are known, and that they are new."""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from programs import ROOT

sys.path.insert(0, str(ROOT / "bench"))
sys.path.insert(0, str(ROOT / "bench" / "sync"))
sys.path.insert(0, str(ROOT / "bench" / "codec"))

import convergence_figure
import figure
import train_bars

Row = dict[str, Any]

COLOURS = {colour: words for words, colour in train_bars.FAMILIES.values()}
SECONDS = {
    "alone": 1.0,
    "plain": 5.0,
    "auto": 1.1,
    "auto, step in forward": 1.05,
    "DDP, 5 MB": 6.0,
    "DDP, 25 MB": 5.0,
    "fp16, 25 MB": 3.0,
    "PowerSGD 1": 1.2,
    "PowerSGD 4": 2.0,
    "DDP on scant": 4.0,
}


def lab_of(**more: Any) -> Row:
    return {"model": "transformer", "ranks": 4, "network": "100mbit", "rate": 10**8, **more}


def steps(**more: Any) -> Row:
    exact = ("DDP", "fp16")
    return lab_of(
        case="steps",
        rho=4.52,
        sides={name: {"seconds": [one] * 3} for name, one in SECONDS.items()},
        kinds={name: "peer" for name in SECONDS if name.startswith((*exact, "PowerSGD"))},
        curves={name: "f32" if name.startswith(exact) else name for name in SECONDS},
        **more,
    )


def training(name: str, rate: float, step_s: float = 1.0, **more: Any) -> Row:
    """A loss that falls so much a step, for 100 steps."""
    loss = [5.0 - rate * i for i in range(100)]
    more |= {"loss": loss, "at_s": [step_s * (i + 1) for i in range(100)], "alone_s": [1.0, 1.0]}
    return lab_of(
        case="training", configuration=name, seed=1, held_out=[(100, 1, loss[-1])], **more
    )


def recorded() -> list[Row]:
    """PowerSGD of rank 1 does not reach what plain has after 80 of 100 steps; 4 does as plain."""
    return [
        training("f32", 0.02),
        training("auto", 0.02, step_s=1.25),
        training("auto, step in forward", 0.02, step_s=1.2),
        training("PowerSGD 1", 0.01),
        training("PowerSGD 4", 0.02),
    ]


def parts(picture: str, tag: str) -> list[dict[str, str]]:
    found = ElementTree.fromstring(picture).iter(f"{{http://www.w3.org/2000/svg}}{tag}")
    return [{**one.attrib, "text": one.text or ""} for one in found]


def bars(picture: str) -> list[dict[str, str]]:
    """Without the legend's squares, which are before all others."""
    return parts(picture, "rect")[1 + len(train_bars.FAMILIES) :]


def shown(picture: str) -> list[tuple[str, str, bool]]:
    """Of each bar: whose it is, its value, whether it is of step times only."""
    values = [one["text"] for one in parts(picture, "text") if "value" in one.get("class", "")]
    return [
        (COLOURS[bar["fill"]], value, bar.get("class") == "step")
        for bar, value in zip(bars(picture), values, strict=True)
    ]


def test_bars_are_seconds_to_the_loss_over_those_of_a_free_network() -> None:
    picture = train_bars.figure([steps(), *recorded()])
    assert shown(picture) == [
        ("DDP on gloo", "5.00", False),
        ("… fp16 hook", "3.00", False),
        ("… PowerSGD", "2.00", False),
        ("DDP on scant", "4.00", False),
        ("scant.torch.wrap", "1.25", False),  # by its own clock
        ("… step in forward", "1.20", False),
    ]
    heights = [float(bar["height"]) for bar in bars(picture)]
    assert heights[4] / heights[0] == pytest.approx(math.log(1.25) / math.log(5), abs=1e-3)
    words = [one["text"] for one in parts(picture, "text")]
    assert {"transformer", "100 Mb/s", "4 ranks, ρ 4.5"} <= set(words)


def test_a_side_without_the_loss_shows_its_step_and_says_so() -> None:
    rows = recorded()
    rows[1] = training("auto", 0.01)
    del rows[4]
    assert shown(train_bars.figure([steps(), *rows]))[2:] == [
        ("… PowerSGD", "1.20", True),
        ("DDP on scant", "4.00", False),
        ("scant.torch.wrap", "1.10", True),
        ("… step in forward", "1.20", False),
    ]
    assert all(hollow for *_, hollow in shown(train_bars.figure([steps()])))


def test_the_legend_has_what_is_shown() -> None:
    row = steps()
    del row["sides"]["auto, step in forward"]
    words = {one["text"] for one in parts(train_bars.figure([row, *recorded()]), "text")}
    assert set(COLOURS.values()) - words == {"… step in forward"}


def test_many_networks_stay_apart_and_in_order() -> None:
    networks = [("none", None), ("1gbit", 10**9), ("100mbit", 10**8), ("25mbit", 25 * 10**6)]
    rows = [
        {**steps(), "model": model, "ranks": ranks, "network": network, "rate": rate, "rho": i}
        for model, all_ranks in (("resnet", (4,)), ("transformer", (4, 8)))
        for ranks in all_ranks
        for i, (network, rate) in enumerate(networks)
    ]
    picture = train_bars.figure([*rows, {**steps(), "network": "broken", "error": "no lab"}])
    assert picture == train_bars.figure(rows[::-1])
    words = [one["text"] for one in parts(picture, "text") if one["text"].endswith(("/s", "limit"))]
    assert words == ["no limit", "1 Gb/s", "100 Mb/s", "25 Mb/s"] * 3
    drawn = bars(picture)
    assert len(drawn) == 12 * len(train_bars.FAMILIES)
    size = {name: float(parts(picture, "svg")[0][name]) for name in ("width", "height")}
    end: dict[str, Any] = {"x": size["width"], "y": size["height"]}
    for one, other in pairwise([*drawn, end]):
        right = float(one["x"]) + float(one["width"])
        bottom = float(one["y"]) + float(one["height"])
        assert right < float(other["x"]) or bottom < float(other["y"])


def test_committed_pictures_show_the_committed_rows() -> None:
    def rows(*names: str) -> list[Row]:
        paths = [path for name in names for path in sorted(ROOT.glob(f"bench/results/*/{name}"))]
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    made = figure.figure(rows("collectives.jsonl"), 4)
    assert made == (ROOT / "docs/all_reduce.svg").read_text(), "docs/benchmarks.md, Pictures"
    made = train_bars.figure(rows("train.jsonl", "convergence.jsonl"))
    assert made == (ROOT / "docs/train.svg").read_text(), "docs/benchmarks.md, Pictures"
    made = convergence_figure.figure(rows("convergence.jsonl"))
    assert made == (ROOT / "docs/convergence.svg").read_text(), "docs/benchmarks.md, Pictures"
