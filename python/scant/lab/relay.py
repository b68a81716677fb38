"""Holds every frame that a host sends for a fixed time: delay without a kernel that has netem.

A process per delayed link takes frames from the host's port with AF_PACKET, keeps them in fixed
memory and hands them to the bridge when they are due. Frames move in batches (recvmmsg, sendmmsg)
and no Python code runs per frame; segmentation-offload frames pass whole. Order is kept.
Limits: a full store drops (counted as overruns); each batch is counted with its lateness.
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import errno
import mmap
import os
import signal
import socket
import struct
import time
from contextlib import suppress

from scant.lab.errors import LabError
from scant.lab.options import LinkOptions
from scant.lab.system import die_with_parent, libc, set_process_name, set_timer_slack_ns
from scant.lab.units import format_rate

# What a relay is trusted with on two cores that also run the ranks; with loss, frames come singly.
RATE_MAX_BITS_PER_SECOND = 2_500_000_000
RATE_MAX_WITH_LOSS_BITS_PER_SECOND = 1_000_000_000

_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_MSG_DONTWAIT = 0x40
_POLLIN = 1

_SLOT_BYTES = 17 * 4096  # the largest offload frame with its headers
_BLOCK_SLOTS = 32  # frames per recvmmsg
_BLOCKS_MAX = 2048  # 65,536 frames in flight; only touched pages take memory
_SOCKET_BUFFER_BYTES = 64 << 20
_LEAD_SHARE = 16  # of each batch's lateness that moves the lead
_LEAD_MAX_NS = 100_000
_TICK_MIN_NS, _TICK_MAX_NS = 50_000, 1_000_000

# Shared memory with the agent: u64 each.
_DELAY, _READY, _FRAMES, _BATCHES, _OVERRUNS, _REFUSED, _LATE_SUM, _LATE_MAX = range(8)
_LATE_BUCKETS = 8  # first index of the histogram; bucket b counts lateness below 2^b µs
_LATE_BUCKET_COUNT = 24
_SHARED_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class RelayCounters:
    """What a relay passed and how late it was, beyond the delay asked for."""

    frames: int
    batches: int
    overruns: int  # frames lost because the store or the socket was full
    refused: int  # frames that the kernel would not give or take
    late_mean_us: float
    late_p99_us: float  # upper edge of a power-of-two bucket
    late_max_us: float


def check_link(link: LinkOptions) -> None:
    """Refuse a delayed link that the relay cannot keep up with."""
    if not link.delay_seconds:
        return
    lossy = link.loss.mean > 0
    limit = RATE_MAX_WITH_LOSS_BITS_PER_SECOND if lossy else RATE_MAX_BITS_PER_SECOND
    if link.up is None or link.up > limit:
        asked = "no rate" if link.up is None else format_rate(link.up)
        bound = f"{format_rate(limit)} per host{' with loss' if lossy else ''}"
        raise LabError(
            f"--rate: {asked} with --delay is beyond the user-space relay, which carries up to "
            f"{bound}; a kernel with netem (CONFIG_NET_SCH_NETEM) needs no relay"
        )


class Relay:
    """The agent's handle on one relay process."""

    def __init__(self, port: str, bridge: str, delay_ns: int) -> None:
        memory = mmap.mmap(-1, _SHARED_BYTES)
        self._shared = memoryview(memory).cast("Q")
        self._shared[_DELAY] = delay_ns
        self.process = os.fork()
        if self.process == 0:
            try:
                die_with_parent(signal.SIGKILL)
                set_process_name("lab-relay")
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
                    signal.signal(number, signal.SIG_DFL)
                signal.set_wakeup_fd(-1)
                _DelayLine(port, bridge, self._shared).run()
            except BaseException as error:
                os.write(2, f"scant lab: relay of {port}: {error!r}\n".encode())
            finally:
                os._exit(1)
        deadline = time.monotonic() + 10
        while not self._shared[_READY]:
            done, _ = os.waitpid(self.process, os.WNOHANG)
            if done or time.monotonic() > deadline:
                raise OSError(errno.EIO, "the relay did not start")
            time.sleep(0.001)

    def set_delay_ns(self, delay_ns: int) -> None:
        self._shared[_DELAY] = delay_ns

    def counters(self) -> RelayCounters:
        shared = self._shared
        batches = shared[_BATCHES]
        p99 = 0.0
        seen = 0
        for bucket in range(_LATE_BUCKET_COUNT):
            seen += shared[_LATE_BUCKETS + bucket]
            if seen >= 0.99 * batches:
                p99 = float(2**bucket) if batches else 0.0
                break
        return RelayCounters(
            frames=shared[_FRAMES],
            batches=batches,
            overruns=shared[_OVERRUNS],
            refused=shared[_REFUSED],
            late_mean_us=shared[_LATE_SUM] / batches / 1e3 if batches else 0.0,
            late_p99_us=p99,
            late_max_us=shared[_LATE_MAX] / 1e3,
        )

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)


