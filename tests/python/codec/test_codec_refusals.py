"""scant.codec refuses wrong calls and wrong bytes, and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import scant

np = pytest.importorskip("numpy")

from codec_support import SHAPE, gradients, made  # noqa: E402 - needs NumPy

from scant import codec  # noqa: E402


@pytest.mark.parametrize("options", [{"density": 0.05, "values": "q4"}, {"values": "q3"}])
def test_hostile_bytes(options: dict[str, Any]) -> None:
    """Every truncation and every flipped bit is found."""
    encoder = codec.Encoder((6, 50), **options)
    data = bytes(encoder.encode(gradients(1, (6, 50))[0]))
    for size in range(len(data)):
        with pytest.raises(scant.Corrupt):
            codec.Record(data[:size])
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((scant.Corrupt, scant.Unsupported)):
            codec.Record(flipped)
    rng = np.random.default_rng(11)
    for _ in range(200):
        with pytest.raises((scant.Corrupt, scant.Unsupported)):
            codec.Record(rng.bytes(int(rng.integers(1, 200))))


def test_hostile_saved_states() -> None:
    encoder = codec.Encoder((6, 50), density=0.1)
    encoder.encode(gradients(1, (6, 50))[0])
    saved = encoder.save()
    for size in range(len(saved)):
        with pytest.raises(scant.Corrupt):
            codec.Encoder.restore(saved[:size])
    for at in range(len(saved)):
        flipped = bytearray(saved)
        flipped[at] ^= 0x10
        with pytest.raises((scant.Corrupt, scant.Unsupported)):
            codec.Encoder.restore(flipped)
    with pytest.raises(scant.InvalidArgument, match="saved must be"):
        codec.Encoder.restore("text")
    with pytest.raises(scant.Mismatch, match=r"shape \(50, 6\)"):
        codec.Encoder.restore(saved, shape=(50, 6))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("density", 0, "density must lie above 0, got 0"),
        ("density", float("nan"), "density must lie in 0 to 1, got nan"),
        ("density", 1.5, "density must lie in 0 to 1, got 1.5"),
        ("density", "all", "density must be a number, got 'all'"),
        ("values", "q5", "values 'q5' is none of f32, bf16"),
        ("values", 4, "values 4 is none of"),
        ("residual", "f64", "residual 'f64' is none of none, f32"),
        ("decay", float("nan"), "decay must lie in 0 to 1, got nan"),
        ("decay", -0.1, "decay must lie in 0 to 1, got -0.1"),
        ("momentum", float("inf"), "momentum must lie in 0 to 1, got inf"),
        ("momentum", 1, "momentum must lie in 0 to below 1"),
        ("evenness", 2, "evenness must lie in 0 to 1, got 2"),
        ("tensor", -1, "tensor -1 lies outside"),
        ("tensor", 2**32, "tensor 4294967296 lies outside"),
        ("seed", 2**64, "seed 18446744073709551616 lies outside"),
        ("stochastic", 1, "stochastic must be True or False, got 1"),
        ("mask_momentum", "no", "mask_momentum must be True or False"),
        ("threads", 0, "threads 0 lies outside 1 to 256"),
        ("threads", 257, "threads 257 lies outside"),
        ("range", 5, r"range must be \(first, elements\), got 5"),
        ("range", (0, 9101), "range: elements 9101 lies outside"),
        ("range", (9101, 0), "range: first 9101 lies outside"),
        ("range", (1, 10), "range begins at element 1"),
        ("shape", -1, "shape -1 lies outside"),
        ("shape", (3, 0.5), "shape must be a whole number, got 0.5"),
        ("shape", (2**40, 2**40), "shape .* has 2"),
    ],
)
def test_bad_options_are_named(name: str, value: Any, text: str) -> None:
    given: dict[str, Any] = {"shape": SHAPE, name: value}
    with pytest.raises(scant.InvalidArgument, match=rf"^(invalid_argument: )?{text}"):
        codec.Encoder(**given)


def test_no_memory_is_an_error() -> None:
    with pytest.raises(scant.Resource, match="no memory for a residual"):
        codec.Encoder((2**30, 2**30))
    codec.Encoder((2**30, 2**30), residual="none", range=(2**40, 64))


def test_bad_arrays_are_named() -> None:
    encoder = codec.Encoder(SHAPE)
    good = gradients(1)[0]
    record = encoder.encode(good)
    locked = good.copy()
    locked.flags.writeable = False
    shifted = np.frombuffer(bytes(9101 * 4), np.uint8)[1:-3].view(np.float32)
    step = encoder.step
    calls: list[tuple[str, Callable[[], Any]]] = [
        (r"gradient has shape \(130, 70\)", lambda: encoder.encode(good.T.copy())),
        (r"gradient has shape \(9099,\)", lambda: encoder.encode(good.ravel()[:-1])),
        ("gradient has dtype float64", lambda: encoder.encode(good.astype(np.float64))),
        ("gradient has dtype float16", lambda: encoder.encode(good.astype(np.float16))),
        (r"pass gradient.astype\(numpy.float32\)", lambda: encoder.encode(good.astype(int))),
        ("gradient is not contiguous", lambda: encoder.encode(good.T)),
        ("gradient must be a CPU array", lambda: encoder.encode([1.0, 2.0])),
        ("gradient must be a CPU array", lambda: encoder.encode(good.astype(">f4"))),
        ("gradient is not aligned", lambda: encoder.encode(shifted)),
        ("density must lie in 0 to 1, got nan", lambda: encoder.encode(good, float("nan"))),
        ("values 'q5' is none of", lambda: encoder.encode(good, values="q5")),
        ("addend has shape", lambda: encoder.add_residual(good[:3])),
        ("out is read-only", lambda: codec.decode(record, out=locked)),
        ("out has shape", lambda: codec.decode(record, out=np.empty(9, np.float32))),
        ("like has shape", lambda: codec.decode(record, like=good[:3])),
        ("out has dtype", lambda: codec.decode(record, out=np.empty(SHAPE))),
        ("out and like", lambda: codec.decode(record, out=good.copy(), like=good)),
        ("records is empty", lambda: codec.accumulate([])),
        ("weight must lie in", lambda: codec.accumulate([record], weight=float("nan"))),
        ("threads 0 lies outside", lambda: codec.accumulate([record], threads=0)),
        ("data must be bytes", lambda: codec.accumulate([None])),
        ("encoder must be an Encoder", lambda: codec.probe(good, record)),  # type: ignore[arg-type]
        ("points: 3 is no", lambda: codec.probe(good, points=[3])),  # type: ignore[list-item]
        ("values 'q9' is none of", lambda: codec.probe(good, points=[(1.0, "q9")])),
        ("curve 0 must be a Curve", lambda: codec.allocate([3], 1)),  # type: ignore[list-item]
        ("budget_bytes must lie in", lambda: codec.allocate([], float("nan"))),
        ("count -1 lies outside", lambda: codec.top_k(good, -1)),
        ("count 4 lies outside", lambda: codec.random_k(3, 4)),
        ("threshold must lie in", lambda: codec.threshold_select(good, float("nan"))),
        ("density must lie above 0", lambda: codec.row_top_k(good, 0)),
    ]
    for text, call in calls:
        with pytest.raises(scant.InvalidArgument, match=text):
            call()
    assert encoder.step == step


def test_half_precision_tensors_are_refused_with_the_remedy() -> None:
    torch = pytest.importorskip("torch")
    encoder = codec.Encoder(4)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        with pytest.raises(scant.InvalidArgument, match=r"pass gradient.float\(\)"):
            encoder.encode(torch.ones(4, dtype=dtype))


def test_records_that_do_not_belong_together() -> None:
    record = made()[0]
    out = np.full(SHAPE, 7, np.float32)
    others = [
        ("record 1: the tensor is 4, expected 0", made(tensor=4)[0]),
        ("record 1: the shape", codec.Encoder((130, 70)).encode(np.ones((130, 70), np.float32))),
    ]
    for text, other in others:
        with pytest.raises(scant.Mismatch, match=text):
            codec.accumulate([record, other], out=out)
    with pytest.raises(scant.Mismatch, match="first 9101 lies outside"):
        codec.accumulate([record], first=9101)
    with pytest.raises(scant.Mismatch, match="elements 5 from 9100"):
        codec.accumulate([record], first=9100, elements=5)
    assert np.all(out == 7)
