"""Byte and packet counters of root queueing disciplines, over rtnetlink.

The shaper's own counters count wire frames: a segmentation-offload frame of n segments adds n
packets and n headers, which the device counters under /sys do not. One socket stays in the
namespace it was made in. Layouts: linux/rtnetlink.h, linux/pkt_sched.h, linux/gen_stats.h.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
from collections.abc import Iterator

_RTM_GETQDISC = 38
_NLM_F_REQUEST = 0x1
_NLM_F_DUMP = 0x300
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_TC_H_ROOT = 0xFFFFFFFF
_TCA_STATS2 = 7
_TCA_STATS_BASIC = 1
_TCA_STATS_QUEUE = 3
_TCA_STATS_PKT64 = 8

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_ATTRIBUTE = struct.Struct("=HH")
_REPLY_BYTES_MAX = 1 << 20


@dataclasses.dataclass(frozen=True)
class QueueCounters:
    """What left a queue and what it dropped; ``backlog_bytes`` waits in it now."""

    bytes: int = 0
    packets: int = 0
    dropped_packets: int = 0
    backlog_bytes: int = 0


class QueueReader:
    """Reads the root queues of every device in the namespace where it was created."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.settimeout(5)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def read(self) -> dict[int, QueueCounters]:
        """Counters by interface index."""
        self._sequence += 1
        body = _TCMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        flags = _NLM_F_REQUEST | _NLM_F_DUMP
        length = _HEADER.size + len(body)
        header = _HEADER.pack(length, _RTM_GETQDISC, flags, self._sequence, 0)
        self._socket.send(header + body)
        found: dict[int, QueueCounters] = {}
        while self._take(self._socket.recv(_REPLY_BYTES_MAX), found):
            pass
        return found

    def _take(self, data: bytes, found: dict[int, QueueCounters]) -> bool:
        """Consume one datagram; false once the dump is complete."""
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size or offset + length > len(data):
                raise OSError("malformed netlink reply")
            body = data[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3
            if sequence != self._sequence:
                continue
            if kind == _NLMSG_DONE:
                return False
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", body)[0]
                raise OSError(code, f"RTM_GETQDISC: {os.strerror(code)}")
            _, index, _, parent, _ = _TCMSG.unpack_from(body)
            if parent == _TC_H_ROOT:
                found[index] = _counters(body[_TCMSG.size :])
        return True


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            raise OSError("malformed netlink attribute")
        yield kind & 0x3FFF, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _counters(attributes: bytes) -> QueueCounters:
    count_bytes = packets = packets64 = drops = backlog = 0
    for kind, value in _attributes(attributes):
        if kind != _TCA_STATS2:
            continue
        for nested, data in _attributes(value):
            if nested == _TCA_STATS_BASIC:
                count_bytes, packets = struct.unpack_from("=QI", data)
            elif nested == _TCA_STATS_PKT64:
                (packets64,) = struct.unpack_from("=Q", data)
            elif nested == _TCA_STATS_QUEUE:
                _, backlog, drops = struct.unpack_from("=III", data)
    return QueueCounters(count_bytes, packets64 or packets, drops, backlog)
