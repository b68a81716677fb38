"""Text to tokens and back as it comes; stop strings; chat templates and their limits."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from typing import Any

import pytest
from scripted_engine import BOS, END, tokenizer_json

import scant
from scant.serve.template import ChatTemplate, TemplateError
from scant.serve.text import StopStrings, Tokenizer

TEXTS = (
    "", "plain", "Grüße, 世界 🎉👩\u200d👧", "a\u0301 \u200d\r\n\t",
    "\x00\x7f\u0080\uffff\U0010ffff",
)  # fmt: skip


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.add(token) for token in tokens), stream.end()]


# ---- tokenizers --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_is_the_text_and_splits_no_character(text: str) -> None:
    tokenizer = Tokenizer(tokenizer_json())
    tokens = tokenizer.encode(text)
    parts = streamed(tokenizer, tokens)
    assert "".join(parts) == text == tokenizer.decode(tokens)
    assert not any("\ufffd" in part for part in parts)
    assert b"".join(map(tokenizer.bytes_of, tokens)).decode() == text


@pytest.mark.parametrize("seed", range(50))
def test_bytes_that_are_no_text_become_what_python_makes_of_them(seed: int) -> None:
    chance = random.Random(seed)
    good = "é世🎉a".encode()
    data = bytes(
        chance.choice(good) if chance.random() < 0.7 else chance.randrange(256) for _ in range(40)
    )
    tokenizer = Tokenizer(tokenizer_json())
    assert "".join(streamed(tokenizer, list(data))) == data.decode("utf-8", "replace")


def test_special_tokens_are_read_and_not_shown() -> None:
    tokenizer = Tokenizer(tokenizer_json())
    assert tokenizer.encode("<|begin|>a<|end|>") == [BOS, 97, END]
    assert streamed(tokenizer, [BOS, 97, END, 98]) == ["", "a", "", "b", ""]
    assert tokenizer.bytes_of(END) == b"<|end|>"
    assert (tokenizer.name(BOS), tokenizer.name(None)) == ("<|begin|>", None)
    # A vocabulary is often padded beyond what its tokenizer knows.
    assert streamed(tokenizer, [97, 50_000, -1]) == ["a", "", "", ""]
    assert tokenizer.bytes_of(50_000) == b""


def sentencepiece(decoder: dict[str, Any]) -> Tokenizer:
    """A model of pieces with spaces as U+2581 and bytes as <0x..>, as Llama 2 and Mistral have."""
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    for piece in ("▁", "▁Hello", "▁world", "H", "e", "l", "o", "!", "▁▁"):
        vocab[piece] = len(vocab)
    table: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>",
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "vocab": vocab, "merges": [],
        },
    }  # fmt: skip
    return Tokenizer(json.dumps(table).encode())


LLAMA = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


def test_pieces_keep_the_space_between_prompt_and_answer() -> None:
    tokenizer = sentencepiece(LLAMA)
    tokens = [258, 259, 1 + 0xF0, 1 + 0x9F, 1 + 0x8E, 1 + 0x89, 264]
    assert streamed(tokenizer, tokens) == [" Hello", " world", "", "", "", "🎉", "!", ""]
    assert tokenizer.decode(tokens) == "Hello world🎉!"


def test_another_decoder_is_asked_for_the_text() -> None:
    # ByteFallback after CTC: no row of bytes for each token, so a window of tokens is decoded.
    other = {
        "type": "Sequence",
        "decoders": [
            *LLAMA["decoders"][:3],
            {"type": "WordPiece", "prefix": "##", "cleanup": False},
        ],
    }
    tokenizer = sentencepiece(other)
    tokens = [258, 1 + 0xF0, 1 + 0x9F, 1 + 0x8E, 1 + 0x89, 264, 259, 1 + 0xC3]
    parts = streamed(tokenizer, tokens)
    assert "".join(parts) == tokenizer.decode(tokens)
    assert parts[1:5] == ["", "", "", "🎉"]
    assert tokenizer.bytes_of(259).decode().strip() == "world"


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"\xff", b'{"model": {"type": "BPE"}}'])
def test_what_is_no_tokenizer_is_refused(text: bytes) -> None:
    with pytest.raises(scant.Corrupt, match=r"^tokenizer\.json: "):
        Tokenizer(text)


def test_packing_needs_none_of_the_packages_of_serving() -> None:
    names = ("tokenizers", "jinja2", "starlette", "uvicorn", "httptools")
    hidden = "".join(f"sys.modules[{name!r}] = None; " for name in names)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; {hidden}\n"
            "import scant.serve.packing, scant.serve.unpacking, scant.serve.engine\n"
            "from scant import cli\n"
            "assert cli.main(['serve', 'none.scp']) == 2\n"
            "assert cli.main(['run', 'none.scp', 'x']) == 2",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line, package in zip(done.stderr.splitlines(), ("starlette", "tokenizers"), strict=True):
        assert f"needs the Python package '{package}': pip install 'scant[serve]'" in line


# ---- stop strings ------------------------------------------------------------------------------


def cut(stops: list[str], parts: list[str]) -> tuple[str, bool]:
    found = StopStrings(stops)
    out = ""
    for part in parts:
        told, hit = found.add(part)
        out += told
        if hit:
            return out, True
    return out + found.end(), False


def plainly(stops: list[str], text: str) -> tuple[str, bool]:
    """The definition: the first end of a stop string counts, and the longest that ends there."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@pytest.mark.parametrize("seed", range(200))
