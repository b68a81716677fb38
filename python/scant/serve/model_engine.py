"""The engine over a model's file: `scant.serve.engine.Engine` by the extension."""

from __future__ import annotations

import itertools
import os
import pathlib
import secrets
from collections.abc import Sequence
from typing import Any

from scant import _scant, amounts
from scant.errors import Corrupt, Resource, Unsupported
from scant.serve import decoding, gguf_values, kernels, unpacking, vocabulary
from scant.serve.description import NO_TOKEN, Description, Flags
from scant.serve.engine import Sampling, Token, tokens_of
from scant.serve.text import Tokenizer

__all__ = ["ModelEngine", "free_memory", "tokenizer_of", "usable_threads"]

_KV_SHARE = 4  # keys and values get this part of the memory that is free
_THREADS_MAX = 256  # of a pool of workers
_KV_BYTES_MAX = 8 << 30
# Of a tokenizer while it is made, as measured with 49,152 tokens; and of all else.
_BYTES_OF_A_TOKEN = 1300
_BYTES_LOADED = 16 << 20


def usable_threads() -> int:
    """CPUs that this process may use: by affinity, and by the quotas of its control groups."""
    return max(1, round(float(_scant.limits()["cpus"])))


def free_memory() -> int:
    """Bytes that can still be taken: of the machine, and of this process's control groups."""
    return int(_scant.limits()["memory_free"])


def _need_memory(description: Description) -> None:
    """Refuses where the system would end the process in the middle of loading."""
    limits = _scant.limits()
    needed = _BYTES_LOADED + _BYTES_OF_A_TOKEN * description.vocabulary
    if limits["memory_free"] < needed:
        where = (
            f"the control group {limits['memory_by']}" if limits["memory_by"] else "this machine"
        )
        raise Resource(
            f"loading the model takes {amounts.size(needed)} beside its file, and {where} has "
            f"{amounts.size(limits['memory_free'])} left"
        )


class _Texts:
    """What the file says about text: tokenizer and chat template."""

    def __init__(self, path: pathlib.Path, description: Description) -> None:
        with path.open("rb") as file:
            gguf = file.read(4) == b"GGUF"
        values: dict[str, Any] | None
        if gguf:
            values = gguf_values.decode_all(_scant.GgufFile(str(path)).pairs())
            json_text: bytes | None = None
            self.chat_template: str | None = values.get("tokenizer.chat_template")
        else:
            packed = unpacking.Model(path)
            json_text = packed.part("tokenizer")
            values = packed.metadata() if json_text is None else None
            self.chat_template = packed.template()
        if json_text is None and values is not None:
            json_text = vocabulary.from_gguf(values, description)
        if json_text is None:
            raise Unsupported(f"{path}: there is no tokenizer in it, so no text can be read")
        self.tokenizer = Tokenizer(json_text)
        if self.tokenizer.vocabulary > description.vocabulary:
            raise Corrupt(
                f"{path}: the tokenizer has {self.tokenizer.vocabulary} tokens, the model "
                f"{description.vocabulary}"
            )


