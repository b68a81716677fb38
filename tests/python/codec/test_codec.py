"""scant.codec: arrays and tensors in, records out, and nothing lost on the way."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import scant

np = pytest.importorskip("numpy")

from codec_support import DENSITIES, SHAPE, gradients, integers, made  # noqa: E402 - needs NumPy

from scant import codec  # noqa: E402

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("values", codec.VALUES)
def test_round_trip_and_conservation(values: str, density: float) -> None:
    """What was decoded and what is kept sum to the gradients, exactly."""
    encoder = codec.Encoder(SHAPE, values=values, density=density)
    total = np.zeros(SHAPE)
    arrived = np.zeros(SHAPE)
    for gradient in integers(12):
        record = encoder.encode(gradient)
        decoded = codec.decode(record)
        assert decoded.shape == SHAPE
        assert decoded.dtype == np.float32
        assert np.count_nonzero(decoded) <= record.entries
        if density < 1:
            assert record.entries <= 1.1 * density * gradient.size + 1
        total += gradient
        arrived += decoded
    assert np.array_equal(arrived + encoder.residual(), total)
    assert encoder.step == 12


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("kind", ["bf16", "i8"])
def test_conservation_of_small_residuals(kind: str, density: float) -> None:
    """Each step adds at most the last place of what is stored."""
    encoder = codec.Encoder(SHAPE, values="q2", density=density, residual=kind)
    total = np.zeros(SHAPE)
    arrived = np.zeros(SHAPE)
    bound = np.full(SHAPE, 1e-3)  # sums of f32
    for gradient in gradients(20):
        arrived += codec.decode(encoder.encode(gradient))
        total += gradient
        kept = np.abs(encoder.residual()).astype(np.float64)
        if kind == "bf16":
            bound += kept * 2.0**-6
        else:
            groups = np.pad(kept.ravel(), (0, -kept.size % 64)).reshape(-1, 64).max(axis=1)
            bound += np.repeat(groups, 64)[: kept.size].reshape(SHAPE) / 120
    lost = np.abs(arrived + encoder.residual() - total)
    assert np.all(lost <= bound), (lost - bound).max()
    assert lost.max() > 0  # or the stores would be f32


def test_without_a_residual_nothing_is_kept() -> None:
    encoder = codec.Encoder(SHAPE, values="q1", residual="none")
    gradient = gradients(1)[0]
    first, second = encoder.encode(gradient), encoder.encode(gradient)
    assert bytes(first) == bytes(second)
    assert not encoder.residual().any()


@pytest.mark.parametrize("shape", [(), 1, 64, (3, 5, 7), (40, 3, 3, 3), (0,), (5, 0), (1, 300)])
def test_shapes(shape: Any) -> None:
    """Any number of dimensions; the first counts rows."""
    encoder = codec.Encoder(shape, values="f32")
    sizes = shape if isinstance(shape, tuple) else (shape,)
    gradient = np.arange(int(np.prod(sizes)), dtype=np.float32).reshape(sizes)
    record = encoder.encode(gradient)
    rows = sizes[0] if len(sizes) > 1 else 1
    assert record.shape == (rows, gradient.size // rows)
    assert encoder.residual().shape == encoder.shape == sizes
    assert np.array_equal(codec.decode(record, like=gradient), gradient)
    assert np.array_equal(codec.decode(record).ravel(), gradient.ravel())


def test_torch_and_numpy_give_the_same_bytes() -> None:
    torch = pytest.importorskip("torch")
    gradient = gradients(1)[0]
    tensor = torch.from_numpy(gradient.copy()).requires_grad_()
    for density in DENSITIES:
        from_numpy = codec.Encoder(SHAPE, density=density).encode(gradient)
        from_torch = codec.Encoder(tensor.shape, density=density).encode(tensor)
        assert bytes(from_numpy) == bytes(from_torch)
        decoded = codec.decode(from_torch, like=tensor)
        assert isinstance(decoded, torch.Tensor)
        assert np.array_equal(decoded.numpy(), codec.decode(from_numpy))
        out = torch.full(SHAPE, 7.0)
        assert codec.decode(from_numpy, out=out) is out
        assert torch.equal(out, decoded)


def test_read_only_and_flat_inputs() -> None:
    gradient = gradients(1)[0]
    expected = bytes(codec.Encoder(SHAPE).encode(gradient))
    gradient.flags.writeable = False
    assert bytes(codec.Encoder(SHAPE).encode(gradient)) == expected
    assert bytes(codec.Encoder(SHAPE).encode(gradient.ravel())) == expected
    folded = gradient.reshape(70, 13, 10)
    assert bytes(codec.Encoder(SHAPE).encode(folded)) == expected


def test_records_tell_what_they_are() -> None:
    (record,) = made(tensor=9, density=0.05, values="q3")
    data = bytes(record)
    assert len(record) == record.nbytes == len(data)
    assert (record.tensor, record.shape, record.first, record.elements) == (9, SHAPE, 0, 9100)
    assert record.nonfinite == 0
    (block,) = record.blocks
    assert (block.values, block.entries, block.elements) == ("q3", record.entries, 9100)
    assert block.positions in ("bitmap", "delta8", "position16") or "packed" in block.positions
    assert 64 + block.bytes == record.nbytes
    report = record.report
    assert report is not None
    assert (report.bytes, report.entries) == (record.nbytes, record.entries)
    assert 0 < report.energy_kept < 1
    assert report.energy_kept == pytest.approx(1 - report.energy_left / report.energy)
    view = memoryview(record)  # type: ignore[arg-type,unused-ignore]
    assert view.readonly
    assert view == data
    for text in (repr(record), repr(block), repr(report)):
        assert text.startswith("<scant.codec.")


def test_records_from_bytes() -> None:
    """Bytes are the record: of any kind of buffer, several behind each other, pickled."""
    records = made(3, density=0.1)
    data = b"".join(bytes(record) for record in records)
    for source in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        read = codec.parse_all(source)
        assert [bytes(record) for record in read] == [bytes(record) for record in records]
    assert codec.parse_all(b"") == []
    again = codec.Record(bytearray(bytes(records[0])))
    assert again.report is None
    assert np.array_equal(codec.decode(again), codec.decode(records[0]))
    assert np.array_equal(codec.decode(bytes(again)), codec.decode(again))
    unpickled = pickle.loads(pickle.dumps(records[1]))
    assert isinstance(unpickled, codec.Record)
    assert bytes(unpickled) == bytes(records[1])
    with pytest.raises(scant.Corrupt, match="bytes follow the record"):
        codec.Record(data)
    with pytest.raises(scant.InvalidArgument, match="data must be bytes"):
        codec.Record(7)


def test_a_changed_buffer_does_not_change_a_record() -> None:
    (record,) = made(density=0.1)
    source = bytearray(bytes(record))
    taken = codec.Record(source)
    source[:] = bytes(len(source))
    assert bytes(taken) == bytes(record)


Restart = Callable[[codec.Encoder], codec.Encoder]


@pytest.mark.parametrize(
    "restart",
    [
        lambda old: codec.Encoder.restore(old.save(), shape=SHAPE, density=0.02, values="q3"),
        lambda old: pickle.loads(pickle.dumps(old)),
        copy.deepcopy,
    ],
)
@pytest.mark.parametrize("residual", codec.RESIDUALS)
def test_a_restored_encoder_goes_on_as_if_nothing_had_been(residual: str, restart: Restart) -> None:
    options: dict[str, Any] = {
        "density": 0.02,
        "values": "q3",
        "residual": residual,
        "momentum": 0.9,
        "decay": 0.97,
        "stochastic": True,
        "evenness": 0.5,
        "seed": 77,
        "tensor": 3,
    }
    straight = codec.Encoder(SHAPE, **options)
    broken = codec.Encoder(SHAPE, **options)
    for number, gradient in enumerate(gradients(8)):
        if number == 4:
            broken = restart(broken)
        assert bytes(straight.encode(gradient)) == bytes(broken.encode(gradient)), number
    assert straight.save() == broken.save()
    assert (broken.step, broken.tensor, broken.shape) == (8, 3, SHAPE)


@pytest.mark.parametrize("density", [1.0, 0.01])
def test_bytes_do_not_depend_on_threads(density: float) -> None:
    shape = (300, 1000)  # five sparse blocks
    outcomes = []
    for threads in (1, 2, 3):
        encoder = codec.Encoder(
            shape, density=density, residual="i8", stochastic=True, threads=threads
        )
        records = [encoder.encode(gradient) for gradient in gradients(3, shape)]
        total = codec.accumulate(records, threads=threads)
        outcomes.append((b"".join(bytes(record) for record in records), total.tobytes()))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("values", codec.VALUES)
def test_sums_are_those_of_numpy(values: str) -> None:
    """In the order given, in f32, weighted at the end: bit for bit. So are slices."""
    rng = np.random.default_rng(3)
    records = []
    for number, density in enumerate([1, 1, 0.3, 0.1, 0.03, 0.01, 1, 0.2]):
        encoder = codec.Encoder(SHAPE, density=density, values=values)
        gradient = rng.standard_normal(SHAPE, dtype=np.float32) * 10.0 ** (number - 4)
        records.append(encoder.encode(gradient.astype(np.float32)))
    for weight in (None, 1.0, 0.3):
        total = np.zeros(SHAPE, np.float32)
        for record in records:
            total += codec.decode(record)
        total *= np.float32(1 / 8 if weight is None else weight)
        found = codec.accumulate(records, weight=weight)
        assert np.array_equal(found.view(np.uint32), total.view(np.uint32))
    backwards = codec.accumulate(records[::-1], weight=0.3)
    assert np.allclose(backwards, found, atol=1e-3)
    for first, elements in [(0, 9100), (0, 0), (9100, 0), (1, 1), (4000, 4500), (9099, 1)]:
        part = codec.accumulate(records, weight=0.3, first=first, elements=elements)
        assert np.array_equal(part.ravel(), found.ravel()[first : first + elements])


def test_ranges_of_a_tensor() -> None:
    """Encoders of parts make records that fill parts of the whole."""
    gradient = gradients(1)[0]
    records = []
    for part in [(0, 4160), (4160, 4940)]:
        encoder = codec.Encoder(SHAPE, values="f32", range=part)
        begin, end = part[0], part[0] + part[1]
        records.append(encoder.encode(gradient.ravel()[begin:end]))
        assert encoder.range == part
        assert encoder.residual().shape == (part[1],)
        decoded = codec.decode(records[-1])
        assert np.array_equal(decoded, gradient.ravel()[begin:end])
        with pytest.raises(scant.InvalidArgument, match="gradient has shape"):
            encoder.encode(gradient)
    inner = codec.accumulate([records[1]], first=5000, elements=9)
    assert np.array_equal(inner, gradient.ravel()[5000:5009])
    with pytest.raises(scant.Mismatch, match="first 0 lies outside"):
        codec.accumulate([records[1]], first=0)
    with pytest.raises(scant.Mismatch, match="record 1: the range"):
        codec.accumulate(records)


def test_residuals_move() -> None:
    gradient = gradients(1)[0]
    whole = codec.Encoder(SHAPE, density=0.1)
    whole.encode(gradient)
    kept = whole.residual()
    parts = [codec.Encoder(SHAPE, range=part) for part in [(0, 4160), (4160, 4940)]]
    for part in parts:
        part.take_over(whole)
    joined = np.concatenate([part.residual() for part in parts])
    assert np.array_equal(joined, kept.ravel())
    whole.add_residual(gradient)
    assert np.array_equal(whole.residual(), kept + gradient)
    whole.clear()
    assert not whole.residual().any()
    with pytest.raises(scant.Mismatch, match="number or shape differ"):
        whole.take_over(codec.Encoder(SHAPE, tensor=5))
    with pytest.raises(scant.InvalidArgument, match="other is this encoder itself"):
        whole.take_over(whole)
    with pytest.raises(scant.InvalidArgument, match="other must be an Encoder"):
        whole.take_over(kept)


def test_memory_is_told() -> None:
    elements = SHAPE[0] * SHAPE[1]
    sizes = {kind: codec.Encoder(SHAPE, residual=kind).memory_bytes for kind in codec.RESIDUALS}
    assert sizes["none"] == 0
    assert sizes["f32"] == 4 * elements
    assert sizes["bf16"] == 2 * elements
    assert sizes["i8"] == elements + 2 * -(-elements // 64)


def test_nonfinite_values_arrive() -> None:
    gradient = gradients(1)[0]
    gradient[3, 5], gradient[60, 7] = np.nan, np.inf
    for density in DENSITIES:
        encoder = codec.Encoder(SHAPE, density=density)
        record = encoder.encode(gradient)
        decoded = codec.decode(record)
        assert np.isnan(decoded[3, 5])
        assert np.isposinf(decoded[60, 7])
        assert record.nonfinite == 2
        assert record.report is not None
        assert record.report.nonfinite == 2
        assert np.isfinite(encoder.residual()).all()


def test_probe_and_allocate() -> None:
    """The probe foretells records; the budget is kept and used where energy is."""
    loud, quiet = gradients(2)
    loud *= 30
    encoder = codec.Encoder(SHAPE)
    before = encoder.save()
    points = [(1.0, "q4"), (1.0, "q2"), (0.05, "q4"), (0.01, "bf16")]
    curve = codec.probe(loud, encoder, points)
    assert encoder.save() == before
    assert [(point.density, point.values) for point in curve.points] == points
    assert curve.energy == pytest.approx(float((loud.astype(np.float64) ** 2).sum()), rel=0.05)
    for point in curve.points:
        record = codec.Encoder(SHAPE).encode(loud, point.density, point.values)
        assert record.report is not None
        assert point.bytes == pytest.approx(record.nbytes, rel=0.1)
        assert point.energy_kept == pytest.approx(record.report.energy_kept, rel=0.1)

    curves = [codec.probe(loud), codec.probe(quiet)]
    assert len(curves[0].points) == len(codec.default_points())
    budget = 5000.0
    found = codec.allocate(curves, budget)
    assert found.bytes <= budget
    assert found.points == tuple(c.points[i] for c, i in zip(curves, found.choice, strict=True))
    assert found.bytes == pytest.approx(sum(point.bytes for point in found.points))
    assert found.energy <= found.energy_bound * (1 + 1e-12)
    assert found.points[0].bytes > found.points[1].bytes
    assert codec.allocate(curves, 1e9).energy >= found.energy
    with pytest.raises(scant.InvalidArgument, match="budget"):
        codec.allocate(curves, 1)


def test_selections_of_others() -> None:
    values = gradients(1)[0]
    order = np.argsort(-np.abs(values).ravel(), kind="stable")
    assert np.array_equal(codec.top_k(values, 50), np.sort(order[:50]))
    rows = codec.row_top_k(values, 0.02)  # two of 130
    assert np.array_equal(rows // 130, np.repeat(np.arange(70), 2))
    largest = np.sort(np.abs(values), axis=1)[:, -2:].min(axis=1)
    assert np.all(np.abs(values.ravel()[rows]) >= np.repeat(largest, 2))
    drawn = codec.random_k(9100, 91, seed=4, step=1)
    assert len(np.unique(drawn)) == 91
    assert np.array_equal(drawn, np.sort(drawn))
    assert np.array_equal(drawn, codec.random_k(9100, 91, seed=4, step=1))
    assert not np.array_equal(drawn, codec.random_k(9100, 91, seed=4, step=2))
    passed = np.flatnonzero(np.abs(values).ravel() >= np.float32(2.5))
    assert np.array_equal(codec.threshold_select(values, 2.5), passed)
    assert codec.row_top_k(np.empty((3, 0), np.float32), 0.5).size == 0


def test_other_threads_go_on_during_an_encode() -> None:
    """A thread hands the GIL over only where it asks for that: the interval is a thousand seconds.

    So work in pure Python keeps the other thread waiting, and an encode lets it run.
    """
    begin, ran = threading.Event(), threading.Event()

    def other() -> None:
        begin.wait(60)
        ran.set()

    encoder = codec.Encoder((1000, 1000))
    gradient = gradients(1, (1000, 1000))[0]
    interval = sys.getswitchinterval()
    thread = threading.Thread(target=other)
    thread.start()
    sys.setswitchinterval(1000)
    try:
        begin.set()
        sum(range(100_000))
        assert not ran.is_set()
        encodes = 0
        while not ran.is_set() and encodes < 2000:
            encoder.encode(gradient)
            encodes += 1
        assert ran.is_set()
    finally:
        sys.setswitchinterval(interval)
        thread.join()


def test_threads_share_an_encoder() -> None:
    """Steps of one encoder follow each other, whichever threads ask for them."""
    encoder = codec.Encoder(SHAPE, values="q2", threads=2)
    parts = integers(12)
    records: list[codec.Record] = []

    def work(mine: list[Any]) -> None:
        for gradient in mine:
            records.append(encoder.encode(gradient))

    threads = [threading.Thread(target=work, args=(parts[i::3],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    arrived = sum(codec.decode(record).astype(np.float64) for record in records)
    assert np.array_equal(arrived + encoder.residual(), np.sum(parts, axis=0))


FORKS = """
import os, sys
import numpy as np
import scant
from scant import codec
encoder = codec.Encoder(100000, threads=2)
gradient = np.ones(100000, np.float32)
record = encoder.encode(gradient)
child = os.fork()
if child == 0:
    try:
        encoder.encode(gradient)
        os._exit(2)
    except scant.Closed:
        pass
    total = codec.accumulate([record], threads=2)
    fresh = codec.Encoder(100000, threads=2).encode(gradient)
    os._exit(0 if bytes(fresh) == bytes(record) and abs(total.mean() - 1) < 0.1 else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_forked_children() -> None:
    """A child has no threads of its parent's; it makes its own, and encoders say whose they are."""
    command = [sys.executable, "-W", "ignore", "-c", FORKS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_codec_needs_no_torch() -> None:
    """And `scant.codec` is found without an import of its own."""
    program = "import sys, scant; print(scant.codec.kernels, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == [codec.kernels, "False"], done.stderr


def test_the_example_of_the_document_runs() -> None:
    text = (ROOT / "docs/codec.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/codec.md", "exec"), {})