def test_a_cut_does_not_depend_on_pieces(seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choices("ab", k=30))
    stops = ["".join(chance.choices("ab", k=chance.randint(1, 9))) for _ in range(3)]
    cuts = sorted(chance.choices(range(len(text)), k=chance.randint(0, 12)))
    edges = [0, *cuts, len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert cut(stops, parts) == plainly(stops, text), (stops, parts)


def test_only_what_may_be_a_stop_string_waits() -> None:
    found = StopStrings(["###", "\n\nQ"])
    assert found.add("a#") == ("a", False)
    assert found.add("b") == ("#b", False)
    assert found.add("\n") == ("", False)
    assert found.add("\nR") == ("\n\nR", False)
    assert found.add("x##") == ("x", False)
    assert found.end() == "##"


# ---- templates ---------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": " <hi> "}, {"role": "assistant", "content": "ho"}]


def test_a_template_renders_as_models_expect() -> None:
    source = """
{%- for m in messages %}
    {% if loop.first and m['role'] != 'system' %}
{{ bos_token }}
    {% endif %}
{{ '[' ~ m.role.upper() ~ ']' + m['content'] | trim }}
{% generation %}
{{ {'é': [1, '<']} | tojson }}
{% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}{{ eos_token }}{% endif %}{{ tools is defined }}"""
    made = ChatTemplate(source, bos="<s>", eos="</s>").render(MESSAGES)
    assert made == ('<s>\n[USER]<hi>\n{"é": [1, "<"]}\n[ASSISTANT]ho\n{"é": [1, "<"]}\n</s>False')


def test_a_template_knows_the_date() -> None:
    assert len(ChatTemplate("{{ strftime_now('%Y') }}").render([])) == 4


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0]", "end of"),
        ("{{ 1 / 0 }}", "division"),
        ("{% include 'x' %}", "no loader"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ (1).__class__.__mro__ }}", "unsafe"),
        ("{{ '{0.x}'.format_map }}", "not for templates"),
        ("{{ range.__globals__ }}{{ x() }}", "undefined"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "calls itself too deeply"),
        ("{{ 'x' * 9000000 }}", "a value of more than"),
        ("{{ [1] * 9000000 }}", "a value of more than"),
        ("{{ 99999999999999999999 * 99999999999999999999 * 1 }}", "64 bits"),
        ("{{ 2 ** 99999999 }}", "not for templates"),
        ("{{ '%0999999999d' % 1 }}", "not for templates"),
        ("{{ '{:999999999}'.format(1) }}", "not for templates"),
        ("{{ 'x'.ljust(999999999) }}", "undefined|unsafe|not callable"),
        ("{{ 'x' | center(999999999) }}", "No filter"),
        ("{{ 'x' | indent(999999999) }}", "No filter"),
        ("{% for i in range(10001) %}{% endfor %}", "range of more than"),
        ("{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}"
         "{% endfor %}", "a value of more than"),
        ("{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}"
         "{% endfor %}", "a value of more than"),
        ("{{ ('a' * 99999).replace('a', 'b' * 999) }}", "a value of more than"),
        ("{{ ('a' * 99999) | replace('a', 'b' * 999) }}", "a value of more than"),
        ("{{ ('b' * 9999).join('a' * 9999) }}", "a value of more than"),
        ("{{ ('a' * 9999) | join('b' * 9999) }}", "a value of more than"),
        ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "it prints more than"),
        ("{{ messages | tojson(indent=99) }}", "an indent"),
        ("{{ strftime_now('%c' * 99) }}", "form of a date"),
    ],
)  # fmt: skip
def test_a_template_has_limits(source: str, words: str) -> None:
    with pytest.raises(TemplateError, match=words) as caught:
        ChatTemplate(source).render(MESSAGES)
    assert str(caught.value).startswith("chat template: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% set r = range(9999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
        "{{ m(60) }}",
    ],
)
def test_a_template_has_little_time(source: str) -> None:
    looks = iter(range(10**9))

    def clock() -> float:
        return next(looks) / 1000  # each look takes a millisecond

    with pytest.raises(TemplateError, match="ran for more than 2 s"):
        ChatTemplate(source, clock=clock).render(MESSAGES)
    assert next(looks) < 2100
    assert ChatTemplate("{{ 'fine' }}", clock=clock).render(MESSAGES) == "fine"
