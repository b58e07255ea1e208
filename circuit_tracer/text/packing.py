"""Documents -> sequences of one length, joined end to end.

A sequence is the first token (special.py) and then running text; every document ends with the end token. Attention runs over
the boundary, as in the packed training of language models. What is left at the end of the data and fills no sequence is not
used, so every epoch has the same sequences. Which documents are kept for evaluation follows from their number in their data
set alone.

Letters: P positions (data.context_length).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuit_tracer.errors import InputError
from circuit_tracer.text.documents import Cursor, Document, Documents
from circuit_tracer.text.kinds import open_documents
from circuit_tracer.text.source import CONTEXT_LENGTH, AnySource
from circuit_tracer.text.special import SpecialTokens

DOCUMENTS_AT_A_TIME = 64  # tokenised in one call
CHARACTERS_AT_A_TIME = 2**20


def is_held_out(number: int, share: float) -> bool:
    """Whether the document of this number is kept for evaluation: evenly spread, number 0 first."""
    return math.floor(number * share) != math.floor((number - 1) * share)


def sequence_length(asked: int | None, limit: int | None, usual: int = CONTEXT_LENGTH) -> int:
    """Tokens of a sequence: what was asked for, else the usual number, or what the model reads at most if that is less.

    Raises InputError for fewer than 2.
    """
    if asked is not None and asked < 2:
        raise InputError(
            f"context_length is {asked}; a sequence has at least 2 tokens, of which the first does not count"
        )
    return asked or min(usual, limit or usual)


@dataclass(frozen=True)
class _Placed:
    """A document's ids and how to find it again."""

    number: int
    cursor: Cursor  # in front of it
    ids: np.ndarray


class Packer:
    """Sequences (P,) int64 of the training documents, or of those held out, from any place on.

    `context_length` counts the first token. Raises InputError when text comes without a tokenizer.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Any,
        special: SpecialTokens,
        context_length: int,
        held_out: float,
        evaluation: bool = False,
    ) -> None:
        self.documents, self.tokenizer, self.special = documents, tokenizer, special
        self.context_length, self.held_out, self.evaluation = context_length, held_out, evaluation
        self.rest = np.empty(0, np.int64)  # the incomplete sequence at the end of the documents
        self._prefix = np.array([i for i in (special.first,) if i is not None], np.int64)
        self._suffix = np.array([i for i in (special.end,) if i is not None], np.int64)
        self._current, self._offset = _Placed(0, None, self._prefix[:0]), 0  # ids of a document, and how many are used
        self.rewind()

    def rewind(self) -> None:
        """Back to the start."""
        self._go_to(0, None)

    def next(self) -> np.ndarray | None:
        """The next sequence; None at the end of the documents."""
        pieces, missing = [self._prefix], self.context_length - len(self._prefix)
        while missing:
            if self._offset == len(self._current.ids):
                following = self._next_document()
                if following is None:
                    self.rest = np.concatenate(pieces)
                    return None
                self._current, self._offset = following, 0
            piece = self._current.ids[self._offset : self._offset + missing]
            pieces.append(piece)
            self._offset += len(piece)
            missing -= len(piece)
        return np.concatenate(pieces)

    def state(self) -> dict[str, Any]:
        """The place behind the last sequence, JSON-able: a document, and how many of its ids are used."""
        return {"document": self._current.number, "cursor": self._current.cursor, "offset": self._offset}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on behind the sequence after which `state` was taken."""
        self._go_to(state["document"], state["cursor"])
        if state["offset"]:
            document = self._next_document()
            if document is None or len(document.ids) < state["offset"]:
                raise InputError(
                    f"document {state['document']} of the data set ends before token {state['offset']}, where the run "
                    "stood: the data have changed. Restore them, or start the run anew."
                )
            self._current, self._offset = document, state["offset"]

    def summary(self) -> str:
        """What was read since the start or the last `restore`, for messages."""
        return f"{self._seen} documents, {self._kept} of them for {'evaluation' if self.evaluation else 'training'}"

    def _go_to(self, number: int, cursor: Cursor) -> None:
        self._current, self._offset = _Placed(number, cursor, np.empty(0, np.int64)), 0
        self._queue: deque[_Placed] = deque()
        self._source = self._choose(number, cursor)
        self._seen = self._kept = 0

    def _choose(self, number: int, cursor: Cursor) -> Iterator[tuple[int, Cursor, Document]]:
        """(number, cursor in front, document) of the documents that this packer is for."""
        for document, behind in self.documents.read(cursor):
            self._seen += 1
            if is_held_out(self.documents.own_number(number, cursor), self.held_out) == self.evaluation:
                self._kept += 1
                yield number, cursor, document
            number, cursor = number + 1, behind

    def _next_document(self) -> _Placed | None:
        while not self._queue:
            chosen = self._chunk()
            if not chosen:
                return None
            ids = self._tokenise([document for _, _, document in chosen])
            placed = (_Placed(number, cursor, one) for (number, cursor, _), one in zip(chosen, ids, strict=True))
            self._queue.extend(document for document in placed if len(document.ids))
        return self._queue.popleft()

    def _chunk(self) -> list[tuple[int, Cursor, Document]]:
        chosen, characters = [], 0
        for entry in self._source:
            chosen.append(entry)
            characters += len(entry[2])
            if len(chosen) == DOCUMENTS_AT_A_TIME or characters >= CHARACTERS_AT_A_TIME:
                break
        return chosen

    def _tokenise(self, documents: list[Document]) -> list[np.ndarray]:
        """Ids (n,) int64 of each document, the end token behind them; none for an empty document."""
        texts = [document for document in documents if isinstance(document, str)]
        if texts and self.tokenizer is None:
            raise InputError("text needs a tokenizer, and this model has none; use data.kind tokens")
        made = iter(
            self.tokenizer(
                texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
            ).input_ids
            if texts
            else ()
        )
        return [
            self._ended(np.asarray(next(made) if isinstance(document, str) else self._unpadded(document), np.int64))
            for document in documents
        ]

    def _unpadded(self, ids: np.ndarray) -> np.ndarray:
        used = np.flatnonzero(ids != self.special.pad) if self.special.pad is not None else np.arange(len(ids))
        return ids[: used[-1] + 1] if len(used) else ids[:0]

    def _ended(self, ids: np.ndarray) -> np.ndarray:
        ended = len(ids) == 0 or (len(self._suffix) > 0 and ids[-1] == self._suffix[0])
        return ids if ended else np.concatenate([ids, self._suffix])


def open_packer(source: AnySource, tokenizer: Any, context_length: int, held_out: float, evaluation: bool) -> Packer:
    """The packed documents of a source: those held out for evaluation, or the others. Raises what `open_documents` does."""
    special = SpecialTokens.of(tokenizer)
    documents = open_documents(source, special.end)
    return Packer(documents, tokenizer, special, context_length, held_out, evaluation)
