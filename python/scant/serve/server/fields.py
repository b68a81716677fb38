"""What a request asks for, field by field: each has its type and range, or a refusal names it.

docs/serving.md lists the fields. A field that would change the answer and is not supported is
refused; one that changes nothing (`user`) is ignored. Any thread; pure.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scant.serve.engine import Sampling
from scant.serve.server.limits import Limits
from scant.serve.server.refusals import Refusal

__all__ = ["Asked", "Messages", "chat", "completion", "vectors"]

Messages = Sequence[Mapping[str, str]]

_IGNORED = {
    "metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier",
    "store", "user",
}  # fmt: skip
# Of both endpoints.
_COMMON = {
    "frequency_penalty", "ignore_eos", "logit_bias", "max_tokens", "min_p", "model", "n",
    "presence_penalty", "repetition_penalty", "seed", "stop", "stop_token_ids", "stream",
    "stream_options", "temperature", "timeout", "top_k", "top_p",
}  # fmt: skip
# Fields of OpenAI's that are not supported, and the values that ask for nothing special.
_ONLY: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
_ROLES = {"assistant": "assistant", "developer": "system", "system": "system", "user": "user"}
_SECONDS_MAX = 1e6
_SEED_MASK = (1 << 63) - 1


@dataclass(frozen=True)
class Asked:
    """A request, checked but for what needs the model's tokenizer."""

    prompts: tuple[str | tuple[int, ...], ...] = ()
    messages: Messages = ()
    max_tokens: int | None = None
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    echo: bool = False
    timeout_s: float | None = None
    wanted: str = "answer"  # or a vector: mean, last
    base64: bool = False  # how vectors are written

    def sampling_of(self, place: int) -> Sampling:
        """Of the n-th answer to one prompt: with a seed each has its own, and the same again."""
        seed = self.sampling.seed
        if seed is None or place == 0:
            return self.sampling
        return dataclasses.replace(self.sampling, seed=(seed + place) & _SEED_MASK)


def completion(body: Mapping[str, Any], model: str, vocabulary: int, limits: Limits) -> Asked:
    """A body of `/v1/completions`."""
    fields = _Fields(body, vocabulary, limits)
    fields.check_names({"prompt", "echo", "logprobs"})
    fields.check_model(model)
    prompts = fields.prompts("prompt", limits.prompts)
    logprobs = fields.whole("logprobs", -1, 0, limits.alternatives)
    echo = fields.flag("echo")
    asked = fields.common(
        prompts=prompts,
        echo=echo,
        logprobs=logprobs,
        max_tokens=fields.whole("max_tokens", 16, 0 if echo else 1, 1 << 31),
    )
    fields.check_choices(len(prompts), asked.n)
    return asked


def vectors(
    body: Mapping[str, Any], model: str, vocabulary: int, limits: Limits, width: int
) -> Asked:
    """A body of `/v1/embeddings`."""
    fields = _Fields(body, vocabulary, limits)
    fields.check_only({"model", "input", "encoding_format", "dimensions", "pooling", "timeout"})
    fields.check_model(model)
    if fields.whole("dimensions", width, 1, 1 << 31) != width:
        raise _wrong(
            "dimensions", f"is not supported: vectors have {width}", code="unsupported_field"
        )
    return Asked(
        prompts=fields.prompts("input", limits.inputs),
        max_tokens=0,
        timeout_s=fields.timeout(),
        wanted=fields.one_of("pooling", ("mean", "last")),
        base64=fields.one_of("encoding_format", ("float", "base64")) == "base64",
    )


def chat(body: Mapping[str, Any], model: str, vocabulary: int, limits: Limits) -> Asked:
    """A body of `/v1/chat/completions`."""
    fields = _Fields(body, vocabulary, limits)
    fields.check_names({"messages", "max_completion_tokens", "logprobs", "top_logprobs"})
    fields.check_model(model)
    wanted = fields.flag("logprobs")
    alternatives = fields.whole("top_logprobs", 0, 0, limits.alternatives)
    if alternatives and not wanted:
        raise _wrong("top_logprobs", "needs logprobs to be true")
    old = fields.whole("max_tokens", 0, 1, 1 << 31)
    new = fields.whole("max_completion_tokens", 0, 1, 1 << 31)
    if old and new and old != new:
        raise _wrong("max_tokens", "differs from max_completion_tokens: give only one")
    asked = fields.common(
        messages=fields.messages(),
        logprobs=alternatives if wanted else -1,
        max_tokens=old or new or None,
    )
    fields.check_choices(1, asked.n)
    return asked


