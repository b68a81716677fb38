"""``scant chat``: a conversation with a model on the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence

from scant.errors import Error, InvalidArgument
from scant.runlog.explain import terminal
from scant.serve.answering import Told, answer
from scant.serve.engine import Engine
from scant.serve.opening import Opener, add_options, count_of, fault, open_engine
from scant.serve.prompting import chat_tokens, template_of
from scant.serve.run_cli import add_sampling, sampling_of
from scant.serve.template import ChatTemplate

__all__ = ["main"]

_MAX_TOKENS = 1024  # of an answer: a small model may repeat itself for ever
_HELP = "/reset begins anew, /system TEXT says how to answer; Ctrl-C ends an answer, Ctrl-D leaves"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scant chat", description=f"Talk with a model. {_HELP}.")
    add_options(parser)
    parser.add_argument(
        "--system", metavar="TEXT", help="a first message that tells the model how to answer"
    )
    parser.add_argument(
        "--max-tokens",
        type=count_of(1, 1 << 31),
        default=_MAX_TOKENS,
        metavar="N",
        help="stop an answer after N tokens (default: %(default)s, or what the context has room "
        "for)",
    )
    add_sampling(parser)
    return parser


def main(
    argv: Sequence[str] | None = None,
    opener: Opener = open_engine,
    read: Callable[[str], str] | None = None,
) -> int:
    """Returns the exit status; `read` asks for a line, as input() does."""
    arguments = _parser().parse_args(argv)
    try:
        engine = opener(arguments)
        try:
            with terminal():
                _Conversation(engine, arguments).talk(read or _reader())
                return 0
        finally:
            engine.close()
    except (Error, OSError) as error:
        print(f"scant chat: {fault(error)}", file=sys.stderr)
        return 2


def _reader() -> Callable[[str], str]:
    """input(); its lines can be edited and come back where Python has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() uses it
    return input


class _Conversation:
    """Messages so far, and the loop that adds to them."""

    def __init__(self, engine: Engine, arguments: argparse.Namespace) -> None:
        template = template_of(engine.model)
        if template is None:
            raise InvalidArgument("this model has no chat template: use scant run --raw")
        self._engine = engine
        self._template: ChatTemplate = template
        self._sampling = sampling_of(arguments)
        self._most: int = arguments.max_tokens
        self._system: str | None = arguments.system
        self._messages: list[dict[str, str]] = []
        self._reset()

    def _reset(self) -> None:
        self._messages = []
        if self._system:
            self._messages.append({"role": "system", "content": self._system})

    def talk(self, read: Callable[[str], str]) -> None:
        """Until the end of what is read."""
        print(f"{self._engine.model.name}: {_HELP}")
        while True:
            try:
                line = read("> ").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:  # a line that is given up
                print()
                continue
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._say(line)

    def _command(self, line: str) -> None:
        word, _, text = line.partition(" ")
        if word == "/reset":
            self._reset()
        elif word == "/system":
            self._system = text.strip() or None
            self._reset()
        else:
            print(f"no command {word}. {_HELP}")

    def _say(self, line: str) -> None:
        self._messages.append({"role": "user", "content": line})
        parts: list[str] = []
        told = Told()
        try:
            tokens = chat_tokens(self._engine.model, self._template, self._messages)
            room = self._engine.model.context - len(tokens)
            if room < 1:
                raise InvalidArgument("the conversation is longer than the context: /reset")
            most = min(self._most, room)
            pieces = answer(self._engine, tokens, most, self._sampling, told)
            with contextlib.closing(pieces):
                for piece in pieces:
                    parts.append(piece)
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            sys.stdout.write(" …")
        except Error as error:
            self._messages.pop()
            print(f"scant chat: {error}", file=sys.stderr)
            return
        if told.finish == "length":
            sys.stdout.write(" …")
        print()
        self._messages.append({"role": "assistant", "content": "".join(parts)})
        if told.tokens:
            print(f"({told.line(self._engine.stats())})", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
