"""Rows of prompts: what is to be traced.

| column | what it holds |
|---|---|
| `id` | the row's name, unique in a run; default: its number in the file, from 1 on |
| `prompt` | text; or instead `tokens`, a list of token ids; or `chat`, a user's message or a list of messages |
| `targets` | what is explained: a text as --target takes it, a token id, or a list of these; default: the run's targets |
| `label` | a group to which the row belongs, by which groups are compared |
| others | kept with the row |

A row that says something else is a row with a `problem`, so that one bad line does not stop a thousand good ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from circuit_tracer.errors import InputError, shortened

Messages = list[dict[str, Any]]
Prompt = str | list[int] | Messages
KINDS = ("prompt", "tokens", "chat")  # columns that say what is traced: one of them
COLUMNS = ("id", *KINDS, "targets", "label")
LONGEST_NAME = 200  # bytes of a file's name without its ending; file systems take 255


@dataclass(frozen=True)
class Row:
    """A prompt to trace.

    Attributes:
        id: Its name, unique in a run.
        prompt: Text, token ids, or the messages of a conversation.
        targets: What is explained instead of the run's targets, as the option --target says it.
        label: What comparisons of groups go by.
        extra: The other columns, JSON values.
        problem: Why this row cannot be traced, if its line could not be read; else None.
    """

    id: str
    prompt: Prompt
    targets: list[str] | None = None
    label: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def is_traced_like(self, other: Row) -> bool:
        """Whether the other one asks for the same graph."""
        return (self.prompt, self.targets, self.problem) == (other.prompt, other.targets, other.problem)

    def to_json(self) -> dict[str, Any]:
        """JSON values, for `from_json`."""
        named = {"targets": self.targets, "label": self.label, "extra": dict(self.extra), "problem": self.problem}
        return {"id": self.id, "prompt": self.prompt, **{name: value for name, value in named.items() if value}}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Row:
        """The row of `to_json`. Raises LookupError or TypeError for anything else."""
        return cls(**{"extra": {}, **found})


def file_name(id: str) -> str:
    """An id as the name of a file: letters, digits and -_.~ as they are, other bytes as %XX; no name is hidden."""
    name = quote(id, safe="")
    return f"%2E{name[1:]}" if name.startswith(".") else name


def read_row(record: Mapping[str, Any], number: int) -> Row:
    """The row of a record, the number-th of its file. What it says wrong is the row's `problem`."""
    try:
        name = _id(record.get("id"), number)
    except InputError as error:
        return Row(f"row-{number}", "", problem=str(error))
    extra = {str(column): plain(value) for column, value in record.items() if column not in COLUMNS}
    try:
        label = _label(record.get("label"))
    except InputError as error:
        return Row(name, "", None, None, extra, str(error))
    try:
        return Row(name, _prompt(record), _targets(record.get("targets")), label, extra)
    except InputError as error:
        return Row(name, "", None, label, extra, str(error))


def plain(value: Any) -> Any:
    """A value of any file as JSON values: what JSON has no word for becomes text, numbers that are not finite null."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _id(found: Any, number: int) -> str:
    if found is None or found == "":
        return f"{number:06d}"
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise InputError(f"id is {shortened(found)}; expected text or a whole number")
    name = _text(str(found), "id")
    if len(file_name(name)) > LONGEST_NAME:
        raise InputError(f"id is {shortened(name)}, too long for the name of a file; give a shorter one")
    return name


def _label(found: Any) -> str | None:
    if found is None or found == "":
        return None
    if not isinstance(found, str | int | float):
        raise InputError(f"label is {shortened(found)}; expected text, a number, true or false")
    return _text(str(found).lower() if isinstance(found, bool) else str(found), "label")


def _prompt(record: Mapping[str, Any]) -> Prompt:
    given = [kind for kind in KINDS if record.get(kind) is not None]
    if len(given) != 1:
        said = f"has {' and '.join(given)}" if given else f"has none of {', '.join(KINDS)}"
        raise InputError(f"the row {said}; what is traced is said by one of them")
    found: Prompt = _READERS[given[0]](record[given[0]])
    return found


def _read_text(found: Any) -> str:
    if not isinstance(found, str):
        raise InputError(f"prompt is {shortened(found)}; expected text (token ids go into tokens, messages into chat)")
    return _text(found, "prompt")


def _read_tokens(found: Any) -> list[int]:
    if not isinstance(found, list) or not all(isinstance(each, int) and not isinstance(each, bool) for each in found):
        raise InputError(f"tokens is {shortened(found)}; expected a list of token ids")
    return found


def _read_chat(found: Any) -> Messages:
    if isinstance(found, str):
        return [{"role": "user", "content": _text(found, "chat")}]
    if not isinstance(found, list) or not all(isinstance(each, dict) and "role" in each for each in found):
        raise InputError(f'chat is {shortened(found)}; expected text or a list of {{"role": ..., "content": ...}}')
    return [{name: value for name, value in plain(each).items() if value is not None} for each in found]


_READERS: dict[str, Any] = {"prompt": _read_text, "tokens": _read_tokens, "chat": _read_chat}


def _targets(found: Any) -> list[str] | None:
    if found is None or found == "":
        return None
    each = found if isinstance(found, list) else [found]
    if not each or not all(isinstance(one, str | int) and not isinstance(one, bool) for one in each):
        raise InputError(f"targets is {shortened(found)}; expected a token's text or id, or a list of these")
    return [_text(one, "targets") if isinstance(one, str) else f"id:{one}" for one in each]


def _text(found: str, column: str) -> str:
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{column} holds bytes that are not UTF-8: {shortened(found)}; write the file in UTF-8"
        ) from error
    return found
