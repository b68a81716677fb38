"""OpenAI's own client against a server: what programs that use it will see."""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from front_support import ask, post, raw, read_all, refused, served
from scripted_engine import BOS, END, ScriptedEngine, ScriptedModel, Submitted, vector_of

from scant.serve.server.front import Front

TEXT = "Hello, wörld 🎉 in time"
USER: Any = [{"role": "user", "content": "hi"}]


def client_of(front: Front, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{front.port}/v1", api_key=key, max_retries=0, timeout=30
    )


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[ScriptedEngine, openai.OpenAI, Front]]:
    """One server for all that leaves no trace in it."""
    engine = ScriptedEngine(TEXT)
    with served(engine) as front, client_of(front) as client:
        yield engine, client, front


Shared = tuple[ScriptedEngine, openai.OpenAI, Front]


def tokens(engine: ScriptedEngine, text: str = TEXT) -> list[int]:
    return engine.model.tokenizer.encode(text)


def test_a_completion(shared: Shared) -> None:
    engine, client, _ = shared
    done = client.completions.create(model="scripted", prompt="ab", max_tokens=100)
    assert done.choices[0].text == TEXT
    assert done.choices[0].finish_reason == "stop"
    assert engine.requests[-1].prompt == [BOS, ord("a"), ord("b")]
    assert done.usage is not None
    count = len(tokens(engine)) + 1  # and eos
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, count)
    assert done.usage.total_tokens == 3 + count
    assert done.usage.prompt_tokens_details is not None
    assert done.usage.prompt_tokens_details.cached_tokens == 1


def test_a_completion_stops_at_16_tokens_unless_told(shared: Shared) -> None:
    _, client, _ = shared
    done = client.completions.create(model="scripted", prompt="ab")
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None and done.usage.completion_tokens == 16


def test_a_chat(shared: Shared) -> None:
    engine, client, _ = shared
    done = client.chat.completions.create(
        model="scripted",
        messages=[
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
        ],
    )
    assert done.choices[0].message.content == TEXT
    assert done.choices[0].message.role == "assistant"
    prompt = "<|start|>system\nbe brief<|end|>\n<|start|>user\na\nb<|end|>\n<|start|>assistant\n"
    assert engine.requests[-1].prompt == [BOS, *tokens(engine, prompt)]
    assert engine.requests[-1].max_tokens == 512 - len(engine.requests[-1].prompt)


def test_a_stream_of_a_chat(shared: Shared) -> None:
    engine, client, _ = shared
    chunks = list(
        client.chat.completions.create(
            model="scripted", messages=USER, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == TEXT
    assert not any("\ufffd" in part for part in parts)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(tokens(engine)) + 1
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_of_a_completion(shared: Shared) -> None:
    _, client, _ = shared
    chunks = list(
        client.completions.create(model="scripted", prompt="x", max_tokens=64, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_as_bytes(shared: Shared) -> None:
    _, _, front = shared
    body = {"prompt": "x", "max_tokens": 2, "stream": True}
    status, headers, text = ask(front, "POST", "/v1/completions", body)
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])
    objects = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(one["choices"][0]["text"] for one in objects) == "He"
    assert all("usage" not in one for one in objects)


def test_several_answers_and_prompts(shared: Shared) -> None:
    engine, client, _ = shared
    before = len(engine.requests)
    done = client.completions.create(
        model="scripted", prompt=["a", "b"], n=2, seed=7, max_tokens=64
    )
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert all(choice.text == TEXT for choice in done.choices)
    made = engine.requests[before:]
    assert [one.prompt[-1] for one in made] == [ord(sign) for sign in "aabb"]
    assert [one.sampling.seed for one in made] == [7, 8, 7, 8]
    assert done.usage is not None
    assert done.usage.prompt_tokens == 4
    chunks = list(client.chat.completions.create(model="scripted", messages=USER, n=3, stream=True))
    for index in range(3):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in own) == TEXT
        assert own[-1].finish_reason == "stop"


def test_prompts_of_tokens(shared: Shared) -> None:
    engine, client, _ = shared
    client.completions.create(model="scripted", prompt=[1, 2, 3], max_tokens=1)
    assert engine.requests[-1].prompt == [1, 2, 3]  # as they are, without bos
    client.completions.create(model="scripted", prompt=[[1], [2, 3]], max_tokens=1)
    assert [one.prompt for one in engine.requests[-2:]] == [[1], [2, 3]]


def test_fields_reach_the_engine(shared: Shared) -> None:
    engine, client, _ = shared
    client.chat.completions.create(
        model="scripted",
        messages=USER,
        max_completion_tokens=5,
        temperature=0.5,
        top_p=0.9,
        seed=-1,
        frequency_penalty=1.5,
        presence_penalty=-0.5,
        logit_bias={"65": -100, "66": 2},
        user="somebody",
        extra_body={
            "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "ignore_eos": True,
            "stop_token_ids": [3], "timeout": 5,
        },
    )  # fmt: skip
    sampling = engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (1.5, -0.5)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.05, 1.1)
    assert sampling.logit_bias == {65: -100.0, 66: 2.0}
    assert (sampling.ignore_eos, sampling.stop_tokens, sampling.logprobs) == (True, (3,), -1)
    assert sampling.seed == (1 << 63) - 1
    assert engine.requests[-1].max_tokens == 5
    assert engine.requests[-1].deadline_s == 5.0


