"""Which documents are read: a plain value, made by a configuration or a command line. Importing it loads no library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["huggingface", "text", "jsonl", "parquet", "tokens"]  # their readers: kinds.py
CONTEXT_LENGTH = 256  # tokens of a sequence where nothing else is asked for


@dataclass(frozen=True)
class TextSource:
    """path: id of a data set on the hub, or a file, folder or pattern. field: field or column that holds the text. name,
    split: configuration and split of a data set on the hub. What a kind has no use for is ignored.
    """

    kind: Kind
    path: str
    field: str = "text"
    name: str | None = None
    split: str = "train"


@dataclass(frozen=True)
class Mixture:
    """Several sources read together; a source's weight is its share of the text, in any unit. At least one of them."""

    parts: tuple[tuple[TextSource, float], ...]


AnySource = TextSource | Mixture
