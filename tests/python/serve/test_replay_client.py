"""Answers as bytes, figures of made-up times, and the client against a server with a script."""

from __future__ import annotations

import asyncio
import functools
import json
import pathlib
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest

from scant.serve import replay_cli
from scant.serve.replay import cost, report
from scant.serve.replay.client import Server, raise_file_limit, replay
from scant.serve.replay.figures import Figures, Outcome, Slo, quantile
from scant.serve.replay.prompts import Prompts, body_of
from scant.serve.replay.schedule import Send
from scant.serve.replay.stream import Answer, BadAnswer

DEADLINE_S = 30.0
Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}\n\n'
WHOLE = HEAD + chunk(event("a")) + chunk(event("é")) + chunk(USAGE + b"data: [DONE]\n\n")
WHOLE += b"0\r\n\r\n"


@pytest.mark.parametrize("seed", range(20))
def test_an_answer_is_the_same_however_it_is_cut(seed: int) -> None:
    draw = random.Random(seed)
    answer, pieces, at = Answer(), 0, 0
    while at < len(WHOLE):
        end = at + draw.choice((1, 2, 5, 60))
        pieces += answer.feed(WHOLE[at:end])
        at = end
    assert (answer.status, pieces, answer.tokens, answer.prompt_tokens) == (200, 2, 4, 9)
    assert answer.ended and answer.done and answer.error is None


def test_a_refusal_tells_its_words_and_headers() -> None:
    body = b'{"error": {"message": "too\\n busy"}}'
    head = f"HTTP/1.1 429 No\r\nRetry-After: 3\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    answer = Answer()
    answer.feed(head + body)
    assert (answer.status, answer.error, answer.ended) == (429, "too busy", True)
    assert answer.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    "data",
    [
        b"SMTP ready\r\n\r\n",
        HEAD + b"zz\r\n",
        HEAD + b"-1\r\n",
        HEAD + chunk(b"data: {\n"),
        HEAD + chunk(b"data: [1]\n"),
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        Answer().feed(data)


def outcome(number: int, first_s: float, token_s: float, tokens: int = 11) -> Outcome:
    send = Send(number, float(number), 100, tokens, (), False)
    sent = number + 0.001
    last = sent + first_s + token_s * (tokens - 1)
    return Outcome(send, sent, sent + first_s, last, last, tokens, 90)


def test_figures_of_known_times() -> None:
    figures = Figures(Slo(first_s=2.0, token_s=0.2))
    figures.add(outcome(0, 1.0, 0.1))
    figures.add(outcome(1, 3.0, 0.1))  # first token too late
    figures.add(outcome(2, 1.0, 0.3))  # others too slow
    figures.add(outcome(3, 1.5, 0.0, tokens=1))  # has no time per token
    lost = outcome(4, 1.0, 0.1)
    lost.error, lost.retry_after = "http 429", True
    figures.add(lost)
    assert (figures.count, figures.whole, figures.good) == (5, 4, 2)
    assert (figures.tokens_in, figures.tokens_out) == (360, 34)
    assert list(figures.first) == pytest.approx([1.0, 3.0, 1.0, 1.5])
    assert list(figures.token) == pytest.approx([0.1, 0.1, 0.3])
    assert list(figures.late) == pytest.approx([0.001] * 5)
    assert figures.rate(figures.good) == pytest.approx(2 / figures.end_s)
    assert figures.valid and figures.errors == {"http 429": 1} and figures.retry_after == 1
    text = report.table(figures, {"cpu_s": 2.0, "cpu_source": "here", "joules": 8.0}, True)
    assert "Cut short" in text and "http 429" in text and "not valid" not in text
    assert "17.0" in text and "2.00 J" in text  # tokens per CPU second, energy of an answer
    html = report.page("T", "L", figures, {}, ["a note"], False).html()
    assert html.count("<svg") == 6 and "a note" in html and '"good": 2' in html


def test_late_sends_make_a_run_invalid() -> None:
    figures = Figures(Slo())
    late = outcome(0, 1.0, 0.1)
    late.sent_s = 0.006
    figures.add(late)
    assert not figures.valid
    assert "INVALID" in report.table(figures, {}, False)
    assert "INVALID" in report.page("T", "L", figures, {}, [], False).html()


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (0.991, 100), (0.0, 1)])
def test_quantiles(share: float, value: int) -> None:
    assert quantile(range(1, 101), share) == value
    assert quantile([], share) is None