def tokenizer_of(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a packed file or a GGUF file."""
    return _Texts(pathlib.Path(path), decoding.Model(path).description).tokenizer


class _Served:
    """What is served, as `scant.serve.engine.Model` says."""

    def __init__(self, name: str, description: Description, texts: _Texts, context: int) -> None:
        self.name = name
        self.context = context
        self.width = description.width
        self.vocabulary = description.vocabulary
        self.bos = None if description.bos == NO_TOKEN else description.bos
        self.eos = tuple(description.eos)
        self.adds_bos = Flags.ADDS_BOS in description.flags
        self.tokenizer = texts.tokenizer
        self.chat_template = texts.chat_template


class ModelEngine:
    """A model that answers requests, on threads of its own.

    ``kv_bytes``: memory for keys and values; a quarter of what is free unless given. ``context``:
    tokens of a prompt and its answer; the model's unless given. ``threads``: computes on so many;
    unless given, on as many of those that it may use as measure best. ``answer_wait_s``: prompts
    run in pieces so that a token of an answer waits no longer for them; 0: in whole steps.
    ``SCANT_KERNELS`` chooses the kernels: :mod:`scant.serve.kernels`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        kv_bytes: int | None = None,
        kv_type: str = "bf16",
        context: int | None = None,
        max_running: int = 64,
        max_waiting: int | None = None,
        name: str | None = None,
        answer_wait_s: float | None = None,
    ) -> None:
        file = pathlib.Path(path)
        kernels_name = kernels.chosen()
        model = decoding.Model(file)
        _need_memory(model.description)
        texts = _Texts(file, model.description)
        if kv_bytes is None:
            kv_bytes = min(free_memory() // _KV_SHARE, _KV_BYTES_MAX)
        options: dict[str, Any] = {
            "threads": threads or min(usable_threads(), _THREADS_MAX),
            "choose_threads": threads is None,
            "kernels": kernels_name,
            "kv": "q8" if kv_type == "int8" else kv_type,
            "kv_bytes": kv_bytes,
            "running_max": max_running,
            "waiting_max": 1024 if max_waiting is None else max_waiting,
        }
        if context is not None:
            options["context"] = context
        if answer_wait_s is not None:
            options["answer_wait_s"] = answer_wait_s
        self.threads: int = options["threads"]
        self.file_bytes = file.stat().st_size
        # This also brings the weights into memory.
        self._bytes_per_s = _scant.reading_speed(str(file), self.threads)
        self._meter = _scant.EnergyMeter()
        self._engine = _scant.Engine(model.native, options)
        self.model = _Served(name or file.stem, model.description, texts, self._engine.context)
        self._max_running = max_running
        _scant.give_memory_back(0)  # a vocabulary as text and lists is larger than the tokenizer
        self._numbers = itertools.count(1)
        self._draining = False

    def submit(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling,
        deadline_s: float | None = None,
        echo: bool = False,
        wanted: str = "answer",
    ) -> int:
        """The request's number."""
        if self._draining:
            raise Resource("the engine takes no more requests")
        number = next(self._numbers)
        stops = sampling.stop_tokens + (() if sampling.ignore_eos else self.model.eos)
        given = {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "seed": secrets.randbits(63) if sampling.seed is None else sampling.seed % 2**64,
            "logprobs": sampling.logprobs,
            "bias": list(sampling.logit_bias.items()),
        }
        most = min(max_tokens, self.model.context)
        try:
            self._engine.submit(
                number, list(prompt), most, given, list(stops), deadline_s or 0.0, echo, wanted
            )
        except Resource as error:
            error.retry_after_s = self._retry_after_s()  # type: ignore[attr-defined]
            raise
        return number

    def _retry_after_s(self) -> float:
        """About how long it takes until a request is over, by those that are."""
        stats = self._engine.stats()
        if stats["requests"] == 0:
            return 1.0
        mean_s = float(stats["step_s"]) / float(stats["requests"])
        return max(1.0, mean_s)

    def cancel(self, request: int) -> None:
        """The request ends soon, as `cancelled`; unknown and ended ones are left alone."""
        self._engine.cancel(request)

    def poll(self, timeout_s: float) -> list[Token]:
        """What came since the last call; waits for the first event, without the GIL."""
        return tokens_of(self._engine.poll(timeout_s))

    def fileno(self) -> int:
        """A descriptor that can be read, so that a loop wakes, while `poll` has something."""
        return int(self._engine.fileno())

    def stats(self) -> dict[str, float | int]:
        """Counters since the start, and gauges."""
        stats = self._engine.stats()
        answers, prompts = stats["chosen_answers"], stats["chosen_prompts"]
        used = _scant.used()
        energy = {"energy_j": self._meter.joules()} if self._meter.counts else {}
        return energy | {
            "running": stats["running"],
            "waiting": stats["waiting"],
            "kv_pages": stats["pages"],
            "kv_pages_used": stats["pages_held"],
            "steps": stats["steps"],
            "prefill_tokens": stats["prompt_tokens"],
            "decode_tokens": stats["answer_tokens"],
            "preempted": stats["paused"],
            "prefix_tokens_reused": stats["cached_tokens"],
            "step_s": stats["step_s"],
            "decode_steps": stats["answer_steps"],
            "decode_s": stats["answer_s"],
            "bytes_per_token": self.file_bytes,
            "bandwidth_bytes_per_s": self._bytes_per_s,
            "memory_bytes": stats["memory_bytes"],
            "vectors": stats["vectors"],
            "multiply_adds": stats["multiply_adds"],
            "multiply_adds_useful": stats["multiply_adds_useful"],
            "threads": self.threads,
            "threads_of_answers": answers["threads"],
            "threads_of_prompts": prompts["threads"],
            "answers_to_plain": answers["to_plain"],
            "prompts_to_plain": prompts["to_plain"],
            "comparisons_of_answers": answers["compared"],
            "comparisons_of_prompts": prompts["compared"],
            "prompt_tokens_beside": stats["prompt_tokens_beside"],
            "cpu_s": used["cpu_s"],
            "rss_bytes": used["resident_bytes"],
            "rss_peak_bytes": used["resident_peak_bytes"],
        }

    def drain(self) -> None:
        """Takes no more requests."""
        self._draining = True

    def close(self) -> None:
        """Ends what runs."""
        self._engine.close()
