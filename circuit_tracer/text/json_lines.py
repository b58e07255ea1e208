"""JSONL files: one JSON object a line, one of its fields the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.files import parse_json
from circuit_tracer.files.places import Place
from circuit_tracer.text.documents import Cursor, FileDocuments
from circuit_tracer.text.position import place_in

LONGEST_LINE = 64 * 2**20  # bytes; a text of ten million words


class JsonLines(FileDocuments):
    """Documents of JSONL files: the string in `field` of every line; null is an empty document.

    Cursor: [file, byte, line], bytes counted unpacked.
    """

    suffixes = (".jsonl", ".ndjson")

    def __init__(self, path: str, field: str) -> None:
        super().__init__(path)
        self.field = field

    def read(self, cursor: Cursor) -> Iterator[tuple[str, Cursor]]:
        """Raises FileFormatError for a line that is no JSON object, InputError for one without the field."""
        first, place, line = place_in(cursor, 3)
        for number, file in enumerate(self.files[first:], first):
            with file.opened(place) as opened:
                while raw := opened.readline(LONGEST_LINE + 1):
                    if len(raw) > LONGEST_LINE:
                        raise FileFormatError(f"{file}, line {line + 1}, has more than {LONGEST_LINE:,} bytes.")
                    place, line = place + len(raw), line + 1
                    if raw.strip():
                        yield self._text(file, line, raw), [number, place, line]
            place = line = 0

    def _text(self, file: Place, line: int, raw: bytes) -> str:
        try:
            entry = parse_json(raw, f"{file}, line {line}")
        except FileFormatError as error:
            raise FileFormatError(f"{error} Mend or remove the line.") from error
        return text_of(entry, self.field, f"{file}, line {line}")


def text_of(entry: Any, field: str, place: str) -> str:
    """The text in a field of one entry. Raises InputError, naming what there is, when it has none."""
    if not isinstance(entry, dict):
        raise FileFormatError(f"{place}, holds {type(entry).__name__}; an object with a field {field!r} is expected.")
    if field not in entry:
        names = ", ".join(shortened(name) for name in list(entry)[:20])
        raise InputError(f"{place}, has no field {field!r}; found {names}. Set data.field.")
    text = entry[field]
    if text is not None and not isinstance(text, str):
        raise InputError(f"{place}: field {field!r} holds {type(text).__name__}, not text. Set data.field.")
    return text or ""
