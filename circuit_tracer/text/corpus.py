"""Token sequences in a fixed order, from any place on: packed (packing.py), or each document a sequence of its own, cut off
where it gets too long, which is right for chats and for models that were trained on single sentences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from circuit_tracer.errors import InputError
from circuit_tracer.text.documents import Cursor, Document, Documents
from circuit_tracer.text.position import place_in
from circuit_tracer.text.special import SpecialTokens


class Corpus(Protocol):
    """Sequences of token ids (P,) int64, P at most ``context_length``."""

    documents: Documents
    context_length: int

    def next(self) -> np.ndarray | None:
        """The next sequence; None at the end."""

    def state(self) -> dict[str, Any]:
        """The place behind the last sequence, JSON-able."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on behind the sequence after which ``state`` was taken."""


class ListedDocuments(Documents):
    """Texts in memory. Cursor: number of texts read."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    def read(self, cursor: Cursor) -> Iterator[tuple[Document, Cursor]]:
        """See ``Documents``."""
        (start,) = place_in(None if cursor is None else [cursor], 1)
        for number in range(start, len(self.texts)):
            yield self.texts[number], number + 1

    def fingerprint(self) -> dict[str, Any]:
        """Number of texts and a digest of them."""
        digest = hashlib.sha256("\n".join(self.texts).encode("utf-8", "surrogatepass"))
        return {"texts": len(self.texts), "digest": digest.hexdigest()[:16]}


class SeparateDocuments:
    """A sequence a document: the first token, then its beginning, up to ``context_length`` tokens in all."""

    def __init__(self, documents: Documents, tokenizer: Any, special: SpecialTokens, context_length: int) -> None:
        self.documents, self.tokenizer, self.context_length = documents, tokenizer, context_length
        self._prefix = np.array([i for i in (special.first,) if i is not None], np.int64)
        self._cursor: Cursor = None
        self._source = documents.read(None)

    def next(self) -> np.ndarray | None:
        """See ``Corpus``; documents without a token are passed over."""
        for document, behind in self._source:
            self._cursor = behind
            ids = self._ids(document)
            if len(ids):
                return np.concatenate([self._prefix, ids])[: self.context_length]
        return None

    def state(self) -> dict[str, Any]:
        """See ``Corpus``."""
        return {"cursor": self._cursor}

    def restore(self, state: dict[str, Any]) -> None:
        """See ``Corpus``."""
        self._cursor = state["cursor"]
        self._source = self.documents.read(self._cursor)

    def _ids(self, document: Document) -> np.ndarray:
        if not isinstance(document, str):
            return np.asarray(document, np.int64)
        if self.tokenizer is None:
            raise InputError("text needs a tokenizer, and this model has none; give files of token ids")
        return np.asarray(self.tokenizer(document, add_special_tokens=False, verbose=False).input_ids, np.int64)
