"""Options that nobody knows are refused by name, whatever crosses into C++ as a dict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import scant
from scant import _scant

ENCODER: dict[str, Any] = {
    "tensor": 0,
    "rows": 2,
    "columns": 64,
    "residual": "f32",
    "decay": 1.0,
    "momentum": 0.0,
    "mask_momentum": True,
    "stochastic": False,
    "evenness": 0.0,
    "seed": 1,
    "range": None,
}


def test_an_encoders_options() -> None:
    assert _scant.Encoder(ENCODER) is not None
    known = ", ".join(sorted(ENCODER))
    with pytest.raises(scant.InvalidArgument) as refused:
        _scant.Encoder({**ENCODER, "residul": "f32"})
    assert f"Encoder: no option 'residul'; there are: {known}" in str(refused.value)
    for name in ENCODER:
        left = {key: value for key, value in ENCODER.items() if key != name}
        with pytest.raises(scant.InvalidArgument, match=f"the option '{name}' is missing"):
            _scant.Encoder(left)
    with pytest.raises(scant.InvalidArgument, match="the option 'rows' cannot be 'two'"):
        _scant.Encoder({**ENCODER, "rows": "two"})


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("residual", "f64", "residual: no kind 'f64'; there are: none, f32, bf16, i8"),
        ("range", (5,), "the option 'range' cannot be (5,)"),
        ("range", 5, "the option 'range' cannot be 5"),
        ("zeta", 1, "Encoder: no option 'zeta'; there are: columns,"),
    ],
)
def test_the_extension_names_what_it_refuses(name: str, value: Any, text: str) -> None:
    with pytest.raises(scant.InvalidArgument) as found:
        _scant.Encoder({**ENCODER, name: value})
    assert text in str(found.value)


def test_a_communicators_options(tmp_path: Path) -> None:
    store = scant.DirectoryStore(str(tmp_path))
    with pytest.raises(scant.InvalidArgument) as refused:
        _scant.Communicator(store, {"rank": 0, "size": 1, "peer_timeut": 3.0})
    text = str(refused.value)
    assert "Communicator: no option 'peer_timeut'; there are: address, connect_timeout" in text
    with pytest.raises(scant.InvalidArgument, match="the option 'peer_timeout' cannot be 'soon'"):
        _scant.Communicator(store, {"rank": 0, "size": 1, "peer_timeout": "soon"})


def test_an_averagers_options(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    layout = _scant.GradientLayout([(1, 64)], 1)
    arena = np.zeros(layout.arena_elements, dtype=np.float32)
    with scant.Communicator(scant.DirectoryStore(str(tmp_path)), 0, 1) as communicator:
        raw = communicator._native()
        with pytest.raises(scant.InvalidArgument) as refused:
            _scant.Averager(raw, layout, arena.ctypes.data, {"decai": 0.5}, arena)
        assert "Averager: no option 'decai'; there are: decay, key, members" in str(refused.value)
        with pytest.raises(scant.InvalidArgument, match="the option 'decay' cannot be 'none'"):
            _scant.Averager(raw, layout, arena.ctypes.data, {"decay": "none"}, arena)
        averager = _scant.Averager(raw, layout, arena.ctypes.data, {"decay": 0.5}, arena)
        averager.close()
