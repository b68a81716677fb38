"""An answer as OpenAI's JSON: whole, or as server-sent events whose fixed parts are made once.

A chunk of a stream costs one quoted text and one join, not a walk through an object.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from scant.serve.engine import Token
from scant.serve.text import Tokenizer

__all__ = ["ChatForm", "CompletionForm", "Form", "Usage", "VectorForm", "logprobs_of_chat"]

DONE = b"data: [DONE]\n\n"


class Usage:
    """Tokens of a request, summed over its answers."""

    def __init__(self, prompt: int, cached: int, generated: int) -> None:
        self.table = {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


class Form:
    """What both endpoints share; `wants_usage`: a stream ends with it."""

    prefix = ""
    kind = ""
    kind_of_chunk = ""

    def __init__(self, number: str, created: int, model: str, wants_usage: bool) -> None:
        self.id = f"{self.prefix}-{number}"
        self.created = created
        self.model = model
        self._wants_usage = wants_usage
        head = json.dumps(
            {"id": self.id, "object": self.kind_of_chunk, "created": created, "model": model}
        )
        self._head = f"data: {head[:-1]}, "
        self._tail = ', "usage": null}\n\n' if wants_usage else "}\n\n"

    def whole(self, choices: Sequence[dict[str, Any]], usage: Usage) -> bytes:
        """The answer that is no stream."""
        table = {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage.table,
        }
        return json.dumps(table).encode()

    def usage(self, usage: Usage) -> bytes:
        """The event after the last choice; nothing where it is not wanted."""
        if not self._wants_usage:
            return b""
        return f'{self._head}"choices": [], "usage": {json.dumps(usage.table)}}}\n\n'.encode()

    def choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str
    ) -> dict[str, Any]:
        """A choice of an answer that is no stream."""
        raise NotImplementedError

    def begin(self, index: int) -> str:
        """What a choice's stream begins with."""
        raise NotImplementedError

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None) -> str:
        """An event with text."""
        raise NotImplementedError

    def end(self, index: int, finish: str) -> str:
        """The last event of a choice."""
        raise NotImplementedError


class CompletionForm(Form):
    """`/v1/completions`."""

    prefix = "cmpl"
    kind = "text_completion"
    kind_of_chunk = "text_completion"

    def choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def begin(self, index: int) -> str:
        return ""

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None) -> str:
        shown = "null" if logprobs is None else json.dumps(logprobs)
        return (
            f'{self._head}"choices": [{{"index": {index}, "text": {quoted(text)}, '
            f'"logprobs": {shown}, "finish_reason": null}}]{self._tail}'
        )

    def end(self, index: int, finish: str) -> str:
        return (
            f'{self._head}"choices": [{{"index": {index}, "text": "", "logprobs": null, '
            f'"finish_reason": "{finish}"}}]{self._tail}'
        )


class ChatForm(Form):
    """`/v1/chat/completions`."""

    prefix = "chatcmpl"
    kind = "chat.completion"
    kind_of_chunk = "chat.completion.chunk"

    def choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str
    ) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def begin(self, index: int) -> str:
        return (
            f'{self._head}"choices": [{{"index": {index}, "delta": {{"role": "assistant", '
            f'"content": ""}}, "logprobs": null, "finish_reason": null}}]{self._tail}'
        )

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None) -> str:
        shown = "null" if logprobs is None else json.dumps(logprobs)
        return (
            f'{self._head}"choices": [{{"index": {index}, "delta": {{"content": {quoted(text)}}}, '
            f'"logprobs": {shown}, "finish_reason": null}}]{self._tail}'
        )

    def end(self, index: int, finish: str) -> str:
        return (
            f'{self._head}"choices": [{{"index": {index}, "delta": {{}}, "logprobs": null, '
            f'"finish_reason": "{finish}"}}]{self._tail}'
        )


class VectorForm(Form):
    """`/v1/embeddings`; never a stream. A choice's text is its vector: base64, or JSON already."""

    def choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str
    ) -> dict[str, Any]:
        return {"object": "embedding", "index": index, "embedding": text}

    def whole(self, choices: Sequence[dict[str, Any]], usage: Usage) -> bytes:
        rows = []
        for one in choices:
            vector = one["embedding"]
            shown = vector if vector.startswith("[") else quoted(vector)
            rows.append(f'{{"object": "embedding", "index": {one["index"]}, "embedding": {shown}}}')
        table = {name: usage.table[name] for name in ("prompt_tokens", "total_tokens")}
        return (
            f'{{"object": "list", "model": {quoted(self.model)}, "data": [{", ".join(rows)}], '
            f'"usage": {json.dumps(table)}}}'
        ).encode()


def logprobs_of_chat(tokenizer: Tokenizer, events: Sequence[Token]) -> dict[str, Any]:
    """Of tokens with their alternatives, as chats have it."""
    content = []
    for event in events:
        assert event.token is not None
        entry = _row(tokenizer, event.token, event.logprob)
        entry["top_logprobs"] = [_row(tokenizer, token, value) for token, value in event.top]
        content.append(entry)
    return {"content": content, "refusal": None}


def _row(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    data = tokenizer.bytes_of(token)
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": logprob,
        "bytes": list(data),
    }


def logprobs_of_completion(
    tokenizer: Tokenizer, events: Sequence[Token], offsets: Sequence[int]
) -> dict[str, Any]:
    """Of tokens with their alternatives, as completions have it; `offsets` count characters."""
    return {
        "tokens": [_key(tokenizer, event.token) for event in events],
        "token_logprobs": [event.logprob for event in events],
        "top_logprobs": [
            {_key(tokenizer, token): value for token, value in event.top} or None
            for event in events
        ],
        "text_offset": list(offsets),
    }


def _key(tokenizer: Tokenizer, token: int | None) -> str:
    """A token's text; of a part of a character its bytes, so that no two have one key."""
    data = b"" if token is None else tokenizer.bytes_of(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