def _wrong(name: str, what: str, status: int = 400, code: str | None = None) -> Refusal:
    return Refusal(status, f"{name} {what}", param=name, code=code)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


class _Fields:
    """Reads a body; a field that is null is one that is not there."""

    def __init__(self, body: Mapping[str, Any], vocabulary: int, limits: Limits) -> None:
        self._body = body
        self._vocabulary = vocabulary
        self._limits = limits

    def check_names(self, own: set[str]) -> None:
        for name, value in self._body.items():
            if name in _ONLY:
                if value is not None and value not in _ONLY[name]:
                    raise _wrong(name, "is not supported", code="unsupported_field")
            elif name not in own and name not in _COMMON and name not in _IGNORED:
                text = f"the field {_shown(name)} is not known"
                raise Refusal(400, text, param=name[:100], code="unknown_field")

    def check_only(self, own: set[str]) -> None:
        for name in self._body:
            if name not in own and name not in _IGNORED:
                text = f"the field {_shown(name)} is not known"
                raise Refusal(400, text, param=name[:100], code="unknown_field")

    def one_of(self, name: str, words: tuple[str, ...]) -> str:
        """The first one where none is given."""
        value = self._body.get(name)
        if value is None:
            return words[0]
        if value not in words:
            raise _wrong(name, f"must be {' or '.join(words)}, not {_shown(value)}")
        return str(value)

    def check_model(self, model: str) -> None:
        name = self._body.get("model")
        if name is not None and name != model:
            text = f"the model {_shown(name)} is not here; there is {model!r}"
            raise Refusal(404, text, param="model", code="model_not_found")

    def check_choices(self, prompts: int, n: int) -> None:
        if prompts * n > self._limits.choices:
            raise _wrong("n", f"makes more than {self._limits.choices} answers in one request")

    def common(self, *, logprobs: int, max_tokens: int | None, **more: Any) -> Asked:
        """The fields that both endpoints have."""
        stream = self.flag("stream")
        sampling = Sampling(
            temperature=self.number("temperature", 1.0, 0.0, 2.0),
            top_k=max(self.whole("top_k", 0, -1, 1 << 31), 0),
            top_p=self.number("top_p", 1.0, 0.0, 1.0),
            min_p=self.number("min_p", 0.0, 0.0, 1.0),
            repetition_penalty=self.number("repetition_penalty", 1.0, 0.01, 100.0),
            frequency_penalty=self.number("frequency_penalty", 0.0, -2.0, 2.0),
            presence_penalty=self.number("presence_penalty", 0.0, -2.0, 2.0),
            seed=self._seed(),
            logprobs=logprobs,
            logit_bias=self._biases(),
            ignore_eos=self.flag("ignore_eos"),
            stop_tokens=self._stop_tokens(),
        )
        return Asked(
            sampling=sampling,
            max_tokens=max_tokens,
            n=self.whole("n", 1, 1, self._limits.n),
            stops=self._stops(),
            stream=stream,
            include_usage=self._include_usage(stream),
            timeout_s=self.timeout(),
            **more,
        )

    def flag(self, name: str) -> bool:
        value = self._body.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise _wrong(name, f"must be true or false, not {_shown(value)}")
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self._body.get(name)
        if value is None:
            return default
        return _whole(name, value, low, high)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(name, f"must be a number, not {_shown(value)}")
        if not low <= value <= high:
            raise _wrong(name, f"must be from {low:g} to {high:g}, not {_shown(value)}")
        return float(value)

    def timeout(self) -> float | None:
        value = self.number("timeout", math.inf, 0.0, _SECONDS_MAX)
        if value == 0:
            raise _wrong("timeout", "must be more than 0 seconds")
        return None if math.isinf(value) else value

    def _seed(self) -> int | None:
        if self._body.get("seed") is None:
            return None
        return self.whole("seed", 0, -(1 << 63), (1 << 64) - 1) & _SEED_MASK

    def _include_usage(self, stream: bool) -> bool:
        options = self._body.get("stream_options")
        if options is None:
            return False
        if not isinstance(options, dict):
            raise _wrong("stream_options", "must be an object")
        if not stream:
            raise _wrong("stream_options", "needs stream to be true")
        for name, value in options.items():
            if name not in ("include_usage", "include_obfuscation"):
                raise _wrong(f"stream_options.{name[:100]}", "is not known", code="unknown_field")
            if not isinstance(value, bool | None):
                raise _wrong(f"stream_options.{name}", "must be true or false")
        return bool(options.get("include_usage"))

    def _stops(self) -> tuple[str, ...]:
        value = self._body.get("stop")
        found = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise _wrong("stop", "must be a text or a list of texts")
        if len(found) > self._limits.stops:
            raise _wrong("stop", f"has more than {self._limits.stops} texts")
        if any(len(one) > self._limits.stop_characters for one in found):
            raise _wrong("stop", f"has a text above {self._limits.stop_characters} characters")
        if not all(found):
            raise _wrong("stop", "has an empty text")
        return tuple(found)

    def _stop_tokens(self) -> tuple[int, ...]:
        value = self._body.get("stop_token_ids")
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > self._limits.stop_tokens:
            raise _wrong(
                "stop_token_ids", f"must be a list of at most {self._limits.stop_tokens} tokens"
            )
        return tuple(self._token("stop_token_ids", one) for one in value)

    def _token(self, name: str, value: Any) -> int:
        return _whole(name, value, 0, self._vocabulary - 1)

    def _biases(self) -> dict[int, float]:
        value = self._body.get("logit_bias")
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > self._limits.biases:
            raise _wrong("logit_bias", f"must be an object of at most {self._limits.biases} tokens")
        found = {}
        for key, bias in value.items():
            if not key.isascii() or not key.isdigit() or len(key) > 10:
                raise _wrong("logit_bias", f"has the key {_shown(key)}, which is no token")
            if isinstance(bias, bool) or not isinstance(bias, int | float) or abs(bias) > 100:
                raise _wrong("logit_bias", f"of {key} must be a number from -100 to 100")
            found[self._token("logit_bias", int(key))] = float(bias)
        return found

    def prompts(self, name: str, most: int) -> tuple[str | tuple[int, ...], ...]:
        """A text, texts, tokens, or lists of tokens."""
        value = self._body.get(name)
        if value is None:
            raise _wrong(name, "is missing")
        if isinstance(value, str):
            return (_text(name, value),)
        if not isinstance(value, list) or not value:
            raise _wrong(name, "must be a text, a list of texts, tokens or lists of tokens")
        if isinstance(value[0], int):
            return (self._tokens(name, value),)
        if len(value) > most:
            raise _wrong(name, f"has more than {most} {name}s")
        return tuple(
            _text(name, one) if isinstance(one, str) else self._tokens(name, one) for one in value
        )

    def _tokens(self, name: str, value: Any) -> tuple[int, ...]:
        if not isinstance(value, list):
            raise _wrong(name, f"has {_shown(value)} where a text or tokens are expected")
        most = self._vocabulary
        for one in value:
            if type(one) is not int or not 0 <= one < most:
                raise _wrong(name, f"has {_shown(one)}, which is no token below {most}")
        return tuple(value)

    def messages(self) -> Messages:
        """With roles that templates know, and content as one text."""
        value = self._body.get("messages")
        if not isinstance(value, list) or not value:
            raise _wrong("messages", "must be a list of at least one message")
        if len(value) > self._limits.messages:
            raise _wrong("messages", f"has more than {self._limits.messages} messages")
        return tuple(_message(f"messages[{place}]", one) for place, one in enumerate(value))


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, f"must be a whole number, not {_shown(value)}")
    if not low <= value <= high:
        raise _wrong(name, f"must be from {low} to {high}, not {_shown(value)}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, f"must be a text, not {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _wrong(name, "has half of a surrogate pair, which is no text") from error
    return value


def _message(at: str, value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise _wrong(at, "must be an object")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        what = "is not supported" if role in ("tool", "function") else "is not known"
        raise _wrong(f"{at}.role", f"{_shown(role)} {what}: use {', '.join(_ROLES)}")
    found = {"role": _ROLES[role]}
    readers: dict[str, Callable[[str, Any], str]] = {"content": _content, "name": _text}
    for name, one in value.items():
        if name in readers:
            if one is not None or name == "content":
                found[name] = readers[name](f"{at}.{name}", one)
        elif name != "role" and one is not None and one != []:
            raise _wrong(f"{at}.{name[:100]}", "is not supported", code="unsupported_field")
    if "content" not in found:
        raise _wrong(f"{at}.content", "is missing")
    return found


def _content(name: str, value: Any) -> str:
    if not isinstance(value, list):
        return _text(name, value)
    parts = []
    for place, one in enumerate(value):
        at = f"{name}[{place}]"
        if not isinstance(one, dict) or one.get("type") != "text":
            raise _wrong(f"{at}.type", "must be text: nothing else is supported")
        parts.append(_text(f"{at}.text", one.get("text")))
    return "\n".join(parts)
