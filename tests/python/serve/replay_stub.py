"""A server for `scant replay` as a program of its own: a model's name, CPU seconds, and words.

Prints its port; serves until stdin ends. With a certificate and its key as arguments it is https.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys

CPU = "process_cpu_seconds_total"


class Stub:
    def __init__(self) -> None:
        self.cpu_s = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            body = await reader.readexactly(int(length or 0))
            path = head.split(b" ")[1].decode()
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + self.answer(path, body))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def answer(self, path: str, body: bytes) -> bytes:
        if path == "/v1/models":
            return json.dumps({"data": [{"id": "stub"}]}).encode()
        if path == "/metrics":
            return f"{CPU} {self.cpu_s}\n".encode()
        asked = json.loads(body)
        count = asked["max_tokens"]
        self.cpu_s += 0.5
        assert asked["model"] == "stub" and asked["ignore_eos"] and asked["stream"]
        word = b'data: {"choices": [{"delta": {"content": "word "}}]}\n\n'
        usage = {"prompt_tokens": 7, "completion_tokens": count}
        end = f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"
        return word * int(count) + end.encode()


async def main() -> None:
    tls = None
    if len(sys.argv) == 3:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(sys.argv[1], sys.argv[2])
    server = await asyncio.start_server(Stub().serve, "127.0.0.1", 0, ssl=tls)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
