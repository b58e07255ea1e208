"""Plain text files in UTF-8, cut into documents of some pages each, so that a book can be shuffled and held out in parts."""

from __future__ import annotations

from collections.abc import Iterator

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files.places import Place
from circuit_tracer.text.documents import Cursor, FileDocuments
from circuit_tracer.text.position import place_in

DOCUMENT_BYTES = 8192  # a document ends at the first blank line after so many bytes, or once it has twice as many
READ_AT_A_TIME = 2**20  # bytes


class TextFiles(FileDocuments):
    """Documents of text files. A file of at most DOCUMENT_BYTES is one document.

    Cursor: [file, byte], bytes counted unpacked.
    """

    suffixes = (".txt", ".text", ".md", ".rst")

    def read(self, cursor: Cursor) -> Iterator[tuple[str, Cursor]]:
        """Raises InputError for a file that cannot be opened, FileFormatError for one that is not UTF-8."""
        first, start = place_in(cursor, 2)
        for number, file in enumerate(self.files[first:], first):
            for text, end in _documents(file, start):
                yield text, [number, end]
            start = 0


def _documents(file: Place, start: int) -> Iterator[tuple[str, int]]:
    """The documents of one file from byte `start` on, each with its end."""
    longest = 2 * DOCUMENT_BYTES + 1  # where a document ends follows from so many bytes
    with file.opened(start) as opened:
        window, place = b"", 0
        while True:
            if len(window) - place < longest:
                window, place = window[place:] + opened.read(max(longest, READ_AT_A_TIME)), 0
            rest = window[place : place + longest]
            if not rest:
                return
            end = _end_of_document(rest)
            yield _decode(file, rest[:end], start), start + end
            place, start = place + end, start + end


def _end_of_document(data: bytes) -> int:
    """Behind the blank line, else the line, else the word, else the character that comes after DOCUMENT_BYTES."""
    least, most = DOCUMENT_BYTES, 2 * DOCUMENT_BYTES
    if least >= len(data):
        return len(data)
    for mark in (b"\n\n", b"\r\n\r\n", b"\n", b" "):
        found = data.find(mark, least, most)
        if found >= 0:
            return found + len(mark)
    end = min(most, len(data))
    while end < len(data) and end > least and data[end] & 0xC0 == 0x80:  # never inside a character
        end -= 1
    return end


def _decode(file: Place, raw: bytes, start: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{file} is not UTF-8 text: byte {start + error.start} is {raw[error.start]:#04x}. "
            "Convert it (iconv -t UTF-8), or leave the file out."
        ) from error
