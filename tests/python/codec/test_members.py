"""scant.codec.Members and Factors: exchanges of one tensor in one process."""

from __future__ import annotations

from typing import Any

import pytest

import scant

np = pytest.importorskip("numpy")

from scant import codec  # noqa: E402 - needs NumPy

SHAPES = [(160, 200), (12, 3, 3, 8), (2048,), (33, 40)]
POINTS = [
    "rank 8 of q8, q1",
    "rank 32 of q4",
    "rank 8 of q4, 5% q4",
    "rank 4 q2, gather",
    "rank 2, gather",
    "rank 256 of f32",
    "q4",
    "1% q4",
    "1% q4, gather",
]


def _anything(value: Any) -> Any:
    return value


def strong(shape: tuple[int, ...], seed: int, rank: int = 3) -> Any:
    """Noise, and a few directions that hold more."""
    rng = np.random.default_rng(seed)
    rows, columns = (shape[0], -1) if len(shape) > 1 else (1, -1)
    noise = rng.standard_normal(shape, dtype=np.float32).reshape(rows, columns)
    fixed = np.random.default_rng(5)
    for _ in range(rank):
        left = fixed.standard_normal((noise.shape[0], 1), dtype=np.float32)
        noise += 3 * left @ fixed.standard_normal((1, noise.shape[1]), dtype=np.float32)
    return noise.reshape(shape)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_lost(shape: tuple[int, ...], point: str) -> None:
    """What arrived and what all keep sum to the gradients."""
    members = codec.Members(shape, 3, point)
    given, arrived = np.zeros(shape), np.zeros(shape)
    for step in range(4):
        gradients = [strong(shape, 10 * step + member) for member in range(3)]
        before = [gradient.copy() for gradient in gradients]
        done = members.exchange(gradients)
        assert all(np.array_equal(*pair) for pair in zip(gradients, before, strict=True))
        given += sum(gradients)
        arrived += 3.0 * done.mean
        assert done.mean.shape == shape
        kept = sum(members.residual(member) for member in range(3)) + 3 * members.owners_residual()
        assert np.abs(arrived + kept - given).max() < 2e-4


def test_an_exchange_tells_what_was_sent() -> None:
    shape, count = (160, 200), 4
    members = codec.Members(shape, count, "rank 8 of q8, q1", decay=0)
    errors = []
    for step in range(4):
        done = members.exchange([strong(shape, 10 * step + member) for member in range(count)])
        errors.append(done.error)
    (basis,) = done.basis
    assert basis.shape == (8, 160)
    assert np.abs(basis @ basis.T - np.eye(8)).max() < 1e-5
    for records, elements in ((done.left, 8 * 160), (done.coefficients, 8 * 200)):
        assert [sum(one.elements for one in own) for own in records] == [elements] * count
    assert [sum(one.elements for one in own) for own in done.rest] == [160 * 200] * count
    assert {one.tensor for own in done.left for one in own} == {2**30}
    assert {one.tensor for own in done.coefficients for one in own} == {2**31}
    sent = sum(
        one.nbytes for records in (done.left, done.coefficients, done.rest) for own in records
        for one in own
    )  # fmt: skip
    # A record of a factor goes to one owner, and of four members one is the owner itself.
    assert sum(done.sent_bytes) < sent + 3 * sum(one.nbytes for one in done.averages)
    assert done.bytes == sum(done.sent_bytes) / count
    # The first basis comes from directions drawn at random; power iterations find better ones.
    # (What is kept is forgotten here, so all steps have the same to send.)
    assert errors[-1] < 0.95 * errors[0]
    plain = codec.Members(shape, count, "q1")
    alone = plain.exchange([strong(shape, member) for member in range(count)])
    assert errors[0] < alone.error
    assert not alone.basis
    assert not any(alone.left)


def test_a_large_tensor_is_several_parts() -> None:
    shape = (2100, 2000)  # more than 4,194,304 elements
    members = codec.Members(shape, 2, "rank 2 of q8, q2", part=3)
    gradients = [strong(shape, member) for member in range(2)]
    done = members.exchange(gradients)
    assert [basis.shape for basis in done.basis] == [(2, 2098), (2, 3)]  # rows that a part touches
    assert {record.tensor for record in done.left[0]} == {2**30 + 3, 2**30 + 4}
    kept = members.residual(0) + members.residual(1) + 2 * members.owners_residual()
    assert np.abs(2 * done.mean + kept - sum(gradients)).max() < 1e-4


def test_all_directions_as_f32_are_the_mean() -> None:
    shape = (24, 200)
    gradients = [strong(shape, member) for member in range(3)]
    done = codec.Members(shape, 3, "rank 20 of f32, f32").exchange(gradients)
    assert np.abs(done.mean - sum(gradients) / 3).max() < 1e-5
    assert done.error < 1e-10


def test_more_threads_and_torch_give_the_same_bits() -> None:
    torch = pytest.importorskip("torch")
    shape = (64, 4, 3, 3)
    one = codec.Members(shape, 3, "rank 4 of q4, q2")
    other = codec.Members(shape, 3, "rank 4 of q4, q2", threads=3)
    for step in range(3):
        gradients = [strong(shape, 10 * step + member) for member in range(3)]
        done = one.exchange(gradients)
        again = other.exchange([torch.from_numpy(gradient) for gradient in gradients])
        assert isinstance(again.mean, torch.Tensor)
        assert np.array_equal(done.mean, again.mean.numpy())
        assert done.sent_bytes == again.sent_bytes


