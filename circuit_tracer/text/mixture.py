"""Several sources of documents as one, in proportion to weights: always the same order, from any place on.

The next document is one of the part that is furthest behind its weight: of which the least text was read, divided by the
weight. So the shares hold at every place to within a document. Text is counted in characters, and a token id as TOKEN of
them. A part that is at its end begins again; the epoch ends as soon as every part was read to its end at least once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.text.documents import Cursor, Document, Documents

TOKEN = 4  # characters


@dataclass
class _Place:
    """Where a part stands."""

    cursor: Cursor = None
    number: int = 0  # of the next document in the part
    read: int = 0  # text of it, of all its passes
    passes: int = 0  # that came to their end

    def take(self, document: Document, behind: Cursor) -> None:
        """Go behind a document; an empty one counts too, so that a part of nothing else comes to its end."""
        length = len(document) if isinstance(document, str) else TOKEN * len(document)
        self.cursor, self.number, self.read = behind, self.number + 1, self.read + max(1, length)

    def begin_again(self) -> None:
        self.cursor, self.number, self.passes = None, 0, self.passes + 1

    def plain(self) -> list[Any]:
        return [self.cursor, self.number, self.read, self.passes]


class MixedDocuments(Documents):
    """Documents of several parts, each with its weight. A cursor has, for each part, its own cursor, the number of its next
    document, the text read of it and how often it was read to its end.
    """

    def __init__(self, parts: Sequence[Documents], weights: Sequence[float]) -> None:
        self.parts, self.weights = list(parts), list(weights)

    def read(self, cursor: Cursor) -> Iterator[tuple[Document, Cursor]]:
        """Raises InputError for a part without a document, and what the parts raise."""
        places = self._places(cursor)
        readers = [part.read(place.cursor) for part, place in zip(self.parts, places, strict=True)]
        waiting = [next(reader, None) for reader in readers]  # so that a cursor says where the next document stands
        while not all(place.passes for place in places):
            part = self._next(places)
            place, found = places[part], waiting[part]
            if found is None:
                raise InputError(f"part {part + 1} of data.mixture holds no document; leave it out")
            document, behind = found
            place.take(document, behind)
            waiting[part] = next(readers[part], None)
            if waiting[part] is None:
                place.begin_again()
                readers[part] = self.parts[part].read(None)
                waiting[part] = next(readers[part], None)
            yield document, [each.plain() for each in places]

    def own_number(self, number: int, cursor: Cursor) -> int:
        """So that a document of a part is held out, or not, in every pass."""
        places = self._places(cursor)
        return places[self._next(places)].number

    def fingerprint(self) -> dict[str, Any]:
        """Those of the parts, and the weights."""
        return {"parts": [part.fingerprint() for part in self.parts], "weights": self.weights}

    def _next(self, places: Sequence[_Place]) -> int:
        """The part that is furthest behind, the first of those that are."""
        return min(range(len(places)), key=lambda part: places[part].read / self.weights[part])

    def _places(self, cursor: Cursor) -> list[_Place]:
        if cursor is None:
            return [_Place() for _ in self.parts]
        try:
            places = [_Place(*each) for each in cursor if len(each) == len(fields(_Place))]
            counts = [count for place in places for count in (place.number, place.read, place.passes)]
            whole = all(type(count) is int and count >= 0 for count in counts)
        except TypeError:
            places, whole = [], False
        if len(places) != len(self.parts) or not whole:
            raise FileFormatError(
                f"the position in the data is {shortened(cursor)}, where one of {len(self.parts)} parts is expected. Remove "
                "what was saved, and start anew."
            )
        return places
