"""How late `scant replay` sends against an idle stub: p99 must be at most 1 ms.

    bench/serve/replay_jitter.py --rate 100 --seconds 20

The stub answers at once with two tokens, in a process of its own. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from itertools import takewhile

from scant.serve.replay.client import Server, raise_file_limit, replay
from scant.serve.replay.figures import Figures, Slo, quantiles
from scant.serve.replay.prompts import Prompts, body_of
from scant.serve.replay.schedule import Plan, schedule
from scant.traces import Shape, synthetic

LATE_MAX_S = 1e-3
EVENT = b'data: {"choices": [{"delta": {"content": "word "}}]}\n\n'
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    + EVENT * 2
    + b"data: [DONE]\n\n"
)


async def stub() -> None:
    """Serves until stdin ends."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or 0))
            writer.write(ANSWER)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


def main() -> int:
    """Command line; status 1 where a send was too late."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second (100)")
    parser.add_argument("--seconds", type=float, default=20.0, help="(20)")
    parser.add_argument("--seed", type=int, default=1, help="(1)")
    parser.add_argument("--stub", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stub:
        asyncio.run(stub())
        return 0
    command = [sys.executable, __file__, "--stub"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        server = Server("127.0.0.1", int(child.stdout.readline()), "")
        prompts = Prompts(arguments.seed)
        rows = synthetic(Shape(rate=arguments.rate), arguments.seed)
        rows = takewhile(lambda row: row.at_s < arguments.seconds, rows)
        sends = (
            (send, lambda send=send: body_of(send, prompts.of(send), "stub", True, {}))
            for send in schedule(rows, Plan(arguments.seed))
        )
        figures = Figures(Slo())
        used = time.process_time()
        asyncio.run(
            replay(
                server, "/v1/chat/completions", sends, figures.add,
                timeout_s=60.0, open_max=raise_file_limit(),
            )
        )  # fmt: skip
        used = time.process_time() - used
        assert child.stdin is not None
        child.stdin.close()
    late = quantiles(figures.late)
    row = {
        "case": "replay_jitter", "rate": arguments.rate, "seconds": arguments.seconds,
        "seed": arguments.seed, "requests": figures.count, "whole": figures.whole,
        "late_s": late, "cpu_s": used,
    }  # fmt: skip
    print(json.dumps(row))
    p99 = late["p99"]
    return 0 if figures.whole == figures.count and p99 is not None and p99 <= LATE_MAX_S else 1


if __name__ == "__main__":
    sys.exit(main())