class _Block:
    """Memory and headers for one recvmmsg: frames lie in slots, lengths in the headers."""

    def __init__(self) -> None:
        count = _BLOCK_SLOTS
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, count * _SLOT_BYTES, flags=private)
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)  # small frames touch one page of a slot
        base = _address(self._memory)
        # struct iovec {void *base; size_t length}
        vectors = bytearray(16 * count)
        # struct mmsghdr: name, namelen, iov, iovlen, control, controllen, flags, then msg_len.
        headers = bytearray(64 * count)
        self.headers_at = _address(headers)
        for slot in range(count):
            struct.pack_into("=QQ", vectors, 16 * slot, base + slot * _SLOT_BYTES, _SLOT_BYTES)
            struct.pack_into("=QQ", headers, 64 * slot + 16, _address(vectors) + 16 * slot, 1)
        self._lengths = memoryview(vectors).cast("Q")[1::2]
        self._received = memoryview(headers).cast("Q")[7::8]
        self._full = memoryview(struct.pack("=Q", _SLOT_BYTES) * count).cast("Q")
        self.filled = 0
        self.unsent = 0  # batches in this block that are still held

    def start(self) -> None:
        self.filled = 0
        self._lengths[:] = self._full

    def keep(self, first: int, count: int) -> None:
        """Make the received lengths the lengths to send."""
        self._lengths[first : first + count] = self._received[first : first + count]


