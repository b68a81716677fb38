"""Readers of request logs: each format's rows, and rows that are damaged."""

from __future__ import annotations

import itertools
import math
import pathlib
from typing import Any

import pytest

from scant.errors import Corrupt, InvalidArgument
from scant.traces import Request, Selection, Shape, Trace, synthetic

BURSTGPT = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
)
ROWS = (
    BURSTGPT
    + "5,1,0.5,ChatGPT,472,18,490,Conversation log\n"
    + "45,2,0.5,GPT-4,30,0,30,API log\n"
    + "45,3,0.5,ChatGPT,1087,230,1317,API log\n"
    + "118,4,0.5,GPT-4,417,276,693,Conversation log\n"
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 23:59:59.7500000,374,44\r\n"
    "2023-11-17 00:00:01.0000000,396,109\r\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 7]}\n'
    '{"timestamp": 1500, "input_length": 100, "output_length": 6, "hash_ids": [0]}\n'
)


def trace_of(folder: pathlib.Path, text: str, *rest: Any, **more: Any) -> Trace:
    path = folder / "trace"
    path.write_bytes(text.encode())
    return Trace(path, *rest, **more)


def test_burstgpt(tmp_path: pathlib.Path) -> None:
    trace = trace_of(tmp_path, ROWS)
    assert list(trace) == [
        Request(0.0, 472, 18, "ChatGPT", "Conversation log"),
        Request(40.0, 1087, 230, "ChatGPT", "API log"),
        Request(113.0, 417, 276, "GPT-4", "Conversation log"),
    ]
    assert (trace.format, trace.resolution_s) == ("BurstGPT", 1.0)
    assert (trace.rows, trace.failed, trace.damaged) == (4, 1, 0)


def test_azure_counts_seconds_across_midnight(tmp_path: pathlib.Path) -> None:
    trace = trace_of(tmp_path, AZURE)
    assert list(trace) == [Request(0.0, 374, 44), Request(1.25, 396, 109)]
    assert (trace.format, trace.resolution_s) == ("Azure", 0.0)


def test_mooncake_has_milliseconds_and_blocks(tmp_path: pathlib.Path) -> None:
    trace = trace_of(tmp_path, MOONCAKE)
    assert list(trace) == [
        Request(0.0, 600, 5, blocks=(0, 7)),
        Request(1.5, 100, 6, blocks=(0,)),
    ]


@pytest.mark.parametrize(
    ("wanted", "prompts"),
    [
        (Selection(model="GPT-4"), [417]),
        (Selection(log_type="API log"), [1087]),
        (Selection(from_s=40.0), [1087, 417]),
        (Selection(duration_s=41.0), [472, 1087]),
        (Selection(from_s=1.0, duration_s=112.0), [1087]),
        (Selection(limit=1), [472]),
    ],
)
def test_selections(wanted: Selection, prompts: list[int], tmp_path: pathlib.Path) -> None:
    found = list(trace_of(tmp_path, ROWS, wanted))
    assert [request.prompt_tokens for request in found] == prompts


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("50,1,0.5,ChatGPT,12", "5 columns where the head has 8"),
        ("soon,1,1,ChatGPT,12,1,13,API log", "the time is 'soon', no number"),
        ("nan,1,1,ChatGPT,12,1,13,API log", "out of range"),
        ("50,1,1,ChatGPT,-12,1,13,API log", "Request tokens is '-12', no count"),
        ("50,1,1,ChatGPT,12,99999999999,13,API log", "no count of tokens"),
        ("50,1,1,ChatGPT,١٢,1,13,API log", "no count of tokens"),
        ("3,1,1,ChatGPT,12,1,13,API log", "earlier than the row before"),
        ("x" * (3 << 20), "longer than 1048576 characters"),
    ],
)
def test_a_damaged_row_is_named_and_the_next_one_read(
    row: str, why: str, tmp_path: pathlib.Path
) -> None:
    text = ROWS + row + "\n" + "120,4,0.5,GPT-4,1,2,3,API log\n"
    trace = trace_of(tmp_path, text, damaged_max=0.5)
    assert [request.at_s for request in trace] == [0.0, 40.0, 113.0, 115.0]
    assert (trace.rows, trace.damaged) == (6, 1)
    assert "line 6: " in trace.named[0] and why in trace.named[0]
    with pytest.raises(Corrupt, match="line 6: "):
        list(trace_of(tmp_path, text, strict=True))
    with pytest.raises(Corrupt, match="1 of 6 rows are damaged"):
        list(trace_of(tmp_path, text, damaged_max=0.1))


@pytest.mark.parametrize(
    "row",
    [
        '{"timestamp": 1600',
        "[1]",
        '{"timestamp": true, "input_length": 1, "output_length": 1}',
        '{"timestamp": 1600, "input_length": 1.5, "output_length": 1}',
        '{"timestamp": 1600, "input_length": 1, "output_length": NaN}',
        '{"timestamp": 1600, "input_length": 1, "output_length": 1, "hash_ids": ["a"]}',
        "[" * 100_000,
    ],
)
def test_damaged_rows_of_mooncake(row: str, tmp_path: pathlib.Path) -> None:
    trace = trace_of(tmp_path, MOONCAKE + row + "\n", damaged_max=0.5)
    assert len(list(trace)) == 2
    assert trace.damaged == 1


def test_damaged_rows_of_azure(tmp_path: pathlib.Path) -> None:
    trace = trace_of(tmp_path, AZURE + "2023-13-01 00:00:00,1,1\r\n,1,1\r\n", damaged_max=0.5)
    assert len(list(trace)) == 2
    assert trace.damaged == 2


@pytest.mark.parametrize("head", ["", "a,b,c\n", "{}\n", "\x00\n"])
def test_an_unknown_format_is_refused(head: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidArgument, match="no known trace"):
        trace_of(tmp_path, head)


def test_a_selection_that_a_format_lacks_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidArgument, match="names no models"):
        trace_of(tmp_path, AZURE, Selection(model="GPT-4"))


def test_synthetic_rows_are_a_function_of_the_seed() -> None:
    def rows(seed: int) -> list[Request]:
        shape = Shape(rate=10.0, prompt_max=100, answer_max=50)
        return list(itertools.islice(synthetic(shape, seed), 4000))

    one = rows(1)
    assert one == rows(1) != rows(2)
    assert all(1 <= r.prompt_tokens <= 100 and 1 <= r.answer_tokens <= 50 for r in one)
    assert all(a.at_s <= b.at_s for a, b in itertools.pairwise(one))
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(one)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) / mean
    assert mean == pytest.approx(0.1, rel=0.1)
    assert spread == pytest.approx(math.sqrt(2), rel=0.1), "of a gamma distribution of shape 0.5"
    ones = sum(r.prompt_tokens == 1 for r in one) / len(one)
    twos = sum(r.prompt_tokens == 2 for r in one) / len(one)
    assert ones / twos == pytest.approx(2**1.1, rel=0.15)


def test_a_shape_without_rate_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="above 0"):
        synthetic(Shape(rate=0.0), 1)
