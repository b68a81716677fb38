"""A small eBPF assembler and the bpf(2) calls that load, attach and read a program.

No compiler and no library is needed at run time. Encodings: Linux Documentation/bpf/standardization
(instruction set) and include/uapi/linux/bpf.h. Owner: the process that loads; closing the
descriptors detaches and frees everything.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

from scant.lab.errors import LabError
from scant.lab.system import libc

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)

# Little-endian machines only: the encoder packs the two register numbers in that order.
_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361}

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _PROG_LOAD = 0, 1, 2, 5
_PROG_TEST_RUN, _LINK_CREATE = 10, 28
_MAP_TYPE_ARRAY = 2
_PROG_TYPE_XDP = 6
_ATTACH_XDP = 37
_XDP_FLAGS_DRIVER = 1 << 2
_LOG_BYTES = 1 << 16

HELPER_MAP_LOOKUP = 1
XDP_DROP, XDP_PASS = 1, 2

_SIZES = {4: 0x00, 8: 0x18}
_ALU = {
    "add": 0x00,
    "sub": 0x10,
    "mul": 0x20,
    "or": 0x40,
    "and": 0x50,
    "lsh": 0x60,
    "rsh": 0x70,
    "xor": 0xA0,
    "mov": 0xB0,
}
_JUMP = {"jeq": 0x10, "jgt": 0x20, "jge": 0x30, "jne": 0x50, "jlt": 0xA0, "jle": 0xB0}


class Assembler:
    """Instructions by name, labels resolved at the end; every method appends one instruction."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []

    def _add(self, op: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> None:
        self._code.append((op, dst, src, offset, imm))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def alu(self, name: str, dst: int, src: int) -> None:
        """64-bit ``dst = dst <name> src``."""
        self._add(0x0F | _ALU[name], dst, src)

    def alu_imm(self, name: str, dst: int, imm: int) -> None:
        """64-bit ``dst = dst <name> imm``; the immediate is sign-extended from 32 bits."""
        self._add(0x07 | _ALU[name], dst, imm=imm)

    def mov32(self, dst: int, src: int) -> None:
        """The low 32 bits of ``src``, zero-extended."""
        self._add(0xBC, dst, src)

    def load_imm64(self, dst: int, value: int) -> None:
        self._pair(dst, 0, value)

    def load_map(self, dst: int, map_fd: int) -> None:
        self._pair(dst, 1, map_fd)  # BPF_PSEUDO_MAP_FD

    def _pair(self, dst: int, kind: int, value: int) -> None:
        low, high = struct.unpack("=ii", struct.pack("=Q", value))
        self._add(0x18, dst, kind, imm=low)
        self._add(0, imm=high)

    def load(self, size: int, dst: int, src: int, offset: int) -> None:
        """``dst = *(src + offset)``."""
        self._add(0x61 | _SIZES[size], dst, src, offset)

    def store(self, size: int, dst: int, offset: int, src: int) -> None:
        """``*(dst + offset) = src``."""
        self._add(0x63 | _SIZES[size], dst, src, offset)

    def store_imm(self, size: int, dst: int, offset: int, imm: int) -> None:
        self._add(0x62 | _SIZES[size], dst, 0, offset, imm)

    def atomic_add(self, dst: int, offset: int, src: int) -> None:
        """64-bit ``*(dst + offset) += src``, atomically."""
        self._add(0xDB, dst, src, offset)

    def jump(self, label: str) -> None:
        self._jumps.append((len(self._code), label))
        self._add(0x05)

    def jump_if(self, name: str, left: int, right: int, label: str) -> None:
        """Unsigned 64-bit comparison of two registers."""
        self._jumps.append((len(self._code), label))
        self._add(0x0D | _JUMP[name], left, right)

    def jump_if_imm(self, name: str, left: int, imm: int, label: str) -> None:
        self._jumps.append((len(self._code), label))
        self._add(0x05 | _JUMP[name], left, imm=imm)

    def call(self, helper: int) -> None:
        self._add(0x85, imm=helper)

    def exit(self) -> None:
        self._add(0x95)

    def bytecode(self) -> bytes:
        code = list(self._code)
        for at, label in self._jumps:
            op, dst, src, _, imm = code[at]
            code[at] = (op, dst, src, self._labels[label] - at - 1, imm)
        return b"".join(
            struct.pack("=BBhi", op, src << 4 | dst, offset, imm)
            for op, dst, src, offset, imm in code
        )


def _bpf(command: int, attributes: bytes) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise LabError(f"bpf(2) is not known on {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes.ljust(144, b"\0"), 144)
    result: int = libc.syscall(
        ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(len(buffer))
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf command {command}: {os.strerror(code)}")
    if command == _PROG_TEST_RUN:
        return int(struct.unpack_from("=I", buffer.raw, 4)[0])
    return result


class ArrayMap:
    """A BPF array of one value of fixed size."""

    def __init__(self, name: str, value_bytes: int) -> None:
        self._value_bytes = value_bytes
        self.fd = _bpf(
            _MAP_CREATE,
            struct.pack("=IIIIIII16s", _MAP_TYPE_ARRAY, 4, value_bytes, 1, 0, 0, 0, name.encode()),
        )

    def close(self) -> None:
        os.close(self.fd)

    def read(self) -> bytes:
        value = ctypes.create_string_buffer(self._value_bytes)
        self._access(_MAP_LOOKUP, value)
        return value.raw

    def write(self, data: bytes) -> None:
        if len(data) != self._value_bytes:
            raise ValueError(f"{len(data)} bytes for a value of {self._value_bytes}")
        self._access(_MAP_UPDATE, ctypes.create_string_buffer(data, len(data)))

    def _access(self, command: int, value: ctypes.Array[ctypes.c_char]) -> None:
        key = ctypes.c_uint32(0)
        attributes = struct.pack(
            "=IxxxxQQQ", self.fd, ctypes.addressof(key), ctypes.addressof(value), 0
        )
        _bpf(command, attributes)


class XdpProgram:
    """A loaded XDP program, attached to at most one device by a link."""

    def __init__(self, name: str, code: bytes) -> None:
        instructions = ctypes.create_string_buffer(code, len(code))
        licence = ctypes.create_string_buffer(b"Apache-2.0")
        log = ctypes.create_string_buffer(_LOG_BYTES)
        attributes = struct.pack(
            "=IIQQIIQII16s",
            _PROG_TYPE_XDP,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(licence),
            1,
            _LOG_BYTES,
            ctypes.addressof(log),
            0,
            0,
            name.encode(),
        )
        self._link = -1
        try:
            self.fd = _bpf(_PROG_LOAD, attributes)
        except OSError as error:
            lines = log.value.decode(errors="replace").strip().splitlines()
            detail = f" ({lines[-1]})" if lines else ""
            raise OSError(error.errno, f"loading the XDP program: {error.strerror}{detail}") from (
                error
            )

    def attach(self, interface_index: int) -> None:
        """Attach in the driver's mode to a device of the calling thread's namespace."""
        self._link = _bpf(
            _LINK_CREATE,
            struct.pack("=IIII", self.fd, interface_index, _ATTACH_XDP, _XDP_FLAGS_DRIVER),
        )

    def close(self) -> None:
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
        os.close(self.fd)

    def run(self, frame: bytes) -> int:
        """The verdict on one frame, by the kernel's test facility; counters move as usual."""
        data = ctypes.create_string_buffer(frame, len(frame))
        attributes = struct.pack(
            "=IIIIQQII", self.fd, 0, len(frame), 0, ctypes.addressof(data), 0, 1, 0
        )
        return _bpf(_PROG_TEST_RUN, attributes)
