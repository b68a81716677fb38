"""Goals of points with a rank, and their picture, on rows whose losses are known."""

from __future__ import annotations

import sys
from typing import Any
from xml.etree import ElementTree

import pytest
from programs import ROOT

sys.path.insert(0, str(ROOT / "bench"))
sys.path.insert(0, str(ROOT / "bench" / "codec"))

import convergence_figure
import convergence_goals

Row = dict[str, Any]


def trained(name: str, size: float, *losses: float, model: str = "transformer") -> list[Row]:
    """One row a seed."""
    kind, values = "codec", name.split()[-1]
    if name == "f32":
        kind = "plain"
    elif name.startswith("PowerSGD"):
        kind, values = "powersgd", "f32"
    elif name.startswith("rank"):
        kind, values = "factors", name.partition(", ")[2]
    return [
        {
            "case": "convergence",
            "model": model,
            "configuration": name,
            "options": {"kind": kind, "values": values},
            "seed": seed,
            "held_out": [[250, 1.0, loss]],
            "bytes_per_element": size,
        }
        for seed, loss in enumerate(losses, 1)
    ]


def all_met() -> list[Row]:
    """Each goal of the transformer is met by one point, at its bound."""
    return [
        *trained("f32", 6.0, 2.00, 2.02, 2.04),
        *trained("PowerSGD 8", 0.28, 2.10, 2.12, 2.14),
        *trained("rank 4 of q8, q2", 0.45, 2.03, 2.04, 2.05),
        *trained("rank 32 of q4", 0.14, 2.06, 2.07, 2.08),
        *trained("rank 16 of q3", 0.07, 2.11, 2.12, 2.13),
    ]


def without(name: str) -> list[Row]:
    return [row for row in all_met() if row["configuration"] != name]


def test_goals_that_are_met_are_not_named() -> None:
    assert convergence_goals.missed(all_met()) == []
    assert convergence_goals.missed(all_met(), ["transformer"]) == []


@pytest.mark.parametrize(
    ("name", "size", "losses", "said"),
    [
        ("rank 4 of q8, q2", 0.46, (2.03, 2.04, 2.05), "within plain's seeds (2.040) with 0.45"),
        ("rank 4 of q8, q2", 0.45, (2.05, 2.05, 2.05), "the least is 2.050, by rank 4 of q8, q2"),
        ("rank 32 of q4", 0.14, (2.08, 2.08, 2.08), "mean loss + 0.05 (2.070) with 0.14 bytes"),
        ("rank 16 of q3", 0.08, (2.11, 2.12, 2.13), "mean loss + 0.1 (2.120) with 0.07 bytes"),
        ("rank 16 of q3", 0.07, (2.11,), "rank 32 of q4 needs 0.140"),
        ("PowerSGD 8", 0.28, (2.05, 2.05, 2.05), "PowerSGD 8 has 2.050 with 0.28"),
        ("PowerSGD 8", 0.06, (2.30, 2.30, 2.30), "points with a rank nothing"),
    ],
)
def test_a_goal_that_is_missed_is_named(
    name: str, size: float, losses: tuple[float, ...], said: str
) -> None:
    (missed,) = convergence_goals.missed([*without(name), *trained(name, size, *losses)])
    assert missed.startswith("transformer: ")
    assert said in missed


@pytest.mark.parametrize("name", ["f32", "PowerSGD 8"])
def test_rows_that_are_missing_are_named(name: str) -> None:
    (missed,) = convergence_goals.missed(without(name))
    assert "no 3 seeds of f32, of a point with a rank and of PowerSGD" in missed


def test_models_are_asked_for_apart() -> None:
    assert convergence_goals.missed([], ["resnet"])[0].startswith("resnet: no 3 seeds")
    old = [{name: of for name, of in row.items() if name != "model"} for row in all_met()]
    rows = [*old, *trained("f32", 6.0, 0.2, 0.2, 0.2, model="resnet")]
    assert convergence_goals.missed(rows) == [], "the resnet has no points with a rank"


def test_of_several_trainings_with_one_seed_the_last_counts() -> None:
    rows = [*trained("q4", 0.8, 9.0, 2.0), *trained("q4", 0.8, 3.0)]
    (point,) = convergence_goals.points(rows)
    assert point.losses == (3.0, 2.0)
    assert point.loss == 2.5
    assert not point.settled


def test_a_frontier_falls() -> None:
    rows = [
        *trained("q2", 0.4, 3.0),
        *trained("q3", 0.6, 3.1),
        *trained("q4", 0.8, 2.9),
        *trained("q1", 0.2, 5.0),
    ]
    edge = convergence_goals.frontier(convergence_goals.points(rows))
    assert [point.name for point in edge] == ["q1", "q2", "q4"]


def test_the_picture_has_each_point_where_its_figures_are() -> None:
    rows = [
        *all_met(),
        *trained("q4", 0.8, 2.03, 2.04, 2.05),
        *trained("rank 8 of q8, q1", 0.28, 2.06),
        *trained("1% q4", 0.05, 2.3, 2.3, 2.3),
        *trained("f32", 6.0, 0.2, 0.2, 0.2, model="resnet"),
    ]
    tree = ElementTree.fromstring(convergence_figure.figure(rows))
    name = "{http://www.w3.org/2000/svg}"
    circles = {
        title.text.split(":")[0]: one.attrib
        for one in tree.iter(f"{name}circle")
        if (title := one.find(f"{name}title")) is not None and title.text
    }
    shown = {
        "PowerSGD 8",
        "q4",
        *(row["configuration"] for row in rows if "rank" in row["configuration"]),
    }
    assert set(circles) == shown, "neither a sparse point nor plain, which is a band"
    by_size = ["rank 16 of q3", "rank 32 of q4", "PowerSGD 8", "rank 4 of q8, q2", "q4"]
    across = [float(circles[one]["cx"]) for one in by_size]
    assert across == sorted(across)
    down = [
        float(circles[one]["cy"]) for one in ("rank 4 of q8, q2", "rank 32 of q4", "rank 16 of q3")
    ]
    assert down == sorted(down, reverse=True), "less loss is lower"
    assert circles["rank 8 of q8, q1"]["fill"] == "none", "one seed is hollow"
    assert circles["q4"]["fill"] != "none"
    titles = [one.text for one in tree.iter(f"{name}text") if one.get("class") == "title"]
    assert titles[1:] == ["transformer"], "no panel without points with a rank"
