"""Frame loss in the kernel: an XDP program with a seeded generator and per-link counters.

For each frame the program steps a splitmix64 generator held in a map; the low half of the draw
moves the Gilbert–Elliott state, the high half decides the loss. The decisions are a pure function
of seed and frame number; which frame has which number depends on timing. A veth delivers its
frames from one NAPI context at a time, so plain loads and stores of the state suffice.
"""

from __future__ import annotations

import dataclasses
import struct

from scant.lab import bpf
from scant.lab.bpf import R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10
from scant.lab.options import Loss

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_A = 0xBF58476D1CE4E5B9
_MIX_B = 0x94D049BB133111EB
_MASK = (1 << 64) - 1

# Offsets in the "config" value: four thresholds, each 0 to 2^32 for a share of 0 to 1.
_GOOD, _BAD, _TO_BAD, _TO_GOOD = 0, 8, 16, 24
_CONFIG = struct.Struct("=QQQQ")
# Offsets in the "state" value.
_RANDOM, _IN_BAD, _PASSED, _PASSED_BYTES, _LOST, _LOST_BYTES = 0, 8, 16, 24, 32, 40
_STATE = struct.Struct("=QQQQQQ")


@dataclasses.dataclass(frozen=True)
class LossCounters:
    """What the loss program has let pass and what it dropped."""

    passed_packets: int = 0
    passed_bytes: int = 0
    lost_packets: int = 0
    lost_bytes: int = 0


def splitmix64(state: int) -> tuple[int, int]:
    """Next state and draw; the program computes the same (Steele, Lea and Flood 2014)."""
    state = (state + _GOLDEN) & _MASK
    z = state
    z = ((z ^ (z >> 30)) * _MIX_A) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_B) & _MASK
    return state, z ^ (z >> 31)


class ReferenceLoss:
    """The same decisions in plain Python, to hold the program against."""

    def __init__(self, loss: Loss, seed: int) -> None:
        self._random = seed
        self._in_bad = False
        self._thresholds = _thresholds(loss)

    def lost(self) -> bool:
        good, bad, to_bad, to_good = self._thresholds
        self._random, draw = splitmix64(self._random)
        low, high = draw & 0xFFFFFFFF, draw >> 32
        if self._in_bad:
            self._in_bad = low >= to_good
        else:
            self._in_bad = low < to_bad
        return high < (bad if self._in_bad else good)


def _thresholds(loss: Loss) -> tuple[int, int, int, int]:
    shares = (loss.good, loss.bad, loss.to_bad, loss.to_good)
    good, bad, to_bad, to_good = (round(share * 2**32) for share in shares)
    return good, bad, to_bad, to_good


def _lookup(code: bpf.Assembler, map_fd: int) -> None:
    """R0 = pointer to the map's only value; a frame passes when there is none."""
    code.load_map(R1, map_fd)
    code.alu("mov", R2, R10)
    code.alu_imm("add", R2, -4)
    code.call(bpf.HELPER_MAP_LOOKUP)
    code.jump_if_imm("jeq", R0, 0, "pass")


def _draw(code: bpf.Assembler) -> None:
    """R2 = low half, R3 = high half of the next splitmix64 draw; uses R1, R4."""
    code.load(8, R1, R9, _RANDOM)
    code.load_imm64(R4, _GOLDEN)
    code.alu("add", R1, R4)
    code.store(8, R9, _RANDOM, R1)
    for shift, factor in ((30, _MIX_A), (27, _MIX_B), (31, None)):
        code.alu("mov", R4, R1)
        code.alu_imm("rsh", R4, shift)
        code.alu("xor", R1, R4)
        if factor is not None:
            code.load_imm64(R4, factor)
            code.alu("mul", R1, R4)
    code.mov32(R2, R1)
    code.alu("mov", R3, R1)
    code.alu_imm("rsh", R3, 32)


def _program(config_fd: int, state_fd: int) -> bytes:
    code = bpf.Assembler()
    code.load(4, R7, R1, 4)  # xdp_md.data_end
    code.load(4, R6, R1, 0)  # xdp_md.data
    code.alu("sub", R7, R6)  # R7 = length of the frame
    code.store_imm(4, R10, -4, 0)  # the key of both maps
    _lookup(code, config_fd)
    code.alu("mov", R8, R0)
    _lookup(code, state_fd)
    code.alu("mov", R9, R0)
    _draw(code)
    code.load(8, R4, R9, _IN_BAD)
    code.jump_if_imm("jne", R4, 0, "was_bad")
    code.load(8, R5, R8, _TO_BAD)
    code.jump_if("jge", R2, R5, "now_good")
    code.label("now_bad")
    code.store_imm(8, R9, _IN_BAD, 1)
    code.load(8, R5, R8, _BAD)
    code.jump("decide")
    code.label("was_bad")
    code.load(8, R5, R8, _TO_GOOD)
    code.jump_if("jge", R2, R5, "now_bad")
    code.label("now_good")
    code.store_imm(8, R9, _IN_BAD, 0)
    code.load(8, R5, R8, _GOOD)
    code.label("decide")
    code.alu_imm("mov", R1, 1)
    code.jump_if("jlt", R3, R5, "drop")
    code.atomic_add(R9, _PASSED, R1)
    code.atomic_add(R9, _PASSED_BYTES, R7)
    code.label("pass")
    code.alu_imm("mov", R0, bpf.XDP_PASS)
    code.exit()
    code.label("drop")
    code.atomic_add(R9, _LOST, R1)
    code.atomic_add(R9, _LOST_BYTES, R7)
    code.alu_imm("mov", R0, bpf.XDP_DROP)
    code.exit()
    return code.bytecode()


class LossProgram:
    """One link's program with its settings and counters."""

    def __init__(self, loss: Loss, seed: int) -> None:
        self._config = bpf.ArrayMap("lab_loss_cfg", _CONFIG.size)
        self._state = bpf.ArrayMap("lab_loss_state", _STATE.size)
        self.set(loss)
        self._state.write(_STATE.pack(seed & _MASK, 0, 0, 0, 0, 0))
        self.program = bpf.XdpProgram("lab_loss", _program(self._config.fd, self._state.fd))

    def attach(self, interface_index: int) -> None:
        self.program.attach(interface_index)

    def set(self, loss: Loss) -> None:
        """Change the shares; generator and counters go on."""
        self._config.write(_CONFIG.pack(*_thresholds(loss)))

    def counters(self) -> LossCounters:
        return LossCounters(*_STATE.unpack(self._state.read())[2:])

    def close(self) -> None:
        self.program.close()
        self._config.close()
        self._state.close()
