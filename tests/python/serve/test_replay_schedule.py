"""When requests are sent and what they say: functions of trace, options and seed alone."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest

from scant.serve.replay.prompts import Prompts, body_of
from scant.serve.replay.schedule import Plan, Send, schedule
from scant.traces import Request


def rows(seed: int) -> list[Request]:
    draw = random.Random(seed)
    at_s, found = 0, []
    for _ in range(200):
        at_s += draw.choice((0, 0, 0, 1, 7))
        found.append(Request(float(at_s), draw.randrange(0, 3000), draw.randrange(1, 900)))
    return found


@pytest.mark.parametrize("seed", range(10))
def test_arrivals_of_a_second_are_spread_within_it_by_seed(seed: int) -> None:
    trace = rows(seed)
    plan = Plan(seed=seed, spread_s=1.0)
    sends = list(schedule(trace, plan))
    assert sends == list(schedule(trace, plan))
    assert sends != list(schedule(trace, Plan(seed=seed + 1, spread_s=1.0)))
    assert [send.number for send in sends] == list(range(len(trace)))
    assert all(a.at_s <= b.at_s for a, b in pairwise(sends))
    for request, send in zip(trace, sends, strict=True):
        assert request.at_s <= send.at_s < request.at_s + 1.0
        assert send.answer_tokens == request.answer_tokens
    assert len({send.at_s for send in sends}) == len(sends)


@pytest.mark.parametrize("seed", range(5))
def test_a_part_of_a_trace_has_the_times_of_the_whole(seed: int) -> None:
    trace = rows(seed)
    middle = trace[len(trace) // 2].at_s
    whole = [s.at_s for s in schedule(trace, Plan(seed=3, spread_s=1.0)) if s.at_s >= middle]
    part = [r for r in trace if r.at_s >= middle]
    found = [s.at_s for s in schedule(part, Plan(seed=3, spread_s=1.0, from_s=middle))]
    assert found == [at_s - middle for at_s in whole]


def test_speed_stretches_time_and_lengths_are_cut() -> None:
    trace = [Request(0.0, 0, 5), Request(8.0, 900, 700)]
    plan = Plan(speed=0.25, prompt_max=100, answer_max=50)
    assert list(schedule(trace, plan)) == [
        Send(0, 0.0, 1, 5, (), False),
        Send(1, 32.0, 100, 50, (), True),
    ]


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 512, 40_000])
def test_prompts_are_as_long_as_asked_and_begin_apart(tokens: int) -> None:
    texts = []
    for number in range(3):
        send = Send(number, 0.0, tokens, 1, (), False)
        text = Prompts(5).of(send)
        assert isinstance(text, str) and text == Prompts(5).of(send)
        assert len(text.split()) == tokens
        numbers = Prompts(5, 2000).of(send)
        assert isinstance(numbers, list) and len(numbers) == tokens
        assert all(1000 <= one < 2000 for one in numbers)
        texts.append(text)
    if tokens >= 7:
        assert len({" ".join(text.split()[:7]) for text in texts}) == 3


def test_blocks_of_one_name_have_one_text() -> None:
    def words(number: int, tokens: int, *blocks: int) -> list[str]:
        text = Prompts(5).of(Send(number, 0.0, tokens, 1, blocks, False))
        assert isinstance(text, str)
        return text.split()

    one, other = words(1, 1100, 3, 4, 5), words(2, 1400, 3, 4, 6)
    assert (len(one), len(other)) == (1100, 1400)
    assert one[:1024] == other[:1024] != words(3, 1024, 4, 3)
    assert one[1024:] != other[1024:1100]


def test_the_body_asks_for_the_traced_length() -> None:
    send = Send(0, 0.0, 3, 17, (), False)
    body = json.loads(body_of(send, "a b c", "m", True, {"ignore_eos": True}))
    assert body["messages"] == [{"role": "user", "content": "a b c"}]
    assert (body["max_tokens"], body["ignore_eos"], body["stream"]) == (17, True, True)
    body = json.loads(body_of(send, [1, 2, 3], "m", False, {}))
    assert body["prompt"] == [1, 2, 3] and "ignore_eos" not in body
