"""The text that features are looked at on: token sequences in a fixed order, from any place on.

Documents come from where training takes them. They are joined end to end into sequences of one length (packed, as
language models are trained), or each is a sequence of its own, cut off where it gets too long: right for chats and for
models that were trained on single sentences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np

from circuit_tracer.errors import InputError
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.text.documents import Cursor, Document, Documents, open_documents
from circuit_tracer.text.packing import Packer
from circuit_tracer.text.special import SpecialTokens
from circuit_tracer.training.config.schema import DataSection
from circuit_tracer.training.data.source import open_packer


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
        for number in range(cursor or 0, len(self.texts)):
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


def open_corpus(
    source: str,
    parts: ModelParts,
    tokenizer: Any,
    *,
    kind: str | None = None,
    field: str = "text",
    context_length: int | None = None,
    separate: bool = False,
) -> Corpus:
    """The corpus that ``source`` names: files of text, JSONL, parquet or token ids, or the training documents of a
    configuration (file, preset or run folder).

    kind, field: as in a configuration's section data, for files. context_length: default that of training, or the
    model's if it is shorter. Raises InputError for what cannot be read.
    """
    from circuit_tracer.training.evaluation.held_out import configuration, kind_of_file

    config = configuration(source)
    default = int(DataSection.model_fields["context_length"].default) if config is None else config.data.context_length
    length = context_length or min(default, parts.context_length or default)
    special = SpecialTokens.of(tokenizer)
    if config is not None and not separate:
        data = config.data.model_copy(update={"context_length": length})
        return open_packer(config.model_copy(update={"data": data}), tokenizer, evaluation=False)
    if config is not None:
        return SeparateDocuments(open_documents(config.data, special.end), tokenizer, special, length)
    data = DataSection(kind=cast(Any, kind or kind_of_file(source)), path=source, field=field, context_length=length)
    documents = open_documents(data, special.end)
    if separate:
        return SeparateDocuments(documents, tokenizer, special, length)
    return Packer(documents, tokenizer, special, length, held_out=1.0, evaluation=True)
