"""Examples that a probe learns from: texts or conversations with a label, or with spans of characters, and a group.

One JSON object a line:

| field | what it holds |
|---|---|
| `text` | the text; or instead `messages`, a conversation [{"role": ..., "content": ...}, ...] |
| `label` | 1 or 0, true or false, or one of two texts, of which `positive` is named |
| `spans` | which characters of the text are meant: [[start, end], ...] or [{"start": ..., "end": ...}, ...], ends excluded |
| `group` | examples of one group are never on both sides of a split; default: each is its own |

Spans say more than a label: a text without one of its own is positive if it has any.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from circuit_tracer.classify.labels import NO, YES, positive_label
from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.files import parse_json
from circuit_tracer.files.places import find_places

SUFFIXES = (".jsonl", ".ndjson")
LONGEST_LINE = 64 * 2**20  # bytes

Span = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """A text or a conversation, with what is known of it.

    Attributes:
        text: This or `messages`.
        messages: This or `text`.
        label: Whether it is what the probe is to find; None: nobody says.
        spans: Characters of the text, ascending, apart; None: nobody says where.
        group: None: its own.
        where: For messages, `file, line 3`.
    """

    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    label: bool | None = None
    spans: tuple[Span, ...] | None = None
    group: str | None = None
    where: str = "example"


def read_examples(path: str | Path, positive: str | None = None, *, labelled: bool = True) -> list[Example]:
    """The examples of a JSONL file (packed too), the files of a folder, or those at an address, in order.

    Args:
        path: A JSONL file, a folder, or an address.
        positive: The label that the probe is to find; None: the true one of true and false, yes and no, 1 and 0.
        labelled: Refuse examples without label and spans.

    Returns:
        The examples, in order.

    Raises:
        FileFormatError: For a line that cannot be read.
        InputError: For one that says something else, both naming it.
    """
    found = [
        _example(record, where)
        for place in find_places(str(path), SUFFIXES, "the file of examples")
        for where, record in _records(place)
    ]
    if not found:
        raise InputError(f"{path} holds no examples; it needs a line with a text and a label at least")
    labels = [label for _, label in found if label is not None]
    meant = _positive(labels, positive, str(path))
    examples = [_resolved(example, label, meant) for example, label in found]
    if labelled:
        for example in examples:
            if example.label is None:
                raise InputError(
                    f"{example.where} has neither label nor spans; a probe learns from examples that have one"
                )
    return examples


def _records(place: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of every line that is not empty."""
    line = 0
    with place.opened() as file:
        while raw := file.readline(LONGEST_LINE + 1):
            line += 1
            where = f"{place}, line {line}"
            if len(raw) > LONGEST_LINE:
                raise FileFormatError(f"{where} has more than {LONGEST_LINE:,} bytes")
            if raw := raw.removeprefix(b"\xef\xbb\xbf").strip() if line == 1 else raw.strip():
                record = parse_json(raw, where)
                if not isinstance(record, dict):
                    raise FileFormatError(f"{where} is {shortened(record)}; expected an object")
                yield where, record


def _example(record: dict[str, Any], where: str) -> tuple[Example, str | None]:
    """The example without its label, and the label's text."""
    text, messages = record.get("text"), record.get("messages")
    if (text is None) == (messages is None):
        raise InputError(
            f"{where} has {'both text and' if text is not None else 'neither text nor'} messages; give one"
        )
    if text is not None and not (isinstance(text, str) and text.strip()):
        raise InputError(f"{where}: text is {shortened(text)}; expected text that is not empty")
    if messages is not None and not (
        isinstance(messages, list) and messages and all(isinstance(each, dict) and "role" in each for each in messages)
    ):
        raise InputError(
            f'{where}: messages is {shortened(messages)}; expected a list of {{"role": ..., "content": ...}}'
        )
    spans, group = record.get("spans"), record.get("group")
    if group is not None and (isinstance(group, bool) or not isinstance(group, str | int)):
        raise InputError(f"{where}: group is {shortened(group)}; expected text or a whole number")
    if spans is not None:
        if text is None:
            raise InputError(f"{where} has spans of messages; spans are characters of a text: give text, or a label")
        spans = _spans(spans, text, where)
    label = record.get("label")
    if label is not None and not isinstance(label, str | int | float):
        raise InputError(f"{where}: label is {shortened(label)}; expected 1 or 0, true or false, or text")
    found = Example(text, messages, None, spans, None if group is None else str(group), where)
    return found, None if label in (None, "") else str(label).lower() if isinstance(label, bool) else _plain(label)


def _plain(label: str | float) -> str:
    """1.0 is 1: programs write either."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _spans(given: Any, text: str, where: str) -> tuple[Span, ...]:
    if not isinstance(given, list):
        raise InputError(f"{where}: spans is {shortened(given)}; expected a list of [start, end]")
    found = []
    for each in given:
        pair = [each.get("start"), each.get("end")] if isinstance(each, dict) else each
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(at) is int for at in pair)):
            raise InputError(f"{where}: a span is {shortened(each)}; expected [start, end] in characters")
        start, end = pair
        if not 0 <= start < end <= len(text):
            raise InputError(
                f"{where}: the span [{start}, {end}] is not within the text, which has characters 0 to {len(text)}; the end "
                "is excluded, and must lie behind the start. Count characters, not bytes."
            )
        found.append((start, end))
    found.sort()
    for (_, before), (start, end) in pairwise(found):
        if start < before:
            raise InputError(f"{where}: the span [{start}, {end}] lies over the one before it; join them")
    return tuple(found)


def _positive(labels: list[str], positive: str | None, source: str) -> frozenset[str]:
    """The labels that are looked for. All examples may have one label: such a file can be scored."""
    known = frozenset(labels)
    if positive is None and frozenset(map(str.lower, known)) <= YES | NO:
        return frozenset(label for label in known if label.lower() in YES)
    if positive is not None and len(known) == 1:
        return frozenset([positive])
    return frozenset([positive_label(labels, positive, f"the examples of {source}")])


def _resolved(example: Example, label: str | None, positive: frozenset[str]) -> Example:
    if label is None:
        return example if example.spans is None else replace(example, label=bool(example.spans))
    meant = label in positive
    if example.spans is None:
        return replace(example, label=meant)
    if meant != bool(example.spans):
        raise InputError(
            f"{example.where} has the label {label} and {len(example.spans)} spans; a text has spans if it is positive, and "
            "only then"
        )
    return replace(example, label=meant)


def require_fit(examples: Iterable[Example]) -> None:
    """Refuse what no split can hold apart, or no probe can learn: a text twice in different groups (its own group where none
    is named) or with different labels; spans for some positive examples only.

    Args:
        examples: The examples.

    Raises:
        InputError: For any of these.
    """
    seen: dict[str, Example] = {}
    for example in examples:
        before = seen.setdefault(repr((example.text, example.messages)), example)
        if before is example:
            continue
        if (before.label, before.spans) != (example.label, example.spans):
            raise InputError(f"{before.where} and {example.where} say different things of one text; remove one of them")
        if before.group is None or before.group != example.group:
            raise InputError(
                f"{before.where} and {example.where} have one text, which would be learned from and tested on; remove one, or "
                "give both the same group"
            )
    positive = [example for example in seen.values() if example.label]
    spanned = [example for example in positive if example.spans is not None]
    if spanned and len(spanned) < len(positive):
        without = next(example for example in positive if example.spans is None)
        raise InputError(
            f"{without.where} is positive without spans, and {spanned[0].where} has spans; give all of them some"
        )
