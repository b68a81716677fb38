"""OpenVINO GenAI as a peer: it reads GGUF files of the llama family that carry a tokenizer.

    python bench/serve/peer_openvino.py

Its packages (300 MB) are installed by pip once, into an environment of their own below build/peers.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("openvino==2026.4.1", "openvino-genai==2026.4.1.0")

# Runs there, where scant is not. A first prompt warms it up; the second differs, because a prompt
# that is known is not run again.
_PROGRAM = """
import json, sys
import numpy, openvino, openvino_genai

model, threads, prompt, answer = sys.argv[1], *map(int, sys.argv[2:])
pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)
draw = numpy.random.default_rng(1)
for _ in range(2):
    tokens = openvino.Tensor(draw.integers(0, 1000, (1, prompt)))
    ones = openvino.Tensor(numpy.ones((1, prompt), numpy.int64))
    made = pipeline.generate(
        openvino_genai.TokenizedInputs(tokens, ones), max_new_tokens=answer + 1, ignore_eos=True
    )
metrics = made.perf_metrics
print(json.dumps([metrics.get_ttft().mean / 1e3, metrics.get_tpot().mean / 1e3]))
"""


class OpenVino:
    """Its Python."""

    def __init__(self) -> None:
        folder = ROOT / "build" / "peers" / "openvino"
        self._python = folder / "bin" / "python"
        if not (folder / "whole").exists():
            print("peer: installing OpenVINO (300 MB)", file=sys.stderr, flush=True)
            venv.create(folder, clear=True, with_pip=True)
            command = [str(self._python), "-m", "pip", "install", "--quiet", *PACKAGES]
            subprocess.run(command, check=True)
            (folder / "whole").touch()

    def bench(
        self, model: pathlib.Path, threads: int, prompt: int, answer: int, context: int = 0
    ) -> float:
        """Tokens a second: of a prompt, or of an answer after a context."""
        command = [str(self._python), "-c", _PROGRAM, str(model), str(threads)]
        command += [str(prompt or context), str(answer)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        first_s, next_s = map(float, json.loads(done.stdout.splitlines()[-1]))
        return prompt / first_s if prompt else 1 / next_s


if __name__ == "__main__":
    OpenVino()
