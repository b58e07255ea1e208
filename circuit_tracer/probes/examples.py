"""Examples that a probe learns from: texts or conversations with a label, or with spans of characters, and a group.

One JSON object a line:

| field | what it holds |
|---|---|
| `text` | the text; or instead `messages`, a conversation [{"role": ..., "content": ...}, ...] |
| `label` | 1 or 0, true or false, or one of two texts, of which `positive` is named |
| `spans` | the characters that are meant: [[start, end], ...] or [{"start": ..., "end": ...}, ...], the end excluded; only with text |
| `group` | examples of one group are never on both sides of a split; default: each is its own |

Spans say more than a label: a text without one of its own is positive if it has any.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.files import parse_json
from circuit_tracer.files.places import find_places

SUFFIXES = (".jsonl", ".ndjson")
LONGEST_LINE = 64 * 2**20  # bytes
YES, NO = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})

Span = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """text or messages: one of them. label: whether it is what the probe is to find; None: nobody says. spans: characters of
    the text, ascending, apart; None: nobody says where. group: None: its own. where: for messages, `file, line 3`.
    """

    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    label: bool | None = None
    spans: tuple[Span, ...] | None = None
    group: str | None = None
    where: str = "example"