class _DelayLine:
    """The relay's own loop; runs until killed."""

    def __init__(self, port: str, bridge: str, shared: memoryview[int]) -> None:
        self._shared = shared
        self._in = _packet_socket(port, _ETH_P_ALL)
        self._out = _packet_socket(bridge, 0)
        self._free: list[_Block] = []
        self._blocks = 0
        self._current: _Block | None = None
        self._held: collections.deque[tuple[int, _Block, int, int]] = collections.deque()
        self._last_due = 0
        self._lead_ns = 0  # how late this process usually wakes: it asks for that much earlier
        self._poll = ctypes.create_string_buffer(
            struct.pack("=ihh", self._in.fileno(), _POLLIN, 0), 8
        )
        self._timeout = (ctypes.c_int64 * 2)()

    def run(self) -> None:
        set_timer_slack_ns(1)
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        self._shared[_READY] = 1
        last_poll = 0
        while True:
            received = self._receive(last_poll)
            last_poll = time.monotonic_ns()
            self._send(last_poll)
            if received == _BLOCK_SLOTS:
                continue
            tick = min(max(self._shared[_DELAY] // 10, _TICK_MIN_NS), _TICK_MAX_NS)
            wait = 1_000_000_000
            if self._held:
                wait = self._held[0][0] - last_poll - self._lead_ns
            if received:  # busy: let frames gather instead of waking for each
                self._sleep(min(tick, wait))
            else:
                last_poll = 0
                self._wait_readable(wait)

    def _receive(self, last_poll: int) -> int:
        """Take what has arrived; frames gathered since ``last_poll`` came half way on average."""
        block = self._current
        if block is None:
            block = self._take_block()
            if block is None:
                return 0
        first = block.filled
        count: int = libc.recvmmsg(
            self._in.fileno(),
            ctypes.c_void_p(block.headers_at + 64 * first),
            _BLOCK_SLOTS - first,
            _MSG_DONTWAIT,
            None,
        )
        if count <= 0:
            code = ctypes.get_errno()
            if count < 0 and code not in (errno.EAGAIN, errno.EINTR, errno.ENETDOWN):
                self._shared[_REFUSED] += 1
            return 0
        now = time.monotonic_ns()
        arrived = (last_poll + now) // 2 if last_poll else now - self._lead_ns
        due = max(arrived + self._shared[_DELAY], self._last_due)
        self._last_due = due
        block.keep(first, count)
        block.filled += count
        block.unsent += 1
        self._held.append((due, block, first, count))
        if block.filled == _BLOCK_SLOTS:
            self._current = None
            self._count_socket_drops()
        return _BLOCK_SLOTS if self._current is None else count

    def _take_block(self) -> _Block | None:
        if self._free:
            block = self._free.pop()
        elif self._blocks < _BLOCKS_MAX:
            self._blocks += 1
            block = _Block()
        else:
            return None
        block.start()
        self._current = block
        return block

    def _send(self, now: int) -> None:
        while self._held and self._held[0][0] <= now + self._lead_ns:
            due, block, first, count = self._held.popleft()
            sent = 0
            while sent < count:
                done: int = libc.sendmmsg(
                    self._out.fileno(),
                    ctypes.c_void_p(block.headers_at + 64 * (first + sent)),
                    count - sent,
                    _MSG_DONTWAIT,
                )
                if done <= 0:  # the head frame cannot go: skip it
                    full = ctypes.get_errno() in (errno.EAGAIN, errno.ENOBUFS)
                    self._shared[_OVERRUNS if full else _REFUSED] += 1
                    done = 1
                sent += done
            block.unsent -= 1
            if block.unsent == 0 and block is not self._current:
                self._free.append(block)
            now = time.monotonic_ns()
            self._count_batch(count, now - due)

    def _count_batch(self, frames: int, late_ns: int) -> None:
        shared = self._shared
        self._lead_ns += late_ns // _LEAD_SHARE
        self._lead_ns = min(max(self._lead_ns, 0), _LEAD_MAX_NS)
        late_ns = max(late_ns, 0)
        shared[_FRAMES] += frames
        shared[_BATCHES] += 1
        shared[_LATE_SUM] += late_ns
        shared[_LATE_MAX] = max(shared[_LATE_MAX], late_ns)
        bucket = min((late_ns // 1000).bit_length(), _LATE_BUCKET_COUNT - 1)
        shared[_LATE_BUCKETS + bucket] += 1

    def _count_socket_drops(self) -> None:
        statistics = self._in.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._shared[_OVERRUNS] += struct.unpack("=II", statistics)[1]

    def _wait_readable(self, wait_ns: int) -> None:
        self._timeout[0], self._timeout[1] = divmod(max(0, wait_ns), 1_000_000_000)
        libc.ppoll(self._poll, 1, self._timeout, None)

    def _sleep(self, wait_ns: int) -> None:
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)


def _address(buffer: bytearray | mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _packet_socket(interface: str, protocol: int) -> socket.socket:
    """A packet socket with offload headers and the largest buffers that the kernel allows."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    raw.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    for forced, plain in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        try:
            raw.setsockopt(socket.SOL_SOCKET, forced, _SOCKET_BUFFER_BYTES)
        except PermissionError:
            raw.setsockopt(socket.SOL_SOCKET, plain, _SOCKET_BUFFER_BYTES)
    raw.bind((interface, protocol))
    return raw