def test_logprobs_of_a_chat(shared: Shared) -> None:
    engine, client, _ = shared
    done = client.chat.completions.create(
        model="scripted", messages=USER, logprobs=True, top_logprobs=2, max_tokens=64
    )
    assert done.choices[0].logprobs is not None
    rows = done.choices[0].logprobs.content
    assert rows is not None
    own = b"".join(bytes(row.bytes or []) for row in rows)
    assert own.decode() == TEXT
    assert [top.logprob for top in rows[0].top_logprobs] == [-0.25, -1.25]
    assert rows[0].top_logprobs[0].token == "H"
    assert engine.requests[-1].sampling.logprobs == 2
    streamed = client.chat.completions.create(
        model="scripted", messages=USER, logprobs=True, max_tokens=64, stream=True
    )
    found = []
    for chunk in streamed:
        if chunk.choices[0].logprobs is not None:
            found += chunk.choices[0].logprobs.content or []
    assert [row.bytes for row in found] == [row.bytes for row in rows]
    assert engine.requests[-1].sampling.logprobs == 0


def test_logprobs_and_echo_of_a_completion(shared: Shared) -> None:
    engine, client, _ = shared
    done = client.completions.create(
        model="scripted", prompt="ab", max_tokens=3, logprobs=1, echo=True
    )
    assert done.choices[0].text == "ab" + "Hell"
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["<|begin|>", "a", "b", "H", "e", "ll"]
    assert logprobs.token_logprobs == [None, -0.5, -0.5] + [-0.25] * 3
    assert logprobs.text_offset == [0, 0, 1, 2, 3, 4]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[3] == {"H": -0.25}
    assert engine.requests[-1].echo
    # What tools that score texts ask for: nothing new, the prompt's own logprobs.
    done = client.completions.create(
        model="scripted", prompt="ab", max_tokens=0, logprobs=1, echo=True
    )
    assert done.choices[0].text == "ab"
    assert done.choices[0].finish_reason == "length"
    assert done.choices[0].logprobs is not None
    assert done.choices[0].logprobs.tokens == ["<|begin|>", "a", "b"]
    # Without logprobs the engine need not repeat what is known.
    done = client.completions.create(model="scripted", prompt="ab", max_tokens=1, echo=True)
    assert done.choices[0].text == "abH"
    assert not engine.requests[-1].echo


