"""`scant serve` with a real engine: OpenAI's client gets answers, vectors and scores, and memory
keeps to its bound from the start through thousands of requests."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
from model_folders import folder

from scant import cli
from scant.serve import Model, kv_page_bytes

pytest.importorskip("tokenizers", reason="tokenizers is not installed")
openai = pytest.importorskip("openai", reason="openai is not installed")

KV_BYTES = 4 << 20
CONNECTIONS = 24
WARM, REQUESTS = 600, 3000
# What the interpreter's pools and the allocator's arenas still take after the first requests: 4 MiB
# by the next 3,000, and 4 MiB by 16,000 more. A leak of 2 KiB a request would be seen.
GROWTH_BYTES = 6 << 20
DEADLINE_S = 60


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    file_bytes: int
    kv_bytes: int

    def memory(self, name: str) -> int:
        """VmRSS or VmHWM, in bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
        assert found is not None
        return 1024 * int(found[1])

    def ask(self, connection: http.client.HTTPConnection, path: str, body: Any) -> Any:
        connection.request(
            "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status == 200, data
        return data


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("memory")
    file = place / "model.scp"
    assert cli.main(["pack", str(folder(place / "model", "llama_biases", "F32")), str(file)]) == 0
    command = [sys.executable, "-m", "scant.cli", "serve", str(file), "--port", "0"]
    with subprocess.Popen(
        [*command, "--kv-bytes", str(KV_BYTES)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"at http://127\.0\.0\.1:(\d+)/v1", process.stdout.readline())
            assert found is not None
            page = kv_page_bytes(Model(file).description, "bf16")
            kv_bytes = KV_BYTES // page * page
            yield Server(process, int(found[1]), file.stat().st_size, kv_bytes)
        finally:
            process.terminate()
            assert process.wait(DEADLINE_S) == 0


def body_of(number: int) -> tuple[str, dict[str, Any]]:
    """All kinds of requests, of many lengths."""
    text = " ".join(f"word{number * place % 97}" for place in range(1 + number % 19))
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": text, "max_tokens": 1 + number % 7}),
        ("/v1/completions", {"prompt": text, "max_tokens": 5, "stream": True, "temperature": 2}),
        ("/v1/completions", {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 3}),
        ("/v1/embeddings", {"input": [text, text[:9]], "encoding_format": "base64"}),
    ]
    return kinds[number % len(kinds)]


def send(server: Server, numbers: range) -> None:
    """These requests over a fixed number of connections."""
    failures: list[BaseException] = []

    def work(which: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
        try:
            for number in numbers[which::CONNECTIONS]:
                server.ask(connection, *body_of(number))
        except BaseException as failure:
            failures.append(failure)
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(which,)) for which in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_memory_keeps_to_its_bound_and_does_not_grow(server: Server) -> None:
    known = server.file_bytes + server.kv_bytes
    bound = round(1.05 * known) + (150 << 20) + CONNECTIONS * (64 << 10)
    send(server, range(WARM))
    warm = server.memory("VmRSS")
    send(server, range(WARM, WARM + REQUESTS))
    assert server.memory("VmHWM") <= bound  # the highest since the start
    assert server.memory("VmRSS") - warm <= GROWTH_BYTES
    assert "torch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_openai_client_gets_answers_vectors_and_scores(server: Server) -> None:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        done = client.completions.create(model="model", prompt="word1 word2", max_tokens=4)
        assert done.usage.completion_tokens >= 1
        texts = ["word1 word2", "word1 word2 word3"]
        made = client.embeddings.create(model="model", input=texts)
        vectors = numpy.array([row.embedding for row in made.data])
        assert vectors.shape[0] == 2
        assert abs(numpy.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
        # The same beside others, and by itself.
        alone = client.embeddings.create(model="model", input=texts[1], encoding_format="float")
        same = numpy.array(alone.data[0].embedding, numpy.float32)
        assert (same == vectors[1].astype(numpy.float32)).all()
        scored = client.completions.create(
            model="model", prompt=texts[1], max_tokens=0, echo=True, logprobs=1
        )
        logprobs = scored.choices[0].logprobs
        assert scored.choices[0].text == texts[1]
        assert logprobs.token_logprobs[0] is None
        assert all(value < 0 for value in logprobs.token_logprobs[1:])
        assert scored.usage.completion_tokens == 0


def test_free_memory_between_what_lives_on_goes_back() -> None:
    """Large requests leave holes in the heap, which it never gives back by itself."""
    script = """
from pathlib import Path
from scant import _scant

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

blocks, living = [], []
for _ in range(800):
    blocks.append(bytes(100_000))
    living.append(bytes(600))
del blocks
full = resident()
_scant.give_memory_back(1 << 40)
untouched = resident()
_scant.give_memory_back(8 << 20)
print(full, untouched, resident(), len(living))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    full, untouched, after, _ = map(int, done.stdout.split())
    assert abs(untouched - full) < 4 << 20
    assert after < full - (40 << 20)
