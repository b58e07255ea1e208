"""Documents in a fixed order, from any place in it. Each kind of source has a file of its own; kinds.py lists them.

A cursor is a place between two documents: a JSON-able value that only its source understands; None is the start.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from circuit_tracer.errors import CircuitTracerError
from circuit_tracer.files.packed import reading
from circuit_tracer.files.places import Place, find_places

Document = str | np.ndarray  # text, or token ids (n,)
Cursor = Any
READ_WHOLE = 2 * 2**30  # bytes
PIECES, ENDS, PIECE_BYTES = 256, 2, 2**16


class Documents(ABC):
    """A data set, read from its start to its end as often as wanted: the same documents in the same order each time."""

    @abstractmethod
    def read(self, cursor: Cursor) -> Iterator[tuple[Document, Cursor]]:
        """The documents after `cursor`, each with the cursor behind it."""

    def own_number(self, number: int, cursor: Cursor) -> int:
        """The number, in its own data set, of the document behind `cursor`, which is the `number`-th that is read."""
        return number

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able values that change when the documents do (names and content of files; the name of a data set)."""


class FileDocuments(Documents):
    """Documents that lie in files, in the order of their names: local ones or at addresses of fsspec, packed or not."""

    suffixes: tuple[str, ...]

    def __init__(self, path: str) -> None:
        self.files = find_places(path, self.suffixes)

    def fingerprint(self) -> dict[str, Any]:
        """See `fingerprint_of`."""
        return fingerprint_of(self.files)


def fingerprint_of(files: Sequence[Place]) -> dict[str, Any]:
    """Number of files and a digest of their names, sizes and content as they are stored.

    The content is read whole up to READ_WHOLE bytes in all, in about as many seconds as the disk takes. Of more, PIECES
    pieces of each file are read, from its first to its last byte, and `read` says so: a change between them that leaves
    the size as it was is not seen. Of a file in a store, what the store says of its version counts, or else its two ends.
    """
    digest = hashlib.sha256()
    remote = any(file.system is not None for file in files)
    whole = not remote and sum(file.size for file in files) <= READ_WHOLE
    for file in files:
        digest.update(f"{file.file_name} {file.size} {file.version}\n".encode())
        if file.version is not None:
            continue
        with reading(file.name, file.system is not None), file.raw() as opened:
            if whole:
                digest.update(hashlib.file_digest(opened, "sha256").digest())  # type: ignore[arg-type]
            else:
                _add_pieces(digest, opened, file.size, ENDS if file.system is not None else PIECES)
    read = "whole" if whole else "in part"
    return {"files": len(files), "digest": digest.hexdigest()[:16], "read": read}


def _add_pieces(digest: Any, file: BinaryIO, size: int, pieces: int) -> None:
    for piece in range(pieces):
        file.seek(max(0, size - PIECE_BYTES) * piece // (pieces - 1))
        digest.update(file.read(PIECE_BYTES))


def missing_extra(what: str, error: ImportError) -> CircuitTracerError:
    """The error for a source whose library is not installed."""
    return CircuitTracerError(f"{what} need the package {error.name!r}: pip install 'circuit-tracing[datasets]'")
