"""What a request says: a trace has lengths, no texts.

A prompt is common English words, of which most tokenizers make about one token each. The first
words are drawn for each prompt, so that no two share a beginning; blocks of a trace that have one
name have one text, so that they share it. Making a prompt costs microseconds: it is a slice.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from typing import Any

from scant.serve.replay.schedule import Send

__all__ = ["Prompts", "body_of"]

BLOCK = 512  # tokens of a block in Mooncake's traces
_OWN = 8  # words, or tokens, drawn for each text; the rest is a slice of the stock
_STOCK = 1 << 15
_SPECIAL = 1000  # token numbers below this may be special ones

_TEXT = """
the of and to in is that it was for on are as with his they at be this from have or by one
had not but what all were when we there can an your which their said if do will each about
how up out them then she many some so these would other into has more her two like him see
time could no make than first been its who now people my made over did down only way find use
may water long little very after words called just where most know get through back much
before go good new write our used me man too any day same right look think also around
another came come work three must because does part even place well such here take why things
help put years different away again off went old number great tell men say small every found
still between name should home big give air line set own under read last never us left end
along while might next sound below saw something thought both few those always looked show
large often together asked house world going want school important until form food keep
children feet land side without boy once animal life enough took four head above kind began
almost live page got earth need far hand high year mother light country father let night
"""
_WORDS = _TEXT.split()


class Prompts:
    """Texts, or lists of token numbers below `vocabulary` where it is given."""

    def __init__(self, seed: int, vocabulary: int | None = None) -> None:
        self._seed = seed
        draw = random.Random(f"stock:{seed}")
        low = 0
        if vocabulary is not None:
            low = min(_SPECIAL, vocabulary // 2)
        self._ids = None if vocabulary is None else range(low, vocabulary)
        self._stock_ids: list[int] = []
        self._stock, self._ends = "", [0]
        if self._ids is not None:
            self._stock_ids = draw.choices(self._ids, k=_STOCK)
        else:
            words = [word + " " for word in draw.choices(_WORDS, k=_STOCK)]
            self._stock = "".join(words)
            self._ends = [0, *itertools.accumulate(len(word) for word in words)]

    def of(self, send: Send) -> str | list[int]:
        """The prompt of this request, about as long as in the trace."""
        pieces: list[tuple[str, int]] = []
        left = send.prompt_tokens
        for block in send.blocks:
            if left > 0:
                pieces.append((f"block:{block}", min(left, BLOCK)))
                left -= BLOCK
        if left > 0:
            pieces.append((f"own:{send.number}", left))
        if self._ids is not None:
            return [token for name, count in pieces for token in self._tokens(name, count)]
        return "".join(self._words(name, count) for name, count in pieces).rstrip()

    def _words(self, name: str, count: int) -> str:
        draw = random.Random(f"{self._seed}:{name}")
        parts = [word + " " for word in draw.choices(_WORDS, k=min(count, _OWN))]
        left = count - len(parts)
        while left > 0:
            start = draw.randrange(_STOCK)
            end = min(start + left, _STOCK)
            parts.append(self._stock[self._ends[start] : self._ends[end]])
            left -= end - start
        return "".join(parts)

    def _tokens(self, name: str, count: int) -> list[int]:
        draw = random.Random(f"{self._seed}:{name}")
        tokens = draw.choices(self._ids or range(1), k=min(count, _OWN))
        while len(tokens) < count:
            start = draw.randrange(_STOCK)
            tokens += self._stock_ids[start : start + count - len(tokens)]
        return tokens


def body_of(
    send: Send, prompt: str | list[int], model: str, chat: bool, more: Mapping[str, Any]
) -> bytes:
    """The request's JSON."""
    asked: dict[str, Any] = {
        "model": model,
        "max_tokens": send.answer_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        **more,
    }
    if chat:
        asked["messages"] = [{"role": "user", "content": prompt}]
    else:
        asked["prompt"] = prompt
    return json.dumps(asked, separators=(",", ":")).encode()
