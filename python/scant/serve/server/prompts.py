"""From what was asked to tokens: text through the tokenizer, messages through the chat template.

Any thread; the tokenizer works without the GIL.
"""

from __future__ import annotations

from dataclasses import dataclass

from scant.serve.engine import Model
from scant.serve.prompting import TooLongError, chat_tokens, template_of, text_tokens
from scant.serve.server import body, fields
from scant.serve.server.fields import Asked
from scant.serve.server.limits import Limits
from scant.serve.server.refusals import Refusal
from scant.serve.template import TemplateError

__all__ = ["Preparer", "Prompt"]


@dataclass(frozen=True)
class Prompt:
    """Tokens for the engine, how many may follow, and the text that `echo` repeats."""

    tokens: list[int]
    max_tokens: int
    text: str


class Preparer:
    """Reads bodies for one model."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self._model = model
        self._limits = limits
        self._tokenizer = model.tokenizer
        self.template = template_of(model)

    def completion(self, data: bytes) -> tuple[Asked, list[Prompt]]:
        """A body of `/v1/completions`."""
        asked = fields.completion(
            body.parse(data, self._limits),
            self._model.name,
            self._model.vocabulary,
            self._limits,
        )
        return asked, [self._prompt(one, asked) for one in asked.prompts]

    def chat(self, data: bytes) -> tuple[Asked, list[Prompt]]:
        """A body of `/v1/chat/completions`."""
        asked = fields.chat(
            body.parse(data, self._limits),
            self._model.name,
            self._model.vocabulary,
            self._limits,
        )
        if self.template is None:
            raise Refusal(
                400, "this model has no chat template: use /v1/completions", param="messages"
            )
        try:
            tokens = chat_tokens(self._model, self.template, asked.messages)
        except TooLongError as error:
            raise _too_long(str(error), self._model.context, "messages") from error
        except TemplateError as error:
            raise Refusal(400, str(error), param="messages", code="chat_template") from error
        return asked, [self._checked(tokens, "", asked, "messages")]

    def vectors(self, data: bytes) -> tuple[Asked, list[Prompt]]:
        """A body of `/v1/embeddings`."""
        model = self._model
        asked = fields.vectors(
            body.parse(data, self._limits),
            model.name,
            model.vocabulary,
            self._limits,
            model.width,
        )
        return asked, [self._prompt(one, asked, "input") for one in asked.prompts]

    def _prompt(self, prompt: str | tuple[int, ...], asked: Asked, param: str = "prompt") -> Prompt:
        model = self._model
        if not isinstance(prompt, str):
            text = self._tokenizer.decode(prompt) if asked.echo else ""
            return self._checked(list(prompt), text, asked, param)
        try:
            tokens = text_tokens(model, prompt)
        except TooLongError as error:
            raise _too_long(str(error), model.context, param) from error
        return self._checked(tokens, prompt, asked, param)

    def _checked(self, tokens: list[int], text: str, asked: Asked, param: str) -> Prompt:
        context = self._model.context
        if not tokens:
            raise Refusal(400, f"the {param} is empty", param=param)
        room = context - len(tokens)
        if room < (1 if asked.max_tokens is None else asked.max_tokens):
            what = f"{len(tokens):,} tokens"
            if asked.max_tokens and room > 0:
                what += f" and {asked.max_tokens:,} to come"
            raise _too_long(what, context, param)
        most = room if asked.max_tokens is None else asked.max_tokens
        return Prompt(tokens, most, text)


def _too_long(what: str, context: int, param: str) -> Refusal:
    text = f"the model's context has {context:,} tokens; the request has {what}"
    return Refusal(400, text, param=param, code="context_length_exceeded")
