"""Plans by name: their points, and SSFusion's cut-off against trying all. No ranks needed."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("torch")

from scant import InvalidArgument, _scant
from scant.torch.gradient.ssfusion import cut_off
from scant.torch.gradient.wrap_options import WrapOptions, plan_from

SEED = 20261201


def random_sizes(rng: random.Random) -> list[int]:
    """Few distinct ones now and then, as layers of one kind have."""
    most = rng.choice([3, 50, 5000])
    return [rng.randint(1, most) ** rng.choice([1, 2]) for _ in range(rng.randint(1, 40))]


def plan(layout: _scant.GradientLayout, name: str, **options: Any) -> _scant.FusionPlan:
    return plan_from(WrapOptions(plan=name, **options), layout)


def test_the_cut_off_is_the_largest_that_fits() -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    for _ in range(500):
        sizes = random_sizes(rng)
        entries = rng.choice([0.001, 0.01, 0.1, 0.5, 1.0]) * sum(sizes)
        fitting = [
            size for size in sizes if sum(other for other in sizes if other <= size) < entries
        ]
        assert cut_off(sizes, entries) == max(fitting, default=0), (sizes, entries)


def test_ssfusion_keeps_each_buffers_budget() -> None:
    print(f"seed {SEED + 1}")
    rng = random.Random(SEED + 1)
    for _ in range(100):
        layout = _scant.GradientLayout([(1, size) for size in random_sizes(rng)], 3)
        percent = rng.choice([0.1, 1, 12.5, 100])
        values = rng.choice(["", " f32", " fp16", " q2"])
        made = plan(
            layout, f"ssfusion {percent}%{values}", buffer_bytes=400_000, first_buffer_bytes=40_000
        )
        kind = {"": "bf16", " fp16": "f16"}.get(values, values.strip())
        whole = "bf16" if kind == "q2" else kind
        for path, first, parts, points in made.buffers:
            sizes = [elements for _, _, elements in layout.parts[first : first + parts]]
            budget = percent / 100 * sum(sizes)
            limit = cut_off(sizes, budget)
            densities = [density for density, *_ in points]
            sent = sum(size * density for size, density in zip(sizes, densities, strict=True))
            assert path == "gather"
            assert sent == pytest.approx(budget, rel=1e-9)
            rest = {densities[i] for i, size in enumerate(sizes) if size > limit}
            assert len(rest) == 1, "the others have one density"
            for size, point in zip(sizes, points, strict=True):
                wanted = (1.0, whole) if size <= limit else (*rest, kind)
                assert point == (*wanted, 1.0, "f32")


@pytest.mark.parametrize(
    ("name", "path", "density", "values"),
    [
        ("rank 32 of q4", "split", 0.0, "rank 32 of q4"),
        ("rank 8", "split", 0.0, "rank 8 of q8"),
        ("rank 8 q1", "split", 1.0, "rank 8 of q8, q1"),
        ("rank 8 of fp16, q2", "split", 1.0, "rank 8 of f16, q2"),
        ("rank 8 of q4, 5% q4", "split", 0.05, "rank 8 of q4, q4"),
        ("rank 4 of q4, gather", "gather", 0.0, "rank 4 of q4"),
        ("rank 200 q1", "split", 1.0, "rank 100 of q8, q1"),  # no more than the columns
    ],
)
def test_factors_of_matrices(name: str, path: str, density: float, values: str) -> None:
    layout = _scant.GradientLayout([(300, 100), (1, 30_000), (2, 40), (200, 300)], 3)
    ((found, _, _, points),) = plan(layout, name, buffer_bytes=10**9).buffers
    second = (density, values) if path == "split" else (1.0, "f32")
    assert found == path
    if not values.startswith("rank 100"):  # whose factors are no fewer numbers than the matrix
        assert points[0] == (density, values, *second)
    # A vector goes as the rest does, or where there is none, as the factors.
    rest = values.partition(", ")[2] or values.split(" of ")[1]
    assert points[1][:2] == (density or 1.0, rest)
    assert points[2][:2] == (1.0, "bf16")  # small


@pytest.mark.parametrize(
    "name",
    ["rank 0 q1", "rank q1", "rank 8 of q5", "rank 8 of q4 q1", "rank 8, q1", "rank 8 0% q4",
     "rank 8 of q4, 101% q4", "rank 257 of q4", "rank 8 of gather"],
)  # fmt: skip
def test_other_names_of_factors_are_refused(name: str) -> None:
    layout = _scant.GradientLayout([(300, 100)], 3)
    with pytest.raises(InvalidArgument, match=r"plan: .*rank"):
        plan(layout, name)


def test_ssfusion_by_hand() -> None:
    layout = _scant.GradientLayout([(1, 10), (100, 40), (1, 10), (100, 50), (1, 30)], 2)
    made = plan(layout, "ssfusion 1% q4")
    ((path, first, parts, points),) = made.buffers
    assert (path, first, parts) == ("gather", 0, 5)
    # 90.5 entries for 9050 elements: 10 + 10 + 30 fit.
    assert [density for density, *_ in points] == pytest.approx([1, 40.5 / 9000, 1, 40.5 / 9000, 1])
    assert [values for _, values, *_ in points] == ["bf16", "q4", "bf16", "q4", "bf16"]


def test_adtopk_is_by_row_and_leaves_vectors_whole() -> None:
    layout = _scant.GradientLayout([(1, 5000), (50, 100), (40, 30)], 2)
    whole, none = (1.0, "bf16"), (1.0, "f32")
    made = plan(layout, "adtopk 2.5%")
    ((path, _, _, points),) = made.buffers
    assert path == "gather"
    assert points == [(*whole, *none), (0.025, "bf16 by row", *none), (*whole, *none)]
    assert plan(layout, "adtopk 2.5% q3").buffers[0][3][1] == (0.025, "q3 by row", *none)
    frame = [(path, parts, points) for path, _, parts, points in made.buffers]
    assert _scant.FusionPlan.make(layout, frame) == made
    assert _scant.FusionPlan.parse(made.serialise(layout), layout) == made
    assert made != plan(layout, "2.5% bf16, gather")


def test_fp16_is_half_precision_both_ways() -> None:
    layout = _scant.GradientLayout([(1, 10), (100, 100)], 2)
    made = plan(layout, "fp16")
    ((path, _, _, points),) = made.buffers
    assert path == "split"
    assert points == [(1.0, "f16", 1.0, "f16")] * 2
    assert made == plan(layout, "f16")
