"""The engine over small models: answers are the decoder's, whatever runs beside them."""

from __future__ import annotations

import contextlib
import re
import selectors
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from model_folders import VOCABULARY, folder

import scant
from scant import cli
from scant.serve import Decoder, Model, Piece
from scant.serve.engine import Sampling, Token
from scant.serve.model_engine import ModelEngine

pytest.importorskip("tokenizers", reason="tokenizers is not installed")

GREEDY = Sampling(temperature=0.0, ignore_eos=True)
POLL_S = 60.0


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("engine")
    path = place / "model.scp"
    assert cli.main(["pack", str(folder(place / "model", "llama_biases", "F32")), str(path)]) == 0
    return path


@contextlib.contextmanager
def engine_of(path: Path, **options: object) -> Iterator[ModelEngine]:
    engine = ModelEngine(path, threads=2, **options)  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        engine.close()


def collect(engine: ModelEngine, requests: list[int]) -> dict[int, list[Token]]:
    """All that comes, until these are over."""
    told: dict[int, list[Token]] = {number: [] for number in requests}
    left = set(requests)
    while left:
        tokens = engine.poll(POLL_S)
        assert tokens, "nothing came"
        for token in tokens:
            told[token.request].append(token)
            if token.finish:
                left.remove(token.request)
    return told


def answer(tokens: list[Token]) -> list[int]:
    return [one.token for one in tokens if one.token is not None]


def prompt(seed: int, count: int) -> list[int]:
    drawn = numpy.random.default_rng(seed).integers(4, VOCABULARY, count)
    return [int(token) for token in drawn]


def alone(path: Path, tokens: list[int], count: int) -> list[int]:
    """The likeliest tokens, by the decoder itself."""
    decoder = Decoder(Model(path), pages=16, kv="bf16")
    text = list(tokens)
    logits = decoder.run([Piece(text, 0, range(16))])
    for _ in range(count):
        text.append(int(logits[0].argmax()))
        logits = decoder.run([Piece(text[-1:], len(text) - 1, range(16))])
    return text[len(tokens) :]


def test_a_loop_hears_that_something_came(packed: Path) -> None:
    with engine_of(packed) as engine, selectors.DefaultSelector() as selector:
        selector.register(engine.fileno(), selectors.EVENT_READ)
        assert selector.select(0) == []
        engine.submit(prompt(1, 5), max_tokens=20, sampling=GREEDY)
        tokens = 0
        while tokens < 20:
            assert selector.select(POLL_S), "nothing was heard"
            tokens += sum(one.token is not None for one in engine.poll(0.0))
        assert tokens == 20
        engine.poll(0.0)
        assert selector.select(0) == []
        engine.close()
        assert selector.select(POLL_S), "the end was not heard"


def test_answers_are_those_of_the_decoder_alone(packed: Path) -> None:
    prompts = [prompt(i, 1 + 13 * i) for i in range(8)]
    with engine_of(packed) as engine:
        requests = [engine.submit(one, max_tokens=20, sampling=GREEDY) for one in prompts]
        told = collect(engine, requests)
    for one, number in zip(prompts, requests, strict=True):
        assert answer(told[number]) == alone(packed, one, 20)
        assert told[number][-1].finish == "length"
        assert told[number][-1].prompt_tokens == len(one)


def test_a_small_cache_pauses_and_answers_the_same(packed: Path) -> None:
    prompts = [prompt(i, 40) for i in range(6)]
    with engine_of(packed) as engine:
        requests = [engine.submit(one, max_tokens=60, sampling=GREEDY) for one in prompts]
        wanted = [answer(told) for told in collect(engine, requests).values()]
        page_bytes = scant.serve.kv_page_bytes(Model(packed).description, "bf16")
    with engine_of(packed, kv_bytes=10 * page_bytes) as engine:
        assert engine.stats()["kv_pages"] == 10
        requests = [engine.submit(one, max_tokens=60, sampling=GREEDY) for one in prompts]
        assert [answer(told) for told in collect(engine, requests).values()] == wanted
        assert engine.stats()["preempted"] > 0
        assert engine.stats()["kv_pages_used"] == 0
        with pytest.raises(scant.InvalidArgument, match="max_tokens"):
            engine.submit(prompt(1, 100), max_tokens=100, sampling=GREEDY)


def test_a_prompt_that_was_run_is_not_run_again(packed: Path) -> None:
    text = prompt(3, 90)
    with engine_of(packed) as engine:
        first = collect(engine, [engine.submit(text, max_tokens=8, sampling=GREEDY)])
        again = collect(engine, [engine.submit(text, max_tokens=8, sampling=GREEDY)])
        assert engine.stats()["prefix_tokens_reused"] >= 80
    (one,), (two,) = first.values(), again.values()
    assert answer(one) == answer(two)
    assert one[-1].cached_tokens == 0
    assert two[-1].cached_tokens >= 80