def test_vectors_of_texts_and_tokens(shared: Shared) -> None:
    engine, client, _ = shared
    for given, prompts in (
        ("ab", [[BOS, ord("a"), ord("b")]]),
        (["ab", "c"], [[BOS, ord("a"), ord("b")], [BOS, ord("c")]]),
        ([7, 8, 9], [[7, 8, 9]]),
        ([[7, 8], [9]], [[7, 8], [9]]),
    ):
        forms: list[Any] = [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}]
        for form in forms:
            made: Any = client.embeddings.create(model="scripted", input=given, **form)
            assert made.object == "list" and made.model == "scripted"
            assert made.usage.prompt_tokens == made.usage.total_tokens == sum(map(len, prompts))
            assert [row.index for row in made.data] == list(range(len(prompts)))
            assert [one.prompt for one in engine.requests[-len(prompts) :]] == prompts
            assert [one.max_tokens for one in engine.requests[-len(prompts) :]] == [0] * len(
                prompts
            )
            for row, prompt in zip(made.data, prompts, strict=True):
                want = struct.pack("<4f", *vector_of(prompt, "mean"))
                if form.get("encoding_format") == "base64":
                    assert base64.b64decode(row.embedding) == want
                else:
                    assert struct.pack("<4f", *row.embedding) == want
    made = client.embeddings.create(
        model="scripted", input="ab", dimensions=4, extra_body={"pooling": "last"}
    )
    assert made.data[0].embedding[3] == 0


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "missing"),
        ({"input": ""}, "input", ""),
        ({"input": []}, "input", "a list"),
        ({"input": [[]]}, "input", "empty"),
        ({"input": ["a"] * 300}, "input", "more than 256"),
        ({"input": "a" * 600}, "input", "context"),
        ({"input": "a", "dimensions": 3}, "dimensions", "vectors have 4"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "float or base64"),
        ({"input": "a", "pooling": "max"}, "pooling", "mean or last"),
        ({"input": "a", "stream": True}, "stream", "not known"),
    ],
)
def test_what_no_vector_can_be_made_of(
    shared: Shared, body: dict[str, Any], param: str, says: str
) -> None:
    _, _, front = shared
    if body == {"input": ""}:  # with bos it is a text of one token
        assert ask(front, "POST", "/v1/embeddings", body)[0] == 200
        return
    status, error = refused(front, body, "/v1/embeddings")
    assert (status, error["param"]) == (400, param)
    assert says in error["message"]


def test_a_vector_that_fails(shared: Shared) -> None:
    engine = ScriptedEngine(TEXT)
    engine.gate = 0
    with served(engine) as front:
        answers: list[Any] = []
        body = {"input": ["a", "b"]}
        thread = threading.Thread(
            target=lambda: answers.append(ask(front, "POST", "/v1/embeddings", body))
        )
        thread.start()
        engine.wait(lambda: len(engine.requests) == 2, "asked")
        engine.end(0, "error", "no direction")
        engine.allow(2)
        thread.join(30)
        status, _, found = answers[0]
        assert status == 500 and "no direction" in found["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("wör", "Hello, "),
        (["🎉"], "Hello, wörld "),
        (["zzz", "o, "], "Hell"),
        (["H"], ""),
        (["time!"], TEXT),
        (["n time", " in t"], "Hello, wörld 🎉"),
    ],
)
def test_stop_strings(shared: Shared, stop: str | list[str], text: str, stream: bool) -> None:
    engine, client, _ = shared
    if stream:
        chunks = list(
            client.completions.create(
                model="scripted", prompt="x", max_tokens=64, stop=stop, stream=True
            )
        )
        told = "".join(chunk.choices[0].text for chunk in chunks)
        finish = chunks[-1].choices[0].finish_reason
    else:
        done = client.completions.create(model="scripted", prompt="x", max_tokens=64, stop=stop)
        told, finish = done.choices[0].text, done.choices[0].finish_reason
    assert (told, finish) == (text, "stop")
    if text != TEXT:
        number = engine.requests[-1].number
        engine.wait(lambda: number in engine.cancelled, "the engine is told to end")


def test_models(shared: Shared) -> None:
    _, client, front = shared
    assert [model.id for model in client.models.list()] == ["scripted"]
    assert client.models.retrieve("scripted").owned_by == "scant"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt="x")
    assert caught.value.code == "model_not_found"
    status, _, found = ask(front, "POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})
    assert (status, found["model"]) == (200, "scripted")  # a request that names none


def test_names_with_slashes() -> None:
    engine = ScriptedEngine(model=ScriptedModel(name="some/model", adds_bos=False))
    with served(engine) as front, client_of(front) as client:
        assert client.models.retrieve("some/model").id == "some/model"
        with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
            client.completions.create(model="some/model", prompt="")


def test_a_template_may_refuse(shared: Shared) -> None:
    _, client, _ = shared
    with pytest.raises(openai.BadRequestError, match="refused by template") as caught:
        client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "refuse"}]
        )
    assert caught.value.code == "chat_template"


