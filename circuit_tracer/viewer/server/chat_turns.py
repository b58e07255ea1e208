"""Conversations and the text that a chat template makes of them, in both directions.

How a template opens and closes a turn is found by rendering a mark in place of the content, so that no model needs a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from circuit_tracer.errors import InputError
from circuit_tracer.models.chat import chat_text

ROLES = ("system", "user", "assistant")
_MARK = "\x01mark\x01"


@dataclass(frozen=True)
class Frame:
    """What stands around the content of a role's turn."""

    role: str
    opening: str
    closing: str


def render(messages: Sequence[dict[str, str]], tokenizer: Any) -> str:
    """The prompt of a conversation, its last turn left open: an assistant's goes on, behind any other one begins.

    Raises InputError when the tokenizer has no chat template, or its template refuses the conversation.
    """
    turns = list(messages)
    if not turns:
        raise InputError("messages is empty; send at least one")
    unfinished = turns[-1]["role"] == "assistant"
    begun = turns[-1]["content"] if unfinished else ""
    if len(turns) > 1 and unfinished and not begun.strip():
        turns, unfinished = turns[:-1], False
    text = chat_text(turns, tokenizer, add_generation_prompt=not unfinished)
    if not unfinished:
        return text
    place = text.rfind(begun)
    return text if place < 0 else text[: place + len(begun)]


def frames(tokenizer: Any) -> list[Frame]:
    """The frame of each role that the chat template knows; [] without a template."""
    alone = _pieces(tokenizer, ("user",))
    if alone is None:
        return []
    before, end_of_user = alone
    found = []
    for role in ROLES:
        pair = _pieces(tokenizer, ("user", role))
        # Rather between other turns: some templates decorate the last one.
        seen = _pieces(tokenizer, ("user", role, "user")) or pair
        if seen is not None and seen[1].startswith(end_of_user):
            opening = seen[1][len(end_of_user) :]
        elif role == "user":
            opening = without_bos(before, tokenizer)
        else:
            continue
        closing = end_of_user if pair is None or role == "user" else pair[-1]
        if opening.strip():
            found.append(Frame(role, opening, closing))
    return found


def parse(text: str, known: Sequence[Frame]) -> list[dict[str, str]] | None:
    """The turns of a prompt that a template made; None for plain text, which holds no opening of a turn."""
    starts: list[tuple[int, Frame]] = []
    place = 0
    while True:
        hits = [(text.find(frame.opening, place), -len(frame.opening), frame) for frame in known]
        hits = [hit for hit in hits if hit[0] >= 0]
        if not hits:
            break
        at, _, frame = min(hits, key=lambda hit: hit[:2])
        starts.append((at, frame))
        place = at + len(frame.opening)
    turns = []
    for number, (at, frame) in enumerate(starts):
        end = starts[number + 1][0] if number + 1 < len(starts) else len(text)
        turns.append({"role": frame.role, "content": text[at + len(frame.opening) : end].removesuffix(frame.closing)})
    return turns or None


def without_bos(text: str, tokenizer: Any) -> str:
    """The text without the token that tokenising puts in front again."""
    return text.removeprefix(getattr(tokenizer, "bos_token", None) or "")


def _pieces(tokenizer: Any, roles: tuple[str, ...]) -> list[str] | None:
    """What a template writes around the contents of turns; None if it refuses them or repeats a content."""
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    try:
        messages = [{"role": role, "content": _MARK} for role in roles]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    except Exception:  # a template raises what it likes
        return None
    pieces = str(text).split(_MARK)
    return pieces if len(pieces) == len(roles) + 1 else None
