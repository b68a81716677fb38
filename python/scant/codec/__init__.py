"""Gradients in few bytes, on NumPy arrays and CPU torch tensors of f32.

::

    import numpy as np
    from scant import codec

    encoder = codec.Encoder((512, 512), density=0.01, values="q4")
    record = encoder.encode(gradient)             # keeps what it leaves behind for the next step
    average = codec.accumulate([record, other])   # records of all ranks, in their order

``docs/codec.md`` says what is guaranteed, ``docs/record.md`` what the bytes mean.
"""

from __future__ import annotations

from scant import _scant
from scant._scant import Block, Record, Report, parse_all
from scant.codec.checked import RESIDUALS, VALUES
from scant.codec.decoding import accumulate, decode
from scant.codec.encoder import Encoder
from scant.codec.factors import Factors
from scant.codec.members import Exchanged, Members
from scant.codec.plane import (
    Allocation,
    Curve,
    CurvePoint,
    allocate,
    default_points,
    probe,
    random_k,
    row_top_k,
    threshold_select,
    top_k,
)

__all__ = [
    "RESIDUALS",
    "VALUES",
    "Allocation",
    "Block",
    "Curve",
    "CurvePoint",
    "Encoder",
    "Exchanged",
    "Factors",
    "Members",
    "Record",
    "Report",
    "accumulate",
    "allocate",
    "decode",
    "default_points",
    "kernels",
    "parse_all",
    "probe",
    "random_k",
    "row_top_k",
    "threshold_select",
    "top_k",
]

kernels: str = _scant.codec_kernels  # the instruction set in use, such as "avx2"
