"""A language model may put a story's sentences into other words. It may not add, drop or change anything.

A sentence that comes back is kept only if `changes` finds nothing: the same numbers, quoted texts, node ids and titles of
groups, in the same order; no name, quantity, or word of denial, giving or proof where there was none, and none of those gone.
Otherwise the template's sentence stays. Evidence and its verdict are never reworded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from circuit_tracer.circuits.story.story import Sentence, Story
from circuit_tracer.features.chat import ChatModel, Messages

INSTRUCTIONS = (
    "You improve the style of one sentence about how a language model arrived at an answer. Keep its meaning exactly. Keep "
    "every number, every name and everything between quotation marks as it is written. Add nothing: no fact, no number, no "
    "name, no judgement. Answer with the sentence alone, on one line."
)
ANSWER_TOKENS = 200
LONGER = 1.6  # times the template's length; more says more

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_QUOTED = re.compile(r"“[^”]*”")
_NODE = re.compile(r"\b(?:E|\d+)_-?\d+_\d+\b")
_CAPITALISED = re.compile(r"(?<![.!?:;“] )(?<!^)\b[A-Z][\w'’-]*")
_QUANTITIES = """one two three four five six seven eight nine ten eleven twelve dozen hundred thousand half third quarter
    twice thrice double doubles triple most majority all none nothing only mainly mostly nearly almost"""
_KINDS = {  # of words: a sentence has some of a kind before and after, or neither
    "denial": """not no never neither nor without cannot fails hardly barely unlikely back against lowers lowered reduces
        reduced reduce decreases decreased suppresses suppressed suppress inhibits inhibited inhibit weakens weakened opposes
        opposed less fewer""",
    "giving": "to into toward towards feeds feed gives give sends send drives drive supplies supply",
    "proof": "because causes caused proves proved shows therefore thus hence must necessary sufficient",
}


def rephrased(story: Story, chat: ChatModel, titles: Iterable[str] = ()) -> Story:
    """The story in a model's words, where these say the same. titles: all names that a sentence could hold, such as those of
    other groups. Answers are kept in the chat's cache. Raises InputError for what its server refuses.
    """
    known = {*titles, story.target}
    return replace(story, sentences=tuple(_rephrased(sentence, chat, known) for sentence in story.sentences))


def changes(before: str, after: str, titles: Iterable[str] = ()) -> list[str]:
    """What a rewording changed, a phrase each; [] if it says the same."""
    return list(_changes(before, after, titles))


def _rephrased(sentence: Sentence, chat: ChatModel, titles: set[str]) -> Sentence:
    answer = chat.ask(_messages(sentence.text), ANSWER_TOKENS).strip()
    if not answer or answer == sentence.text or changes(sentence.text, answer, titles):
        return sentence
    return replace(sentence, text=answer, rephrased_by=chat.model)


def _messages(text: str) -> Messages:
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": text}]


def _changes(before: str, after: str, titles: Iterable[str]) -> Iterator[str]:
    if "\n" in after or len(after) > LONGER * len(before) + 20:
        yield "more than a sentence"
    for what, pattern in (("the quoted", _QUOTED), ("the node", _NODE)):
        there, here = pattern.findall(before), pattern.findall(after)
        yield from _differences(what, there, here)
        if sorted(there) == sorted(here) and there != here:
            yield f"{what} are in another order"
    # numbers and names outside of quotes; those in quotes have been compared whole
    plain_before, plain_after = (_QUOTED.sub("“”", text) for text in (before, after))
    words_before, words_after = (Counter(re.findall(r"[a-z]+", text.lower())) for text in (plain_before, plain_after))
    for word in _QUANTITIES.split():
        if words_after[word] > words_before[word]:
            yield f"the quantity {word!r} is new"
    names = sorted({*titles} - {""}, key=len, reverse=True)
    there, here = (_named(names, text) for text in (plain_before, plain_after))
    yield from _differences("the name or number", there, here)
    if sorted(there) == sorted(here) and there != here:
        yield "names and numbers are in another order"
    for kind, listed in _KINDS.items():
        had, has = (any(words[word] for word in listed.split()) for words in (words_before, words_after))
        if had != has:
            yield f"words of {kind} are {'gone' if had else 'new'}"
    for name in set(_CAPITALISED.findall(plain_after)):
        if name.lower() not in words_before and name not in plain_before:
            yield f"the name {name!r} is new"


def _differences(what: str, before: list[str], after: list[str]) -> Iterator[str]:
    there, here = Counter(before), Counter(after)
    yield from (f"{what} {one} is gone" for one in there - here)
    yield from (f"{what} {one} is new" for one in here - there)


def _named(names: list[str], text: str) -> list[str]:
    """The names and numbers that a text holds, in order; the longest name where one is part of another."""
    parts = [*(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names), _NUMBER.pattern]
    return [match[0] for match in re.finditer("|".join(parts), text)]
