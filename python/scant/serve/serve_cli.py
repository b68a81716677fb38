"""``scant serve``: a model behind OpenAI's protocol."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from scant.errors import Error
from scant.serve.opening import Opener, add_options, count_of, fault, open_engine, seconds_of
from scant.serve.text import need

__all__ = ["main"]

_WHAT = """\
Serve a packed or GGUF file over HTTP, with OpenAI's /v1/chat/completions and /v1/completions.
Ctrl-C or SIGTERM ends it after the running answers. A second one ends it at once."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scant serve", description=_WHAT)
    add_options(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen at (default: 127.0.0.1, this machine only)",
    )
    parser.add_argument(
        "--port",
        type=count_of(0, 65535),
        default=8000,
        metavar="N",
        help="port to listen at; 0: any free one (default: 8000)",
    )
    parser.add_argument(
        "--max-waiting",
        type=count_of(0, 1_000_000),
        default=1024,
        metavar="N",
        help="how many requests may wait; further ones get status 429 (default: 1024)",
    )
    parser.add_argument(
        "--api-key-file",
        type=pathlib.Path,
        metavar="FILE",
        help="file of keys, one per line; a client must send one of them. The environment "
        "variable SCANT_API_KEY can hold a key, too",
    )
    parser.add_argument(
        "--timeout",
        type=seconds_of(0.0),
        default=600.0,
        metavar="S",
        help="seconds that a request may take, from its arrival to its last token; 0: no limit "
        "(default: 600)",
    )
    parser.add_argument(
        "--drain-timeout",
        type=seconds_of(0.0),
        default=30.0,
        metavar="S",
        help="seconds that the server waits for running answers when it ends (default: 30)",
    )
    parser.add_argument(
        "--name", metavar="NAME", help="the model's name in the API (default: the file's)"
    )
    parser.add_argument(
        "--log", metavar="FILE", help="write a run log to FILE, for scant top and scant explain"
    )
    parser.add_argument(
        "--access-log", action="store_true", help="print a line on stderr for each request"
    )
    return parser


def main(argv: Sequence[str] | None = None, opener: Opener = open_engine) -> int:
    """Returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        need("starlette", "uvicorn", "httptools")
        return _serve(arguments, opener)
    except (Error, OSError) as error:
        print(f"scant serve: {fault(error)}", file=sys.stderr)
        return 2


def _serve(arguments: argparse.Namespace, opener: Opener) -> int:
    from scant.serve.server.app import Settings
    from scant.serve.server.front import Front
    from scant.serve.server.keys import Keys, readable_by_others

    keys = Keys.read(arguments.api_key_file, os.environ)
    if arguments.api_key_file is not None and readable_by_others(arguments.api_key_file):
        print(
            f"scant serve: warning: others can read {arguments.api_key_file}: "
            f"chmod 600 {arguments.api_key_file}",
            file=sys.stderr,
        )
    settings = Settings(
        host=arguments.host,
        port=arguments.port,
        keys=keys,
        timeout_s=arguments.timeout or None,
        drain_timeout_s=arguments.drain_timeout,
        access_log=arguments.access_log,
        log=arguments.log,
    )
    engine = opener(arguments)
    try:
        return Front(engine, settings, lambda line: print(f"scant serve: {line}", flush=True)).run()
    finally:
        engine.close()


if __name__ == "__main__":
    sys.exit(main())
