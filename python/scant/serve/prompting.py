"""A model's prompts as tokens: of a plain text, of the messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scant.errors import InvalidArgument
from scant.serve.engine import Model
from scant.serve.template import ChatTemplate

__all__ = ["TooLongError", "chat_tokens", "template_of", "text_tokens"]

_CHARACTERS_OF_A_TOKEN_MAX = 512  # runs of spaces are long ones; only saves the work of refusing


class TooLongError(InvalidArgument):
    """A text that the context surely has no room for; it was not even cut into tokens."""


def template_of(model: Model) -> ChatTemplate | None:
    """The model's chat template, compiled; None where it has none."""
    if model.chat_template is None:
        return None
    eos = model.eos[0] if model.eos else None
    name = model.tokenizer.name
    return ChatTemplate(model.chat_template, bos=name(model.bos), eos=name(eos))


def text_tokens(model: Model, text: str) -> list[int]:
    """Of a text, with bos where the model wants it."""
    tokens = _encoded(model, text)
    if model.adds_bos and model.bos is not None:
        tokens.insert(0, model.bos)
    return tokens


def chat_tokens(
    model: Model, template: ChatTemplate, messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """Of a conversation. Most templates write bos themselves; it comes but once."""
    tokens = _encoded(model, template.render(messages))
    if model.adds_bos and model.bos is not None and tokens[:1] != [model.bos]:
        tokens.insert(0, model.bos)
    return tokens


def _encoded(model: Model, text: str) -> list[int]:
    if len(text) > model.context * _CHARACTERS_OF_A_TOKEN_MAX:
        raise TooLongError(f"a text of {len(text):,} characters")
    return model.tokenizer.encode(text)
