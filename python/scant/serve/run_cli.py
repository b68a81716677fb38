"""``scant run``: one answer of a model, on the terminal as it comes."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence

from scant.errors import Error, InvalidArgument
from scant.runlog.explain import terminal
from scant.serve.answering import Told, answer
from scant.serve.engine import Engine, Sampling
from scant.serve.opening import Opener, add_options, count_of, fault, open_engine
from scant.serve.prompting import chat_tokens, template_of, text_tokens

__all__ = ["add_sampling", "main", "sampling_of"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scant run",
        description="Answer one prompt, then print a line of how fast that went. If the model has "
        "a chat template, the prompt is a user's message.",
    )
    add_options(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="the text; - reads the text from stdin")
    parser.add_argument(
        "--raw", action="store_true", help="continue the text itself, without a chat template"
    )
    parser.add_argument(
        "--max-tokens",
        type=count_of(1, 1 << 31),
        metavar="N",
        help="stop after N tokens (default: 256, or what the context has room for)",
    )
    add_sampling(parser)
    return parser


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How the next token is chosen; also of `scant chat`."""
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=0.0,
        metavar="T",
        help="0: always takes the likeliest token (the default); 1: draws it with the model's "
        "probabilities",
    )
    parser.add_argument(
        "--seed", type=count_of(0, (1 << 63) - 1), metavar="N", help="seed of the random draws"
    )


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 2")
    return value


def sampling_of(arguments: argparse.Namespace) -> Sampling:
    """What these options ask for."""
    return Sampling(temperature=arguments.temperature, seed=arguments.seed)


def main(argv: Sequence[str] | None = None, opener: Opener = open_engine) -> int:
    """Returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        engine = opener(arguments)
        try:
            with terminal():
                return _run(arguments, engine)
        finally:
            engine.close()
    except (Error, OSError) as error:
        print(f"scant run: {fault(error)}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace, engine: Engine) -> int:
    text = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    tokens = _tokens(engine, text, arguments.raw)
    room = engine.model.context - len(tokens)
    if room < 1:
        raise InvalidArgument(
            f"the prompt has {len(tokens):,} tokens; the model's context has "
            f"{engine.model.context:,}"
        )
    most = min(arguments.max_tokens or 256, room)
    told = Told()
    status = 0
    pieces = answer(engine, tokens, most, sampling_of(arguments), told)
    with contextlib.closing(pieces):
        try:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            sys.stdout.write(" …")
            status = 130
    print()
    if told.tokens:
        print(told.line(engine.stats()), file=sys.stderr)
    return status


def _tokens(engine: Engine, text: str, raw: bool) -> list[int]:
    model = engine.model
    template = None if raw else template_of(model)
    if template is not None:
        return chat_tokens(model, template, [{"role": "user", "content": text}])
    tokens = text_tokens(model, text)
    if not tokens:
        raise InvalidArgument("the prompt is empty")
    return tokens


if __name__ == "__main__":
    sys.exit(main())