def test_a_model_without_a_template() -> None:
    engine = ScriptedEngine(model=ScriptedModel(chat_template=None))
    with (
        served(engine) as front,
        client_of(front) as client,
        pytest.raises(openai.BadRequestError, match="no chat template"),
    ):
        client.chat.completions.create(model="scripted", messages=USER)


def test_a_prompt_beyond_the_context(shared: Shared) -> None:
    _, client, _ = shared
    for prompt, most in (("x" * 600, 1), ("x" * 500, 12), ("y" * 400_000, 1)):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="scripted", prompt=prompt, max_tokens=most)
        assert caught.value.code == "context_length_exceeded"
        assert caught.value.param == "prompt"
    client.completions.create(model="scripted", prompt="x" * 500, max_tokens=11)


def test_overload_is_told_with_a_time(shared: Shared) -> None:
    engine = ScriptedEngine(TEXT, queue=2)
    engine.gate = 0
    with served(engine) as front, client_of(front) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="scripted", prompt="x", n=3)
        assert caught.value.response.headers["retry-after"] == "3"
        assert caught.value.code == "overloaded"
        assert engine.cancelled == [0, 1]  # all of a request or nothing
        assert ask(front, "GET", "/health")[0] == 200


def test_a_deadline(shared: Shared) -> None:
    engine = ScriptedEngine(TEXT)
    engine.gate = 0
    body = json.dumps({"prompt": "x", "timeout": 9}).encode()
    with served(engine, timeout_s=7.0) as front, client_of(front) as client:
        peer = raw(front, post(body))
        engine.wait(lambda: len(engine.requests) == 1, "the request")
        assert engine.requests[0].deadline_s == 7.0
        engine.end(0, "deadline")
        answer = peer.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"x-should-retry: false" in answer
        peer.close()
        # In a stream whose head is out it is an event.
        engine.gate = 2
        stream = client.completions.create(model="scripted", prompt="x", stream=True)
        assert next(stream).choices[0].text == "H"
        engine.end(1, "deadline")
        with pytest.raises(openai.APIError, match="deadline of the request passed"):
            list(stream)


def test_an_engine_that_fails_one_request() -> None:
    engine = ScriptedEngine(TEXT)
    engine.gate = 0
    with served(engine) as front:
        peer = raw(front, post(b'{"prompt": "x", "stream": true}'))
        engine.wait(lambda: len(engine.requests) == 1, "the request")
        engine.end(0, "error", "a page is damaged")
        answer = b""
        while not answer.endswith(b"}}") and (part := peer.recv(1 << 16)):
            answer += part
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"a page is damaged" in answer
        peer.close()
        assert ask(front, "GET", "/health")[0] == 200


def test_an_engine_that_fails_ends_the_server(capfd: pytest.CaptureFixture[str]) -> None:
    engine = ScriptedEngine(TEXT)
    engine.gate = 0
    with served(engine) as front:
        peer = raw(front, post(b'{"prompt": "x"}'))
        engine.wait(lambda: len(engine.requests) == 1, "the request")
        engine.fail(RuntimeError("no memory"))
        assert read_all(peer).startswith(b"HTTP/1.1 503 ")
        peer.close()
    assert "the engine failed: no memory" in capfd.readouterr().err


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_not_worked_for(stream: bool) -> None:
    engine = ScriptedEngine(TEXT, endless=True)
    engine.gate = 0
    body = json.dumps({"prompt": "x", "n": 2, "max_tokens": 100, "stream": stream}).encode()
    with served(engine) as front:
        peer = raw(front, post(body))
        engine.wait(lambda: len(engine.requests) == 2, "the request")
        if stream:
            engine.allow(1)
            assert b"200 OK" in peer.recv(1 << 16)
        peer.close()
        engine.wait(lambda: engine.cancelled == [0, 1], "both cancelled")
        text = ask(front, "GET", "/metrics")[2]
        assert 'scant_serve_cancelled_total{reason="client"} 1' in text


def test_a_silent_end_token_has_no_text() -> None:
    def script(one: Submitted) -> list[int]:
        return [ord("a"), END, ord("b")] if one.sampling.ignore_eos else [ord("a")]

    with served(ScriptedEngine(script)) as front, client_of(front) as client:
        done = client.completions.create(
            model="scripted", prompt="x", extra_body={"ignore_eos": True}
        )
        assert done.choices[0].text == "ab"
