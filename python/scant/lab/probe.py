"""Two small programs that measure a link from inside: rank 0 serves, rank 1 asks.

Run as ranks by ``scant lab --selftest``, the tests and whoever doubts a link:
``python -m scant.lab.probe SECONDS ROUND_TRIPS DATAGRAMS MESSAGE_BYTES``. Rank 1 prints one JSON
line: goodput of a TCP blast with its counted seconds, round trips of MESSAGE_BYTES, and how many
of DATAGRAMS numbered datagrams arrived.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import struct
import sys
import time
from contextlib import suppress

_PORT = 29600
_CHUNK_BYTES = 1 << 18
_DATAGRAM_BYTES = 200
_CONNECT_SECONDS = 20.0
_IO_SECONDS = 60.0
_HELLO = struct.Struct("=dIII")  # seconds, round trips, message bytes, datagrams


def _receive_exactly(stream: socket.socket, count: int) -> None:
    while count > 0:
        part = stream.recv(min(count, _CHUNK_BYTES))
        if not part:
            raise EOFError
        count -= len(part)


def serve(address: str) -> None:
    """Rank 0: echo messages, count the datagrams, swallow the blast and report its rate."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, _PORT), family=family) as server,
        socket.socket(family, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        datagrams.bind((address, _PORT))
        server.settimeout(_CONNECT_SECONDS)
        stream, _ = server.accept()
        with stream:
            stream.settimeout(_IO_SECONDS)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            hello = stream.recv(_HELLO.size, socket.MSG_WAITALL)
            seconds, trips, size, count = _HELLO.unpack(hello)
            for _ in range(trips):
                _receive_exactly(stream, size)
                stream.sendall(b"!")
            stream.recv(1)
            arrived = 0
            datagrams.settimeout(0.5)
            with suppress(TimeoutError):
                while arrived < count:
                    datagrams.recv(2048)
                    arrived += 1
            stream.sendall(struct.pack("=I", arrived))
            stream.sendall(struct.pack("=dQ", *_swallow(stream, seconds)))


def _swallow(stream: socket.socket, seconds: float) -> tuple[float, int]:
    """Read the blast; the first fifth is ramp-up and does not count."""
    buffer = bytearray(_CHUNK_BYTES)
    begin = time.monotonic()
    counted_from, counted, last = 0.0, 0, begin
    while count := stream.recv_into(buffer):
        last = time.monotonic()
        if counted_from:
            counted += count
        elif last - begin > seconds / 5:
            counted_from = last
    return (last - counted_from if counted_from else 0.0), counted


def ask(address: str, seconds: float, trips: int, count: int, size: int) -> dict[str, float]:
    """Rank 1: drive the measurement, return what was found."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            stream = socket.create_connection((address, _PORT), timeout=_CONNECT_SECONDS)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    with stream, socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        stream.settimeout(_IO_SECONDS)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.sendall(_HELLO.pack(seconds, trips, size, count))
        message = bytes(size)
        samples = []
        for _ in range(trips):
            begin = time.perf_counter()
            stream.sendall(message)
            stream.recv(1)
            samples.append(time.perf_counter() - begin)
            time.sleep(0.002)  # lets the token bucket fill: the next message starts from idle
        stream.sendall(b".")
        for number in range(count):
            datagrams.sendto(struct.pack("=I", number).ljust(_DATAGRAM_BYTES), (address, _PORT))
            if number % 16 == 15:
                time.sleep(0.001)
        (arrived,) = struct.unpack("=I", stream.recv(4, socket.MSG_WAITALL))
        chunk = bytes(_CHUNK_BYTES)
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            stream.sendall(chunk)
        stream.shutdown(socket.SHUT_WR)
        counted_seconds, counted = struct.unpack("=dQ", stream.recv(16, socket.MSG_WAITALL))
    return {
        "goodput_bits_per_second": counted * 8 / counted_seconds if counted_seconds else 0.0,
        "round_trip_median_seconds": statistics.median(samples) if samples else 0.0,
        "round_trip_minimum_seconds": min(samples, default=0.0),
        "datagrams_sent": count,
        "datagrams_arrived": arrived,
    }


def main(argv: list[str]) -> int:
    address = os.environ["MASTER_ADDR"]
    rank = int(os.environ["RANK"])
    if rank == 0:
        serve(address)
    elif rank == 1:
        seconds, trips, count, size = float(argv[1]), *map(int, argv[2:5])
        print(json.dumps(ask(address, seconds, trips, count, size)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
