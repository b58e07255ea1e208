"""Documents in a fixed order, from any place in it. Each kind of source has a file of its own; kinds.py lists them.

A cursor is a place between two documents: a JSON-able value that only its source understands; None is the start.
"""

from __future__ import annotations

import glob
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from circuit_tracer.errors import CircuitTracerError, InputError

Document = str | np.ndarray  # text, or token ids (n,)
Cursor = Any
READ_WHOLE = 2 * 2**30  # bytes
PIECES, PIECE_BYTES = 256, 2**16


class Documents(ABC):
    """A data set, read from its start to its end as often as wanted: the same documents in the same order each time."""

    @abstractmethod
    def read(self, cursor: Cursor) -> Iterator[tuple[Document, Cursor]]:
        """The documents after `cursor`, each with the cursor behind it."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able values that change when the documents do (names and content of files; the name of a data set)."""


class FileDocuments(Documents):
    """Documents that lie in local files, in the order of their names."""

    suffixes: tuple[str, ...]

    def __init__(self, path: str) -> None:
        self.files = find_files(path, self.suffixes)

    def fingerprint(self) -> dict[str, Any]:
        """Number of files and a digest of their names, sizes and content.

        The content is read whole up to READ_WHOLE bytes in all, in about as many seconds as the disk takes. Of more, PIECES
        pieces of each file are read, from its first to its last byte, and `read` says so: a change between them that leaves
        the size as it was is not seen.
        """
        digest, sizes = hashlib.sha256(), [file.stat().st_size for file in self.files]
        whole = sum(sizes) <= READ_WHOLE
        for file, size in zip(self.files, sizes, strict=True):
            digest.update(f"{file.name} {size}\n".encode())
            try:
                with open(file, "rb") as opened:
                    if whole:
                        digest.update(hashlib.file_digest(opened, "sha256").digest())
                    else:
                        _add_pieces(digest, opened, size)
            except OSError as error:
                raise unreadable(file, error) from error
        return {"files": len(self.files), "digest": digest.hexdigest()[:16], "read": "whole" if whole else "in part"}


def _add_pieces(digest: Any, file: BinaryIO, size: int) -> None:
    for piece in range(PIECES):
        file.seek(max(0, size - PIECE_BYTES) * piece // (PIECES - 1))
        digest.update(file.read(PIECE_BYTES))


def find_files(path: str, suffixes: Sequence[str]) -> list[Path]:
    """The files that a path names, sorted: one file, those of a folder with one of `suffixes`, or those of a pattern.

    Raises InputError when there are none.
    """
    location = Path(path).expanduser()
    if location.is_file():
        return [location]
    if path and location.is_dir():
        found = (file for file in location.rglob("*") if file.suffix in suffixes and file.is_file())
        reason = f"the folder {location} holds no file that ends in {', '.join(suffixes)}; name the files by a pattern"
    else:
        found = (file for name in glob.glob(str(location), recursive=True) if (file := Path(name)).is_file())
        reason = f"no file at {location}"
    files = sorted(found)
    if not files:
        raise InputError(f"data.path is {path!r}: {reason}. Give a file, a folder or a pattern such as texts/**/*.txt.")
    return files


def missing_extra(what: str, error: ImportError) -> CircuitTracerError:
    """The error for a source whose library is not installed."""
    return CircuitTracerError(f"{what} need the package {error.name!r}: pip install 'circuit-tracing[datasets]'")


def unreadable(file: Path, error: OSError) -> InputError:
    """The error for a file that the operating system does not hand over."""
    return InputError(f"cannot read {file}: {error.strerror or error}. Check the file and its permissions.")