def test_a_matrix_too_small_for_factors_goes_as_the_rest() -> None:
    gradients = [strong((3, 64), member) for member in range(2)]
    for named, same in (("rank 8 of q4, q2", "q2"), ("rank 8 of q4", "q4")):
        found = codec.Members((3, 64), 2, named).exchange(gradients)
        assert not found.basis
        wanted = codec.Members((3, 64), 2, same).exchange(gradients)
        assert np.array_equal(found.mean, wanted.mean)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("point", ["rank 4 of q8", "rank 4 of q8, q2"])
def test_what_is_not_finite_is_seen_and_never_kept(point: str, value: float) -> None:
    shape = (40, 64)
    members = codec.Members(shape, 3, point)
    gradients = [strong(shape, member) for member in range(3)]
    gradients[1][7, 9] = value
    done = members.exchange(gradients)
    assert not np.isfinite(done.mean).all()
    for member in range(3):
        assert np.isfinite(members.residual(member)).all()
    done = members.exchange([strong(shape, member) for member in range(3)])
    assert np.isfinite(done.mean).all()
    assert done.error < 1


def test_factors_of_one_member_by_hand() -> None:
    """With one member the factors are a power iteration: the rest loses the strong directions."""
    shape = (80, 120)
    encoders = [
        codec.Encoder(shape, values="q1", range=(0, 4800)),
        codec.Encoder(shape, values="q1", range=(4800, 4800)),
    ]
    factors = codec.Factors(shape, 3)
    shares = []
    for step in range(4):
        gradient = strong(shape, step)
        kept = np.concatenate([encoder.residual() for encoder in encoders]).reshape(shape)
        whole = gradient + kept
        left = factors.project(gradient, encoders)
        assert np.abs(left - factors.directions @ whole.T).max() < 1e-3
        factors.set_basis(left)
        assert np.abs(gradient - whole).max() < 1e-6
        right = factors.coefficients(gradient, encoders)
        assert np.abs(right - factors.basis @ whole).max() < 1e-3
        back = np.zeros(shape, np.float32)
        factors.add(right, back)
        assert np.abs(back - factors.basis.T @ right).max() < 1e-4
        rest = whole - factors.basis.T @ right
        shares.append(float((rest**2).sum() / (whole**2).sum()))
        records = [
            encoder.encode_rest(factors, right, half)
            for encoder, half in zip(encoders, np.split(gradient.reshape(-1), 2), strict=True)
        ]
        told = np.concatenate([codec.decode(record).reshape(-1) for record in records])
        kept = np.concatenate([encoder.residual() for encoder in encoders])
        assert np.abs(told + kept - rest.reshape(-1)).max() < 1e-4
        factors.learn(right)
        assert np.abs((factors.directions**2).sum(axis=1) - 1).max() < 1e-5
    assert shares[-1] < shares[0]
    assert repr(factors) == "<scant.codec.Factors of rank 3: 80 x 120>"


def test_values_without_directions_have_no_coefficients() -> None:
    factors = codec.Factors((12, 16), 4)
    gradient = strong((12, 16), 1)
    gradient[3, 4] = np.inf
    factors.set_basis(factors.project(gradient))
    assert factors.coefficients(gradient) is None
    assert not factors.basis.any()


def test_wrong_calls_are_refused() -> None:
    factors = codec.Factors((12, 16), 4)
    gradient = strong((12, 16), 1)
    for call, words in (
        (lambda: codec.Factors((12, 16), 13), "rank 13 of a matrix of 12 x 16: it must lie in 0"),
        (lambda: codec.Factors((400, 400), 257), "rank 257 lies outside 1 to 256"),
        (lambda: codec.Factors((0, 4), 1), "there are no elements"),
        (lambda: factors.project(gradient[:3]), "gradient has shape"),
        (lambda: factors.project(gradient, codec.Encoder((16, 12))), "encoders: they must be of"),
        (lambda: factors.project(gradient, codec.Encoder((12, 16), range=(64, 64))), "encoders:"),
        (lambda: factors.project(gradient, codec.Encoder((12, 16), range=(0, 64))), "encoders:"),
        (lambda: factors.project(gradient, _anything([3])), "an Encoder is needed, got int"),
        (lambda: factors.set_basis(gradient), "left has shape"),
        (lambda: factors.add(np.zeros((4, 16), np.float32), gradient, range=(100, 200)), "leaves"),
        (lambda: codec.Members((12, 16), 0, "q4"), "members 0 lies outside"),
        (lambda: codec.Members((12, 16), 2, "rank 8 of q5"), "no 'rank 8 of q5'"),
        (lambda: codec.Members((12, 16), 2, "rank 300"), "the rank of 'rank 300' is above 256"),
        (lambda: codec.Members((12, 16), 2, "0% q4"), "density of '0% q4'"),
        (lambda: codec.Members((12, 16), 2, "q4", owner=2), "owner 2 lies outside 0 to 1"),
        (lambda: codec.Members((12, 16), 2, "q4").exchange([gradient]), "1 gradients of 2"),
        (lambda: codec.Members((16, 12), 1, "q4").exchange([gradient]), "the members are of"),
        (lambda: codec.Members((12, 16), 1, "q4").residual(1), "member 1 lies outside 0 to 0"),
    ):  # fmt: skip
        with pytest.raises(scant.InvalidArgument) as raised:
            call()
        assert words in str(raised.value)
