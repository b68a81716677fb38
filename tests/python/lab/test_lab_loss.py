"""The loss program: its encoding, and its verdicts against the plain Python reference."""

from __future__ import annotations

import os

import pytest
from lab_support import needs_loss

from scant.lab import Loss
from scant.lab.bpf import R0, R1, R10, XDP_DROP, XDP_PASS, Assembler
from scant.lab.loss import LossProgram, ReferenceLoss, splitmix64

FRAMES = 4000


def test_assembler_encodes_as_specified() -> None:
    """Bytes worked out by hand from the instruction set's tables (little-endian)."""
    code = Assembler()
    code.alu_imm("mov", R0, 2)
    code.load(4, R1, R1, 4)
    code.jump_if_imm("jeq", R0, 0, "end")
    code.atomic_add(R1, 16, R0)
    code.store_imm(8, R10, -8, -1)
    code.load_imm64(R1, 0x1122334455667788)
    code.label("end")
    code.exit()
    assert code.bytecode().hex(" ", 8) == (
        "b700000002000000 6111040000000000 1500040000000000 db01100000000000 "
        "7a0af8ffffffffff 1801000088776655 0000000044332211 9500000000000000"
    )


def test_splitmix64_matches_published_values() -> None:
    """First draws from seed 1234567, as in the test vectors of the generator's C source."""
    state, draws = 1234567, []
    for _ in range(3):
        state, draw = splitmix64(state)
        draws.append(draw)
    assert draws == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(
    "loss",
    [
        Loss(),
        Loss.uniform(1.0),
        Loss.uniform(0.1),
        Loss(to_bad=0.05, to_good=0.3),
        Loss(to_bad=0.02, to_good=0.2, bad=0.7, good=0.01),
        Loss(to_bad=1.0, to_good=1.0, bad=1.0, good=0.0),
    ],
)
def test_reference_has_the_mean_it_states(loss: Loss) -> None:
    seed = 42
    reference = ReferenceLoss(loss, seed)
    share = sum(reference.lost() for _ in range(200_000)) / 200_000
    assert share == pytest.approx(loss.mean, rel=0.05, abs=1e-9), f"seed={seed}"


@needs_loss
@pytest.mark.parametrize(
    "loss",
    [
        Loss(),
        Loss.uniform(1.0),
        Loss.uniform(0.1),
        Loss(to_bad=0.05, to_good=0.3),
        Loss(to_bad=0.02, to_good=0.2, bad=0.7, good=0.01),
    ],
)
def test_program_equals_reference(loss: Loss) -> None:
    seed = int.from_bytes(os.urandom(8), "little")
    print(f"seed={seed}")
    program, reference = LossProgram(loss, seed), ReferenceLoss(loss, seed)
    passed = lost = passed_bytes = lost_bytes = 0
    try:
        for number in range(FRAMES):
            frame = bytes(64 + number % 1400)
            verdict = program.program.run(frame)
            expected = reference.lost()
            assert verdict == (XDP_DROP if expected else XDP_PASS), f"frame {number} seed={seed}"
            if expected:
                lost, lost_bytes = lost + 1, lost_bytes + len(frame)
            else:
                passed, passed_bytes = passed + 1, passed_bytes + len(frame)
        found = program.counters()
        assert (found.passed_packets, found.passed_bytes) == (passed, passed_bytes)
        assert (found.lost_packets, found.lost_bytes) == (lost, lost_bytes)
    finally:
        program.close()


@needs_loss
def test_program_takes_new_settings_and_keeps_counting() -> None:
    program = LossProgram(Loss.uniform(1.0), 1)
    try:
        assert program.program.run(bytes(100)) == XDP_DROP
        program.set(Loss())
        assert program.program.run(bytes(100)) == XDP_PASS
        found = program.counters()
        assert (found.lost_packets, found.passed_packets) == (1, 1)
    finally:
        program.close()
