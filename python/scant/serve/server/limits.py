"""All that a stranger's bytes are held to, in one place (docs/serving.md lists it for users)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Sizes, counts and waits; tests make some of them smaller."""

    # Of connections.
    connections: int = 4096  # more are answered 503
    head_bytes: int = 32 << 10
    head_s: float = 10.0  # from a connection's start, or a head's first byte, to the head's end
    idle_s: float = 60.0  # between two requests
    pipelined: int = 16  # requests behind one that is being answered
    body_bytes: int = 8 << 20
    bodies_bytes: int = 64 << 20  # of all requests that are being read or prepared
    body_s: float = 30.0
    stall_s: float = 30.0  # for which an answer's bytes find no reader
    unread_tokens: int = 4096  # and alternatives of one answer, not yet taken by its connection
    sweep_s: float = 1.0  # how often connections are looked at

    # Of requests.
    json_depth: int = 16
    messages: int = 2048
    stops: int = 4
    stop_characters: int = 256
    stop_tokens: int = 64
    choices: int = 64  # prompts × n
    n: int = 16
    prompts: int = 64
    inputs: int = 256  # of a request for vectors
    biases: int = 1024
    alternatives: int = 20
