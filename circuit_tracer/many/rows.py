"""Rows of prompts: what is to be traced, from a JSONL, CSV or parquet file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Prompt = str | list[int] | list[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """A prompt to trace.

    id: its name, unique in a run. prompt: text, token ids, or the messages of a conversation. targets: what is explained
    instead of the run's targets, as the option --target says it. label: what comparisons of groups go by. extra: the other
    columns, JSON values. problem: why this row cannot be traced, if its line could not be read; else None.
    """

    id: str
    prompt: Prompt
    targets: list[str] | None = None
    label: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read_rows(path: str) -> list[Row]:
    """The rows of a JSONL, CSV or parquet file, or of one at an address (s3://...)."""
    raise NotImplementedError