def test_seeds_and_logprobs(packed: Path) -> None:
    drawn = Sampling(temperature=3.0, seed=5, logprobs=2, ignore_eos=True)
    other = Sampling(temperature=3.0, seed=6, ignore_eos=True)
    with engine_of(packed) as engine:
        requests = [engine.submit(prompt(1, 9), max_tokens=12, sampling=drawn) for _ in range(2)]
        requests.append(engine.submit(prompt(1, 9), max_tokens=12, sampling=other))
        told = collect(engine, requests)
    one, two, three = (told[number] for number in requests)
    assert answer(one) == answer(two) != answer(three)
    for token in one:
        assert token.logprob is not None and token.logprob <= token.top[0][1] <= 0
        assert len(token.top) == 2 and token.top[0][1] >= token.top[1][1]
    assert three[0].top == ()


def test_stop_tokens_end_an_answer(packed: Path) -> None:
    text = prompt(2, 12)
    whole = alone(packed, text, 10)
    stop = Sampling(temperature=0.0, ignore_eos=True, stop_tokens=(whole[4],))
    with engine_of(packed) as engine:
        (told,) = collect(engine, [engine.submit(text, max_tokens=10, sampling=stop)]).values()
    assert answer(told) == whole[: whole.index(whole[4]) + 1]
    assert told[-1].finish == "stop"


def test_a_client_may_leave_and_a_deadline_may_pass(packed: Path) -> None:
    with engine_of(packed) as engine:
        gone = engine.submit(prompt(1, 9), max_tokens=200, sampling=GREEDY)
        late = engine.submit(prompt(2, 9), max_tokens=200, sampling=GREEDY, deadline_s=1e-6)
        engine.cancel(gone)
        engine.cancel(12345)
        told = collect(engine, [gone, late])
        assert told[gone][-1].finish == "cancelled"
        assert told[late][-1].finish == "deadline"
        stays = engine.submit(prompt(3, 9), max_tokens=2, sampling=GREEDY)
        assert len(answer(collect(engine, [stays])[stays])) == 2


def test_too_many_requests_are_refused_with_a_time(packed: Path) -> None:
    with engine_of(packed, max_running=1, max_waiting=1) as engine:
        requests = []
        with pytest.raises(scant.Resource) as refused:
            for _ in range(100):
                requests.append(engine.submit(prompt(1, 9), max_tokens=200, sampling=GREEDY))
        assert refused.value.retry_after_s >= 1  # type: ignore[attr-defined]
        for number in requests:
            engine.cancel(number)
        collect(engine, requests)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"sampling": Sampling(temperature=-1.0)}, "temperature"),
        ({"sampling": Sampling(top_p=0.0)}, "top_p"),
        ({"sampling": Sampling(logit_bias={VOCABULARY: 1.0})}, "logit_bias"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [VOCABULARY]}, "prompt"),
        ({"prompt": [5] * 9000}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"wanted": "first"}, "wanted"),
        ({"wanted": "mean"}, "max_tokens"),
        ({"wanted": "mean", "max_tokens": 0, "prompt": [5] * 9000}, "prompt"),
    ],
)
def test_what_cannot_run_is_named(packed: Path, given: dict[str, object], named: str) -> None:
    call = {"prompt": [5], "max_tokens": 4, "sampling": GREEDY} | given
    with engine_of(packed) as engine, pytest.raises(scant.InvalidArgument, match=named):
        engine.submit(call.pop("prompt"), **call)  # type: ignore[arg-type]


def test_closing_ends_what_runs(packed: Path) -> None:
    with engine_of(packed) as engine:
        number = engine.submit(prompt(1, 9), max_tokens=200, sampling=GREEDY)
        engine.drain()
        with pytest.raises(scant.Resource):
            engine.submit(prompt(1, 9), max_tokens=2, sampling=GREEDY)
        engine.close()
        assert collect(engine, [number])[number][-1].finish in ("cancelled", "length")
        assert engine.poll(POLL_S) == []


def test_options_are_refused_by_name(packed: Path) -> None:
    with pytest.raises(scant.InvalidArgument, match="kv_bytes"):
        ModelEngine(packed, kv_bytes=10)
    with pytest.raises(scant.InvalidArgument, match="context"):
        ModelEngine(packed, context=1 << 20)


def test_too_little_memory_is_said_before_it_is_taken(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"cpus": 2.0, "memory_free": 15 << 20, "memory_most": 1 << 30, "memory_by": "/g/one"}
    monkeypatch.setattr(scant._scant, "limits", lambda: limits)
    assert cli.main(["run", str(packed), "x"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert "the control group /g/one has 15" in said.replace("\u202f", " "), said


def test_weights_are_the_file_s_own_pages(packed: Path) -> None:
    """So any number of engines, in any number of processes, share one copy."""
    with engine_of(packed) as first, engine_of(packed) as second:
        for engine in (first, second):
            collect(engine, [engine.submit(prompt(1, 40), max_tokens=4, sampling=GREEDY)])
        maps = [one.split("\n") for one in _mappings() if str(packed) in one]
        assert maps
        for head, *lines in maps:
            assert head.split()[1].startswith("r--"), head
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if " kB" in line}
            assert sizes["Anonymous"] == sizes["Private_Dirty"] == 0, head


def _mappings() -> list[str]:
    """Of this process: a line of addresses, then its counters."""
    text = Path("/proc/self/smaps").read_text()
    return re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text)


