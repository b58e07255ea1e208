"""What the demo's small world knows, for prompts about something else: a word that it never saw is read as <unk>."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from circuit_tracer.demo import MODEL, world

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KNOWN = (
    "It knows US states and countries, their cities, capitals and languages ('the capital of the state containing Dallas is'), "
    "opposites ('the opposite of big is') and what comes next ('after Monday comes')"
)


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that the demo's tokenizer does not know, each once."""
    read = _tokenizer().encode(prompt)
    found = (
        prompt[start:end] for token, (start, end) in zip(read.tokens, read.offsets, strict=True) if token == "<unk>"
    )
    return list(dict.fromkeys(found))


def about_unknown(words: list[str]) -> str:
    """What to say of words that are not known, with names that are like them, and what is known."""
    named = ", ".join(map(repr, words))
    near = {word: get_close_matches(word, world.vocabulary(), 1, 0.75) for word in words}
    meant = ", ".join(f"{found[0]!r} for {word!r}" for word, found in near.items() if found)
    return f"{named}{f' (did you mean {meant}?)' if meant else ''}. {KNOWN}"


@cache
def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(MODEL) / "tokenizer.json"))
