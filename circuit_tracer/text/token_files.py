"""Files of token ids made with the model's own tokenizer: .npy, or .safetensors with one or more arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files.places import Place
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.text.documents import Cursor, FileDocuments
from circuit_tracer.text.position import place_in

DOCUMENT_TOKENS = 4096  # a document of a running array ends at the end-of-sequence id, or after so many tokens

# the ids from one place to another of the first dimension
Slice = Callable[[int, int], np.ndarray]


class TokenFiles(FileDocuments):
    """Documents of token files. Arrays are of whole numbers: (documents, tokens), or (tokens,) of running text, in which
    documents end behind the id `end`. Cursor: [file, array, place in its first dimension].
    """

    suffixes = (".npy", ".safetensors")

    def __init__(self, path: str, end: int | None) -> None:
        super().__init__(path)
        self.end = end

    def read(self, cursor: Cursor) -> Iterator[tuple[np.ndarray, Cursor]]:
        """Raises FileFormatError for a file that holds anything else."""
        first, array, start = place_in(cursor, 3)
        for number, file in enumerate(self.files[first:], first):
            with file.on_disk() as path:
                for index, ids in enumerate(_open(file, path)[array:], array):
                    for document, behind in self._documents(ids, start):
                        yield document, [number, index, behind]
                    start = 0
            array = 0

    def _documents(self, ids: np.ndarray, start: int) -> Iterator[tuple[np.ndarray, int]]:
        if ids.ndim == 2:
            for row in range(start, len(ids)):
                yield ids[row], row + 1
            return
        while start < len(ids):
            document = ids[start : start + DOCUMENT_TOKENS]
            if self.end is not None and (ends := np.flatnonzero(document == self.end)).size:
                document = document[: int(ends[0]) + 1]
            start += len(document)
            yield document, start


def _open(file: Place, path: Path) -> list[np.ndarray]:
    """Every array of a file, which is at `path` on this machine, by name; only what is asked for is read."""
    opened = open_tensor_file(path)
    arrays = [opened.tensor(name).numpy() for name in sorted(opened.entries)]
    for array in arrays:
        if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] == 0):
            raise FileFormatError(
                f"{file} holds an array of shape {array.shape} and type {array.dtype}; token ids are whole numbers of shape "
                "(tokens,) or (documents, tokens)."
            )
    return arrays
