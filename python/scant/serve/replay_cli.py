"""``scant replay``: a trace's load on any server of OpenAI's protocol."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import pathlib
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from scant import amounts
from scant.errors import Error, InvalidArgument
from scant.serve.opening import count_of, fault, seconds_of
from scant.serve.replay import cost, report
from scant.serve.replay.client import Server, raise_file_limit, replay
from scant.serve.replay.figures import Figures, Outcome, Slo
from scant.serve.replay.prompts import Prompts, body_of
from scant.serve.replay.schedule import Plan, Send, schedule
from scant.traces import Request, Selection, Shape, Trace, synthetic

__all__ = ["main"]

_ENERGY_S = 20.0  # between two looks at the meter, whose counters wrap
_PRIORITY = -10

_WHAT = """\
Send the requests of a trace at their times, whether or not earlier ones are answered, and measure
the answers. TRACE is BurstGPT's or Azure's CSV, Mooncake's JSON lines, or the word `synthetic`.
Status 0: a valid run; 1: sends were late, none was sent, or no answer was whole; 2: could not run;
130: cut short."""


def _above_zero(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1e9:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scant replay", description=_WHAT)
    add = parser.add_argument
    count = count_of(1, 10_000_000)
    add("trace", metavar="TRACE", help="the file, or `synthetic`")
    add("--url", default="http://127.0.0.1:8000", help="the server (http://127.0.0.1:8000)")
    add("--ask", metavar="NAME", help="model to ask for (default: the server's first)")
    add(
        "--endpoint", choices=("chat", "completions"), default="chat", help="endpoint to ask (chat)"
    )
    add(
        "--token-ids",
        type=count,
        metavar="N",
        help="prompts are token numbers below N, not words; needs --endpoint completions",
    )
    add(
        "--ca",
        type=pathlib.Path,
        metavar="FILE",
        help="certificates (PEM) to trust with https, beside the system's",
    )
    add("--insecure", action="store_true", help="accept any certificate with https")
    add(
        "--api-key-file",
        type=pathlib.Path,
        metavar="FILE",
        help="file whose first word is the key; else the environment variable SCANT_API_KEY",
    )
    _add_rows(parser.add_argument_group("which rows"))
    _add_load(parser.add_argument_group("the load"))
    _add_figures(parser.add_argument_group("figures"))
    return parser


def _add_rows(rows: argparse._ArgumentGroup) -> None:
    count, seconds = count_of(1, 10_000_000), seconds_of(0.0, 1e9)
    rows.add_argument("--model", metavar="NAME", help="only rows of this model (BurstGPT)")
    rows.add_argument("--log-type", metavar="NAME", help="only rows of this log type (BurstGPT)")
    rows.add_argument(
        "--from",
        dest="from_s",
        type=seconds,
        default=0.0,
        metavar="S",
        help="begin S seconds after the trace's first row (0)",
    )
    rows.add_argument("--duration", type=seconds, metavar="S", help="take S seconds of the trace")
    rows.add_argument("--limit", type=count, metavar="N", help="send at most N requests")
    rows.add_argument("--strict", action="store_true", help="a damaged row ends the run")
    rows.add_argument(
        "--damaged-max",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="end the run if a larger share of rows is damaged (0.01)",
    )


def _add_load(load: argparse._ArgumentGroup) -> None:
    count, seconds = count_of(1, 10_000_000), seconds_of(0.0, 1e9)
    load.add_argument(
        "--seed",
        type=count_of(0, 1 << 62),
        default=0,
        metavar="N",
        help="the same seed gives the same load (0)",
    )
    load.add_argument(
        "--speed",
        type=_above_zero,
        default=1.0,
        metavar="X",
        help="0.1 sends a tenth as fast as the trace (1)",
    )
    load.add_argument(
        "--spread",
        type=seconds,
        metavar="S",
        help="spread requests that arrive at one time over S seconds (BurstGPT: 1, else 0)",
    )
    load.add_argument(
        "--rate",
        type=_above_zero,
        default=1.0,
        metavar="X",
        help="synthetic: requests a second (1)",
    )
    load.add_argument(
        "--prompt-max", type=count, metavar="N", help="cut longer prompts to N tokens"
    )
    load.add_argument(
        "--answer-max", type=count, metavar="N", help="cut longer answers to N tokens"
    )
    lengths = load.add_mutually_exclusive_group()
    lengths.add_argument(
        "--exact-lengths",
        dest="ignore_eos",
        action="store_true",
        default=True,
        help="make answers as long as in the trace, with the field ignore_eos (default)",
    )
    lengths.add_argument(
        "--no-ignore-eos",
        dest="ignore_eos",
        action="store_false",
        help="do not send ignore_eos, for servers that refuse it: answers may be short",
    )
    load.add_argument(
        "--timeout",
        type=seconds_of(0.001),
        default=600.0,
        metavar="S",
        help="seconds that a request may take, from its time in the trace (600)",
    )
    load.add_argument(
        "--connections-max",
        type=count,
        default=16384,
        metavar="N",
        help="connections open at once; a request beyond them fails (16384)",
    )


def _add_figures(out: argparse._ArgumentGroup) -> None:
    count, seconds = count_of(1, 10_000_000), seconds_of(0.0, 1e9)
    out.add_argument(
        "--slo-ttft",
        type=seconds,
        default=2.0,
        metavar="S",
        help="longest time to the first token (TTFT) of a good answer (2)",
    )
    out.add_argument(
        "--slo-tpot",
        type=seconds,
        default=0.2,
        metavar="S",
        help="longest time per token after it (TPOT) of a good answer (0.2)",
    )
    out.add_argument(
        "--pid", type=count, metavar="PID", help="process of the server, to measure its CPU time"
    )
    out.add_argument(
        "--out", type=pathlib.Path, metavar="FILE", help="write a JSON line for each request"
    )
    out.add_argument(
        "--report", type=pathlib.Path, metavar="FILE", help="write an HTML page with plots"
    )
    out.add_argument(
        "--dry-run", action="store_true", help="send nothing, but print what would be sent"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.token_ids is not None and arguments.endpoint != "completions":
            raise InvalidArgument("--token-ids needs --endpoint completions")
        trace, requests = _requests(arguments)
        spread_s = arguments.spread
        if spread_s is None:
            spread_s = trace.resolution_s if trace is not None else 0.0
        plan = Plan(
            seed=arguments.seed,
            speed=arguments.speed,
            from_s=0.0 if trace is None else arguments.from_s,
            spread_s=spread_s,
            prompt_max=arguments.prompt_max,
            answer_max=arguments.answer_max,
        )
        sends = schedule(requests, plan)
        if arguments.dry_run:
            return _dry_run(sends, trace)
        return _run(arguments, trace, sends)
    except (Error, OSError) as error:
        print(f"scant replay: {fault(error)}", file=sys.stderr)
        return 2


def _requests(arguments: argparse.Namespace) -> tuple[Trace | None, Iterator[Request]]:
    if arguments.trace != "synthetic":
        wanted = Selection(
            arguments.model, arguments.log_type, arguments.from_s, arguments.duration,
            arguments.limit,
        )  # fmt: skip
        trace = Trace(
            arguments.trace, wanted, strict=arguments.strict, damaged_max=arguments.damaged_max
        )
        return trace, iter(trace)
    if arguments.duration is None and arguments.limit is None:
        raise InvalidArgument("a synthetic trace has no end: give --duration or --limit")
    rows = synthetic(Shape(rate=arguments.rate), arguments.seed)
    if arguments.duration is not None:
        rows = itertools.takewhile(lambda row: row.at_s < arguments.duration, rows)
    return None, itertools.islice(rows, arguments.limit)


def _dry_run(sends: Iterator[Send], trace: Trace | None) -> int:
    count = prompts = answers = 0
    last_s = 0.0
    for send in sends:
        count += 1
        prompts += send.prompt_tokens
        answers += send.answer_tokens
        last_s = send.at_s
    print(f"{count:,} requests in {amounts.span(last_s)}")
    if count:
        print(f"tokens of a prompt {prompts / count:,.0f}, of an answer {answers / count:,.0f}")
    for line in _notes(trace):
        print(line)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"memory of this process: {amounts.size(peak)}")
    return 0 if count else 1


def _notes(trace: Trace | None) -> list[str]:
    if trace is None:
        return ["The trace is synthetic: it is drawn from a seed, and no real server saw it."]
    lines = []
    if trace.failed:
        rows = "row tells" if trace.failed == 1 else "rows tell"
        lines.append(f"{trace.failed:,} {rows} of a failed request; left out.")
    if trace.damaged:
        lines.append(f"Damaged and left out: {trace.damaged:,} of {trace.rows:,} rows.")
        lines += trace.named
    return lines


def _take_priority() -> None:
    """Before a server on the same machine, where this process may: sends must not be late."""
    with contextlib.suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, 0) > _PRIORITY:
            os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)


def _key(path: pathlib.Path | None) -> str | None:
    if path is None:
        return os.environ.get("SCANT_API_KEY")
    lines = path.read_text().split()
    if not lines:
        raise InvalidArgument(f"{path}: there is no key in it")
    return lines[0]


def _run(arguments: argparse.Namespace, trace: Trace | None, sends: Iterator[Send]) -> int:
    server = Server.at(
        arguments.url, _key(arguments.api_key_file), arguments.ca, arguments.insecure
    )
    model = arguments.ask or cost.model_of(server)
    chat = arguments.endpoint == "chat"
    prompts = Prompts(arguments.seed, arguments.token_ids)
    more = {"ignore_eos": True} if arguments.ignore_eos else {}

    def ready(send: Send) -> tuple[Send, Callable[[], bytes]]:
        return send, lambda: body_of(send, prompts.of(send), model, chat, more)

    figures = Figures(Slo(arguments.slo_ttft, arguments.slo_tpot))
    cut_short: list[bool] = []
    before, energy = cost.read(server, arguments.pid), cost.Energy(server)
    _take_priority()
    print(f"scant replay: {arguments.trace} to {arguments.url}, model {model}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        file: IO[str] | None = None
        if arguments.out is not None:
            file = stack.enter_context(arguments.out.open("w", encoding="utf-8"))

        def tell(outcome: Outcome) -> None:
            figures.add(outcome)
            if file is not None:
                print(json.dumps(outcome.row()), file=file, flush=True)

        def on_start(stop: Callable[[], None]) -> None:
            def end() -> None:
                cut_short.append(True)
                stop()

            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, end)

            def ask() -> None:
                energy.joules()
                loop.call_later(_ENERGY_S, ask)

            ask()

        asyncio.run(
            replay(
                server,
                "/v1/chat/completions" if chat else "/v1/completions",
                map(ready, sends),
                tell,
                timeout_s=arguments.timeout,
                open_max=min(arguments.connections_max, raise_file_limit()),
                on_start=on_start,
            )
        )
    spent = cost.spent(before, cost.read(server, arguments.pid), energy.joules())
    return _tell(arguments, trace, figures, spent, model, bool(cut_short))


def _tell(
    arguments: argparse.Namespace,
    trace: Trace | None,
    figures: Figures,
    spent: dict[str, Any],
    model: str,
    cut_short: bool,
) -> int:
    notes = _notes(trace)
    for line in notes:
        print(line)
    print(report.table(figures, spent, cut_short))
    if arguments.report is not None:
        name = pathlib.PurePath(arguments.trace).name
        lead = (
            f"{model} at {arguments.url}; speed {arguments.speed:g}, seed {arguments.seed}, "
            f"endpoint {arguments.endpoint}."
        )
        report.page(f"Replay of {name}", lead, figures, spent, notes, cut_short).write(
            arguments.report
        )
        print(f"report: {arguments.report}")
    if cut_short:
        return 130
    return 0 if figures.valid and figures.whole else 1


if __name__ == "__main__":
    sys.exit(main())