def vectors(path: Path, tokens: list[int]) -> numpy.ndarray:
    """What the last norm gives for each token, in one piece."""
    decoder = Decoder(Model(path), pages=16, kv="bf16")
    logits = decoder.run([Piece(tokens, 0, range(16), len(tokens), vectors=True)])
    assert logits.shape[0] == 0
    return decoder.vectors().astype(numpy.float64)


def test_vectors_are_those_of_the_decoder_alone(packed: Path) -> None:
    prompts = [prompt(i, 1 + 17 * i) for i in range(8)]
    with engine_of(packed) as engine:
        asked = {
            engine.submit(one, max_tokens=0, sampling=GREEDY, wanted=wanted): (one, wanted)
            for one in prompts
            for wanted in ("mean", "last")
        }
        beside = [engine.submit(one, max_tokens=9, sampling=GREEDY) for one in prompts]
        told = collect(engine, [*asked, *beside])
        assert engine.stats()["vectors"] == len(asked)
        assert engine.stats()["kv_pages_used"] == 0
    for one, number in zip(prompts, beside, strict=True):
        assert answer(told[number]) == alone(packed, one, 9)
    for number, (one, wanted) in asked.items():
        (event,) = told[number]
        assert (event.finish, event.prompt_tokens) == ("stop", len(one))
        assert event.vector is not None
        rows = vectors(packed, one)
        want = rows.sum(0) if wanted == "mean" else rows[-1]
        want /= numpy.linalg.norm(want)
        assert (numpy.frombuffer(event.vector, numpy.float32) == want.astype(numpy.float32)).all()


def test_vectors_have_the_same_bits_in_a_small_cache_and_by_any_cut(packed: Path) -> None:
    prompts = [prompt(i, 100) for i in range(5)]

    def all_of(engine: ModelEngine) -> list[bytes | None]:
        requests = [
            engine.submit(one, max_tokens=0, sampling=GREEDY, wanted="mean") for one in prompts
        ]
        requests.append(engine.submit(prompts[0], max_tokens=50, sampling=GREEDY))
        told = collect(engine, requests)
        return [told[number][-1].vector for number in requests[:-1]]

    with engine_of(packed) as engine:
        wanted = all_of(engine)
    page_bytes = scant.serve.kv_page_bytes(Model(packed).description, "bf16")
    with engine_of(packed, kv_bytes=12 * page_bytes, answer_wait_s=1e-9) as engine:
        assert all_of(engine) == wanted
    assert None not in wanted and len(set(wanted)) == 5


def test_an_echo_tells_the_logprobs_of_a_prompt(packed: Path) -> None:
    texts = [prompt(1, 1), prompt(2, 90), prompt(3, 150)]
    sampling = Sampling(temperature=0.0, ignore_eos=True, logprobs=2)
    with engine_of(packed) as engine:
        collect(engine, [engine.submit(texts[2], max_tokens=3, sampling=GREEDY)])  # pages are known
        for most in (0, 4):
            requests = [
                engine.submit(one, max_tokens=most, sampling=sampling, echo=True) for one in texts
            ]
            told = collect(engine, requests)
            for one, number in zip(texts, requests, strict=True):
                events = [event for event in told[number] if event.token is not None]
                told_tokens = answer(told[number])
                assert told_tokens == one + (alone(packed, one, most) if most else [])
                assert events[0].logprob is None
                decoder = Decoder(Model(packed), pages=16, kv="bf16")
                logits = decoder.run([Piece(told_tokens, 0, range(16), len(told_tokens))])
                logits = logits.astype(numpy.float64)
                logprobs = logits - numpy.log(numpy.exp(logits).sum(1, keepdims=True))
                for place, event in enumerate(events[1:]):
                    assert event.logprob == pytest.approx(logprobs[place][event.token], abs=2e-6)
                    assert event.top[0][0] == logprobs[place].argmax()
                assert told[number][-1].finish == "length"


def test_answers_are_the_same_for_any_number_of_threads(packed: Path) -> None:
    texts = [prompt(i, 30 + 40 * i) for i in range(5)]
    answers = []
    ways: list[dict[str, Any]] = [
        {"threads": 1},
        {"threads": 3},
        {"threads": None, "answer_wait_s": 1e-9},
    ]
    for options in ways:
        engine = ModelEngine(packed, **options)
        requests = [engine.submit(one, max_tokens=150, sampling=GREEDY) for one in texts]
        answers.append([answer(told) for told in collect(engine, requests).values()])
        stats = engine.stats()
        assert stats["threads"] == options["threads"] or options["threads"] is None
        assert 1 <= stats["threads_of_answers"] <= stats["threads"]
        assert 1 <= stats["threads_of_prompts"] <= stats["threads"]
        if options["threads"] is not None:
            assert stats["threads_of_answers"] == options["threads"]
        engine.close()
    assert answers[0] == answers[1] == answers[2]
