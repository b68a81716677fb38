"""Text to tokens and back, a token at a time: `tokenizer.json` through Hugging Face's library.

What comes out never splits a character: bytes of an unfinished one wait for the rest. Stop strings
are found across tokens. Nothing here is shared between threads but the tokenizer, which is
read-only.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from scant.errors import Corrupt, Unsupported

__all__ = ["Detokeniser", "StopStrings", "Tokenizer", "need"]

_SPACE = "\u2581"  # SentencePiece's sign for a space
_UNFINISHED = "\ufffd"
_WINDOW = 16  # tokens that may stand for one unfinished character
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def need(*modules: str) -> list[Any]:
    """The modules that serving needs beside Scant; one error names how to get them."""
    try:
        return [importlib.import_module(name) for name in modules]
    except ImportError as error:
        missing = error.name or modules[0]
        raise Unsupported(
            f"this command needs the Python package {missing.partition('.')[0]!r}: "
            "pip install 'scant[serve]'"
        ) from error


class Detokeniser(Protocol):
    """The text of a stream of tokens."""

    def add(self, token: int) -> str:
        """What is certain by now and was not told yet."""

    def end(self) -> str:
        """The rest: an unfinished character becomes U+FFFD."""


class Tokenizer:
    """The tokenizer of a model, from the text of its `tokenizer.json`."""

    def __init__(self, json_text: bytes) -> None:
        (tokenizers,) = need("tokenizers")
        try:
            text = json_text.decode("utf-8")
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
            table = json.loads(text)
        except Exception as error:  # the library raises plain Exception
            raise Corrupt(f"tokenizer.json: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        by_name: Mapping[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(by_name.values(), default=-1) + 1
        names = [""] * self.vocabulary
        for name, number in by_name.items():
            names[number] = name
        added = self._tokenizer.get_added_tokens_decoder()
        self.specials = frozenset(number for number, one in added.items() if one.special)
        pieces = _pieces(table.get("decoder"), names, set(added))
        self._pieces: list[bytes] | None = pieces
        self._names = names
        self._shown = pieces and [
            b"" if number in self.specials else piece for number, piece in enumerate(pieces)
        ]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, special ones too where it spells them; nothing is added."""
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of whole tokens, special ones left out."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def name(self, token: int | None) -> str | None:
        """A token as a template writes it, such as `<s>`; None where there is none."""
        return self._names[token] if token is not None and 0 <= token < self.vocabulary else None

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for; a special one for its name."""
        if not 0 <= token < self.vocabulary:
            return b""
        if self._pieces is not None:
            return self._pieces[token]
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text.encode()

    def stream(self) -> Detokeniser:
        """For one answer. Special tokens have no text; a space at the beginning stays."""
        if self._shown:
            return _OfBytes(self._shown)
        return _OfWindow(self._tokenizer)


class _OfBytes:
    """Each token is a row of bytes, whatever stands around it."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""  # of a character

    def add(self, token: int) -> str:
        if not 0 <= token < len(self._pieces):
            return ""
        data = self._rest + self._pieces[token]
        if not data or data[-1] < 0x80:
            self._rest = b""
            return data.decode("utf-8", "replace")
        end = len(data) - _unfinished(data)
        self._rest = data[end:]
        return data[:end].decode("utf-8", "replace")

    def end(self) -> str:
        return self._rest.decode("utf-8", "replace")


def _unfinished(data: bytes) -> int:
    """How many bytes at the end begin a character of UTF-8 whose rest is missing."""
    for back in range(1, min(len(data), 3) + 1):
        byte = data[-back]
        if byte < 0x80:
            return 0
        if byte >= 0xC0:
            whole = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF8 else 1
            return back if back < whole else 0
    return 0


class _OfWindow:
    """For decoders that look around: the text of some last tokens, with and without the newest."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._told = 0  # of these tokens, the text is out
        self._context = ""  # their text

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        return text

    def add(self, token: int) -> str:
        self._tokens.append(token)
        text = self._text()
        if text.endswith(_UNFINISHED) and len(self._tokens) - self._told < _WINDOW:
            return ""
        return self._tell(text)

    def end(self) -> str:
        return self._tell(self._text()) if len(self._tokens) > self._told else ""

    def _tell(self, text: str) -> str:
        new = text[len(self._context) :]
        del self._tokens[: self._told]
        self._told = len(self._tokens)
        self._context = self._text()
        return new


def _pieces(decoder: Any, names: list[str], added: set[int]) -> list[bytes] | None:
    """The bytes of each token where the decoder gives each its own; None for other decoders."""
    steps = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return _byte_level(names)
    if not kinds or not set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return None
    replaced = any(
        step.get("type") == "Metaspace"
        or (step.get("pattern") == {"String": _SPACE} and step.get("content") == " ")
        for step in steps
    )
    if not replaced or kinds.count("Replace") > 1:
        return None
    return _spaces(names, added, "ByteFallback" in kinds)


def _byte_level(names: list[str]) -> list[bytes]:
    table = _byte_of_sign()
    pieces = []
    for name in names:
        found = [table.get(sign) for sign in name]
        known = [byte for byte in found if byte is not None]
        pieces.append(bytes(known) if len(known) == len(found) else name.encode())
    return pieces


def _byte_of_sign() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones are themselves, the rest follow from U+0100 on."""
    table: dict[str, int] = {}
    for byte in range(256):
        plain = 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE
        if plain:
            table[chr(byte)] = byte
    others = [byte for byte in range(256) if chr(byte) not in table]
    table.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return table


def _spaces(names: list[str], added: set[int], bytes_too: bool) -> list[bytes]:
    pieces = []
    for number, name in enumerate(names):
        byte = _BYTE.fullmatch(name) if bytes_too and number not in added else None
        pieces.append(bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode())
    return pieces


class StopStrings:
    """Cuts a stream of text before the first stop string that it completes.

    Text that may be the beginning of one waits. Where a cut falls depends on the text alone, not on
    how it came in pieces: the first string to be complete counts, of two at once the longer one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _borders(stop)) for stop in stops if stop]
        self._matched = [0] * len(self._stops)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """What may be told, and whether a stop string was found."""
        if not self._stops:
            return text, False
        begun = len(self._held)
        self._held += text
        for at in range(begun, len(self._held)):
            found = self._step(self._held[at])
            if found:
                return self._held[: at + 1 - found], True
        keep = max(self._matched)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out, False

    def _step(self, sign: str) -> int:
        """Takes one character; the length of the stop string that it completes, else 0."""
        found = 0
        for which, (stop, borders) in enumerate(self._stops):
            matched = self._matched[which]
            while matched and stop[matched] != sign:
                matched = borders[matched - 1]
            if stop[matched] == sign:
                matched += 1
            if matched == len(stop):
                found = max(found, matched)
                matched = borders[-1]
            self._matched[which] = matched
        return found

    def end(self) -> str:
        """What waited, now that no more comes."""
        rest, self._held = self._held, ""
        return rest


def _borders(stop: str) -> list[int]:
    """Of each beginning of the string: the longest proper beginning that is also its end."""
    borders = [0] * len(stop)
    matched = 0
    for at in range(1, len(stop)):
        while matched and stop[matched] != stop[at]:
            matched = borders[matched - 1]
        if stop[matched] == stop[at]:
            matched += 1
        borders[at] = matched
    return borders
