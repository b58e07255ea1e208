"""Tokens as the text that they stand for within a sentence, byte by byte where they are no text.

`decode` of a single token leaves out the space in front of it with some tokenizers (SentencePiece, words), and gives the
replacement character for a token that holds only a part of a character. Here a token keeps its space, and bytes that spell
no character are written as \\xNN, which viewers join over neighbouring tokens.
"""

from __future__ import annotations

import re
import weakref
from functools import cached_property
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark of a space in front
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# by tokenizer: how many tokens it had, and their texts, which hold it by a weak reference
_TEXTS: weakref.WeakKeyDictionary[Any, tuple[int, TokenTexts]] = weakref.WeakKeyDictionary()


class TokenTexts:
    """Texts by token id, each made once. Without a tokenizer the text of token 5 is <5>."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[int, str] = {}
        self._alone: dict[int, str] = {}

    @classmethod
    def of(cls, tokenizer: Any) -> TokenTexts:
        """Those of a tokenizer that were made before, as long as it has as many tokens."""
        try:
            known, size = _TEXTS.get(tokenizer), len(tokenizer)
        except TypeError:  # one of somebody's own, or none
            return cls(tokenizer)
        if known is None or known[0] != size:
            texts = cls(weakref.proxy(tokenizer))
            known = _TEXTS[tokenizer] = size, texts
        return known[1]

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = f"<{token}>" if self.tokenizer is None else self._text(token)
        return self._known[token]

    def _text(self, token: int) -> str:
        if token in self._special:
            return str(self.tokenizer.decode([token]))
        front, front_text = self._front
        joined = self.tokenizer.decode([*front, token])
        text = joined.removeprefix(front_text) if joined.startswith(front_text) else self.tokenizer.decode([token])
        return self._bytes(self._name(token), text) if _REPLACEMENT in text else text

    def alone(self, token: int) -> str:
        """The text of a token by itself, as circuit-tracer's labels have it, with a space that is part of the token."""
        if token not in self._alone:
            self._alone[token] = self._by_itself(token)
        return self._alone[token]

    def _by_itself(self, token: int) -> str:
        if self.tokenizer is None:
            return self(token)
        text = str(self.tokenizer.decode([token]))
        name = self._name(token)
        if _REPLACEMENT in text:
            return self._bytes(name, text)
        return f" {text}" if name.startswith(_SPACE) and not text.startswith(" ") else text

    def _name(self, token: int) -> str:
        """What the vocabulary calls a token; empty where it does not say."""
        convert = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        return str(convert(token) or "") if convert is not None else ""

    @cached_property
    def _special(self) -> set[int]:
        return set(self.tokenizer.all_special_ids)

    @cached_property
    def _front(self) -> tuple[list[int], str]:
        """An ordinary token to stand in front, so that the next one is not the first of a text."""
        ids = list(self.tokenizer("a", add_special_tokens=False).input_ids)[-1:]
        return ids, self.tokenizer.decode(ids)

    def _bytes(self, name: str, text: str) -> str:
        if match := _BYTE.fullmatch(name):
            return f"\\x{match[1].lower()}"
        if not name or any(character not in _BYTES for character in name):
            return text
        return bytes(_BYTES[character] for character in name).decode("utf-8", "backslashreplace")


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level tokenizers (GPT-2's and its descendants) write bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + order): byte for order, byte in enumerate(hidden)}


_BYTES = _byte_alphabet()
