"""Vocabularies of byte-level BPE from ``tokenizer.json`` to GGUF's keys and back.

Others (SentencePiece) go to the format that they came from, and to no other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scant.errors import Corrupt, Unsupported
from scant.serve.description import NO_TOKEN, Description, Flags
from scant.serve.gguf_values import Type

__all__ = ["from_gguf", "json_text", "to_gguf", "tokenizer_config"]

_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5  # GGUF's types of tokens
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
        "use_regex": use_regex,
    }  # fmt: skip


def _split(digits: str) -> dict[str, Any]:
    pattern = {"Regex": _WORDS.format(digits=digits)}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _bytes(use_regex=False)]}


# GGUF's names of how text is cut before merges, as tokenizer.json says it.
_CUTS = {
    "gpt-2": _bytes(use_regex=True),
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _bytes(use_regex=True)],
    },
    "llama-bpe": _split("{1,3}"),
    "qwen2": _split(""),
}
_NORMALISED = ("qwen2",)  # text is brought to NFC


def _essence(cut: Any) -> Any:
    """A pre-tokenizer without the settings that do not change tokens."""
    if isinstance(cut, dict):
        return {key: _essence(value) for key, value in cut.items() if key != "trim_offsets"}
    return [_essence(one) for one in cut] if isinstance(cut, list) else cut


def _name_of(tokenizer: Mapping[str, Any]) -> str:
    cut = _essence(tokenizer.get("pre_tokenizer"))
    for name, known in _CUTS.items():
        if cut == _essence(known):
            return name
    raise Unsupported(
        f"tokenizer.json: Scant knows no GGUF name for its pre_tokenizer; known: "
        f"{', '.join(_CUTS)}. To leave the tokenizer out, add --no-tokenizer"
    )


def to_gguf(text: bytes, description: Description, template: str | None) -> dict[str, Any]:
    """The keys ``tokenizer.*`` of a ``tokenizer.json``."""
    try:
        tokenizer = json.loads(text)
        model = tokenizer["model"]
        if model.get("type") != "BPE" or model.get("byte_fallback"):
            raise Unsupported(
                f"tokenizer.json: a model {model.get('type')!r} cannot go to GGUF, only byte-level "
                "BPE can. To leave the tokenizer out, add --no-tokenizer"
            )
        tokens, kinds = _tokens(tokenizer, description.vocabulary)
        merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
        "".join([*tokens, *merges]).encode()  # halves of surrogates are no text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(f"tokenizer.json: {error!r}") from error
    d = description
    values: dict[str, Any] = {
        "tokenizer.ggml.model": (Type.TEXT, "gpt2"),
        "tokenizer.ggml.pre": (Type.TEXT, _name_of(tokenizer)),
        "tokenizer.ggml.tokens": (Type.ARRAY, tokens, Type.TEXT),
        "tokenizer.ggml.token_type": (Type.ARRAY, kinds, Type.I32),
        "tokenizer.ggml.merges": (Type.ARRAY, merges, Type.TEXT),
        "tokenizer.ggml.add_bos_token": (Type.BOOL, Flags.ADDS_BOS in d.flags),
    }
    if d.bos != NO_TOKEN:
        values["tokenizer.ggml.bos_token_id"] = (Type.U32, d.bos)
    for key, token in zip(("eos", "eot", "eom"), d.eos, strict=False):
        values[f"tokenizer.ggml.{key}_token_id"] = (Type.U32, token)
    if template is not None:
        values["tokenizer.chat_template"] = (Type.TEXT, template)
    return values


def _tokens(tokenizer: Mapping[str, Any], count: int) -> tuple[list[str], list[int]]:
    found: dict[int, tuple[str, int]] = {}
    for token, number in tokenizer["model"]["vocab"].items():
        found[number] = (token, _NORMAL)
    for one in tokenizer.get("added_tokens", []):
        found[one["id"]] = (one["content"], _CONTROL if one.get("special") else _USER)
    beyond = [number for number in found if not 0 <= number < count]
    if beyond:
        raise ValueError(f"token {beyond[0]} of a vocabulary of {count}")
    rows = [found.get(number, (f"[PAD{number}]", _UNUSED)) for number in range(count)]
    return [token for token, _ in rows], [kind for _, kind in rows]


def from_gguf(values: Mapping[str, Any], description: Description) -> bytes:
    """The ``tokenizer.json`` of a GGUF file's keys."""
    model, cut = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2" or not isinstance(cut, str) or cut not in _CUTS:
        raise Unsupported(
            f"GGUF: a tokenizer {model!r} with the pre-tokenizer {cut!r} cannot become "
            f"tokenizer.json; known: 'gpt2' with {', '.join(_CUTS)}. To leave it out, "
            "add --no-tokenizer"
        )
    tokens, kinds = _token_rows(values)
    added = [
        {
            "id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": kind == _CONTROL,
        }
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER)
    ]  # fmt: skip
    vocab = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != _UNUSED
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if cut in _NORMALISED else None,
        "pre_tokenizer": _CUTS[cut],
        "post_processor": _post_processor(tokens, description),
        "decoder": _bytes(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": values.get("tokenizer.ggml.merges", []),
        },
    }
    return json_text(tokenizer)


def json_text(table: dict[str, Any]) -> bytes:
    """A file of JSON. What is no UTF-8 in a GGUF file's texts is refused."""
    try:
        return (json.dumps(table, ensure_ascii=False, indent=2) + "\n").encode()
    except UnicodeEncodeError as error:
        raise Corrupt(f"GGUF: a text that is no UTF-8: {error}") from error


def _token_rows(values: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(one, str) for one in tokens):
        raise Corrupt("GGUF: tokenizer.ggml.tokens are no texts")
    kinds = values.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise Corrupt("GGUF: tokenizer.ggml.token_type has not as many rows as there are tokens")
    return tokens, kinds


def _post_processor(tokens: list[str], description: Description) -> dict[str, Any] | None:
    if Flags.ADDS_BOS not in description.flags or description.bos >= len(tokens):
        return None
    bos = tokens[description.bos]
    sequence = [{"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, *sequence],
        "pair": [
            {"SpecialToken": {"id": bos, "type_id": 0}}, *sequence,
            {"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [description.bos], "tokens": [bos]}},
    }  # fmt: skip


def tokenizer_config(
    values: Mapping[str, Any], description: Description, template: str | None
) -> dict[str, Any]:
    """The ``tokenizer_config.json`` of a GGUF file's keys."""
    tokens, _ = _token_rows(values)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": description.context,
        "add_bos_token": Flags.ADDS_BOS in description.flags,
    }
    if description.bos < len(tokens):
        config["bos_token"] = tokens[description.bos]
    if description.eos and description.eos[0] < len(tokens):
        config["eos_token"] = tokens[description.eos[0]]
    if template is not None:
        config["chat_template"] = template
    return config
