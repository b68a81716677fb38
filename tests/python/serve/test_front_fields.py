"""Fields of a request: each that is wrong is named, and no value of any is a surprise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from front_support import ask, refused, served
from scripted_engine import ScriptedEngine

from scant.serve.server import fields
from scant.serve.server.front import Front
from scant.serve.server.limits import Limits
from scant.serve.server.refusals import Refusal


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with served(ScriptedEngine("hi")) as one:
        yield one


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"prompt": None}, "prompt", "is missing"),
        ({"prompt": ""}, None, None),  # bos alone is a prompt
        ({"prompt": []}, "prompt", "must be a text"),
        ({"prompt": [1, "a"]}, "prompt", "'a', which is no token"),
        ({"prompt": [[1], [[2]]]}, "prompt", "which is no token"),
        ({"prompt": [True]}, "prompt", "True, which is no token"),
        ({"prompt": [1e999]}, None, "no JSON"),
        ({"prompt": [263]}, "prompt", "no token below 263"),
        ({"prompt": ["a"] * 65}, "prompt", "more than 64 prompts"),
        ({"prompt": ["a"] * 9, "n": 16}, "n", "more than 64 answers"),
        ({"prompt": "\ud800"}, "prompt", "half of a surrogate pair"),
        ({"prompt": 5}, "prompt", "must be a text"),
        ({"max_tokens": 0}, "max_tokens", "from 1"),
        ({"max_tokens": -1}, "max_tokens", "from 1"),
        ({"max_tokens": 1.5}, "max_tokens", "whole number"),
        ({"max_tokens": "5"}, "max_tokens", "whole number"),
        ({"max_tokens": True}, "max_tokens", "whole number"),
        ({"temperature": 2.5}, "temperature", "from 0 to 2"),
        ({"temperature": "hot"}, "temperature", "a number"),
        ({"top_p": -0.1}, "top_p", "from 0 to 1"),
        ({"min_p": 2}, "min_p", "from 0 to 1"),
        ({"top_k": -2}, "top_k", "from -1"),
        ({"repetition_penalty": 0}, "repetition_penalty", "from 0.01"),
        ({"frequency_penalty": 3}, "frequency_penalty", "from -2 to 2"),
        ({"presence_penalty": -3}, "presence_penalty", "from -2 to 2"),
        ({"n": 17}, "n", "from 1 to 16"),
        ({"seed": 1 << 64}, "seed", "from -9223372036854775808"),
        ({"logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"logprobs": True}, "logprobs", "whole number"),
        ({"stop": 5}, "stop", "a text or a list"),
        ({"stop": ["a"] * 5}, "stop", "more than 4"),
        ({"stop": ["a" * 257]}, "stop", "above 256 characters"),
        ({"stop": ["a", ""]}, "stop", "empty"),
        ({"stop": ["a", 1]}, "stop", "a text or a list"),
        ({"stop_token_ids": [263]}, "stop_token_ids", "from 0 to 262"),
        ({"stop_token_ids": "x"}, "stop_token_ids", "a list"),
        ({"logit_bias": {"263": 1}}, "logit_bias", "from 0 to 262"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "no token"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": {"1": "x"}}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": [1]}, "logit_bias", "an object"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": []}, "stream_options", "an object"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not known"),
        ({"echo": 1}, "echo", "true or false"),
        ({"timeout": 0}, "timeout", "more than 0"),
        ({"timeout": -1}, "timeout", "from 0"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"best_of": 1}, None, None),
        ({"user": "x", "store": True, "metadata": {"a": "b"}, "suffix": None}, None, None),
        ({"temprature": 1}, "temprature", "not known"),
        ({"messages": []}, "messages", "not known"),
    ],
)
def test_a_field_that_is_wrong_is_named(
    front: Front, more: dict[str, Any], param: str | None, words: str | None
) -> None:
    body = {"prompt": "x", **more}
    if words is None:
        assert ask(front, "POST", "/v1/completions", body)[0] == 200
        return
    status, error = refused(front, body)
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"]


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x"}] * 2049}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [TOOL]}]},
            "messages[0].tool_calls",
        ),
        ({"tools": [TOOL]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_a_field_of_a_chat_that_is_wrong_is_named(
    front: Front, more: dict[str, Any], param: str
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], **more}
    status, error = refused(front, body, "/v1/chat/completions")
    assert (status, error["param"]) == (400, param)


ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1 << 70,
    1.5,
    -1e300,
    "",
    "x",
    "\udfff",
    [],
    [None],
    [[]],
    [{}],
    {},
)
NAMES = (
    "prompt", "messages", "model", "max_tokens", "max_completion_tokens", "n", "stop", "stream",
    "stop_token_ids", "stream_options", "logprobs", "top_logprobs", "echo", "seed", "logit_bias",
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "tools",
    "presence_penalty", "ignore_eos", "timeout", "tool_choice", "response_format", "user", "",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_value_of_a_field_is_a_surprise(name: str) -> None:
    message = {"role": "user", "content": "x"}
    taken = 0
    for odd in ODD:
        for read, body in (
            (fields.completion, {"prompt": "x"}),
            (fields.chat, {"messages": [message]}),
        ):
            try:
                read({**body, name: odd}, "scripted", 100, Limits())
                taken += 1
            except Refusal as refusal:
                assert refusal.status in (400, 404)
        for key in message:
            with contextlib.suppress(Refusal):
                fields.chat({"messages": [{**message, key: odd}]}, "scripted", 100, Limits())
    if name not in ("", "messages"):
        assert taken > 0  # null, at least, is as good as nothing


def test_what_asks_for_nothing_special_is_taken(front: Front) -> None:
    body = {
        "messages": [{"role": "user", "content": "x", "name": "me", "tool_calls": None}],
        "tools": [], "tool_choice": "none", "response_format": {"type": "text"},
        "modalities": ["text"], "parallel_tool_calls": True, "functions": None,
        "max_tokens": 3, "max_completion_tokens": 3, "stop": None, "stream_options": None,
    }  # fmt: skip
    assert ask(front, "POST", "/v1/chat/completions", body)[0] == 200