async def _replayed(
    scripts: Sequence[Script | None], timeout_s: float, ended_early: bool
) -> list[Outcome]:
    """Request n is answered by script n, or not at all; all are due at once."""
    found: list[Outcome] = []
    told = asyncio.Event()
    stops: list[Callable[[], None]] = []
    prompts = Prompts(1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        number = json.loads(await reader.readexactly(length))["max_tokens"] - 1
        script = scripts[number]
        await (script(writer) if script is not None else told.wait())
        if ended_early:
            stops[0]()
        writer.close()

    def tell(one: Outcome) -> None:
        found.append(one)
        told.set()

    def body(send: Send) -> bytes:
        return body_of(send, prompts.of(send), "m", True, {})

    raise_file_limit()
    async with await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000) as server:
        port = server.sockets[0].getsockname()[1]
        sends = [Send(n, 0.0, 20, n + 1, (), False) for n in range(len(scripts))]
        await asyncio.wait_for(
            replay(
                Server("127.0.0.1", port, ""),
                "/v1/chat/completions",
                [(s, functools.partial(body, s)) for s in sends],
                tell,
                timeout_s=timeout_s,
                open_max=2000,
                on_start=stops.append,
            ),
            DEADLINE_S,
        )
    return sorted(found, key=lambda one: one.send.number)


def says(*parts: bytes) -> Script:
    async def run(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return run


def test_each_way_to_fail_has_its_name() -> None:
    refused = b"HTTP/1.1 429 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
    broken = b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops"
    failed = HEAD + chunk(b'data: {"error": {"message": "no memory"}}\n\n') + b"0\r\n\r\n"
    scripts = [
        says(WHOLE), says(refused), says(broken), says(HEAD, chunk(event("a"))),
        says(b"\x00\r\n\r\n"),
        says(failed), says(HEAD, b"0\r\n\r\n"),
    ]  # fmt: skip
    found = asyncio.run(_replayed(scripts, DEADLINE_S, False))
    assert [one.error for one in found] == [
        None, "http 429", "http 500", "disconnect", "bad answer", "error in the stream", "no text",
    ]  # fmt: skip
    assert (found[0].tokens, found[0].prompt_tokens) == (4, 9)
    assert found[1].retry_after and found[2].said == "oops" and found[5].said == "no memory"
    assert all(one.sent_s is not None and one.sent_s >= one.send.at_s for one in found)


def test_sends_do_not_wait_for_replies() -> None:
    """No answer comes before every request has come: a thousand connections are open."""

    async def run() -> list[Outcome]:
        waiting: list[int] = []
        all_came = asyncio.Event()

        async def script(writer: asyncio.StreamWriter) -> None:
            waiting.append(1)
            if len(waiting) == 1000:
                all_came.set()
            await all_came.wait()
            writer.write(WHOLE)

        return await _replayed([script] * 1000, DEADLINE_S, False)

    assert [one.error for one in asyncio.run(run())] == [None] * 1000


def test_what_is_on_its_way_at_the_end_is_cut_short() -> None:
    found = asyncio.run(_replayed([says(HEAD, chunk(event("a")))], DEADLINE_S, True))
    assert [one.error for one in found] == ["cut short"]


def test_a_silent_server_times_out() -> None:
    assert [one.error for one in asyncio.run(_replayed([None], 0.001, False))] == ["timeout"]


def test_cpu_seconds_of_metrics() -> None:
    own = "scant_serve_engine_cpu_seconds_total 4.5\n"
    assert cost.cpu_of_metrics("# HELP x\n" + own) == (4.5, "scant_serve_engine_cpu_seconds_total")
    both = own + "process_cpu_seconds_total 6\n"
    assert cost.cpu_of_metrics(both) == (6.0, "process_cpu_seconds_total")
    assert cost.cpu_of_metrics("process_cpu_seconds_total x\n") is None


class Meter:
    """Of two joules more each time."""

    def __init__(self, counts: bool = True) -> None:
        self.counts = counts
        self.why = ""
        self._joules = 0.0

    def joules(self) -> float:
        self._joules += 2.0
        return self._joules


def test_what_was_spent() -> None:
    here, there = Server("127.0.0.1", 80, ""), Server("198.51.100.1", 80, "")
    energy = cost.Energy(here, Meter)
    assert (energy.joules(), energy.joules()) == (2.0, 4.0)
    assert cost.Energy(there, Meter).joules() is None
    assert cost.Energy(here, lambda: Meter(counts=False)).joules() is None
    assert cost.spent(cost.Reading(1.0, "s"), cost.Reading(3.5, "s"), 4.0) == {
        "cpu_s": 2.5, "cpu_source": "s", "joules": 4.0,
    }  # fmt: skip
    assert cost.spent(cost.Reading(None), cost.Reading(3.5, "s"), None)["cpu_s"] is None


def test_the_command_tells_what_is_wrong(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay_cli.main([str(tmp_path / "none.csv")]) == 2
    assert "none.csv: No such file" in capsys.readouterr().err
    assert replay_cli.main(["synthetic"]) == 2
    assert "give --duration or --limit" in capsys.readouterr().err
    assert replay_cli.main(["synthetic", "--limit", "5", "--url", "ftp://x"]) == 2
    assert "no server such as" in capsys.readouterr().err
    assert replay_cli.main(["synthetic", "--limit", "5", "--dry-run"]) == 0
    assert "5 requests in" in capsys.readouterr().out
