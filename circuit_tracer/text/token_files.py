"""Files of token ids made with the model's own tokenizer: .npy, or .safetensors with one or more arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files import open_file
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.text.documents import Cursor, FileDocuments, unreadable

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
        first, array, start = cursor or (0, 0, 0)
        for number, file in enumerate(self.files[first:], first):
            with ExitStack() as stack:
                arrays = _open(file, stack)
                for index, (shape, ids) in enumerate(arrays[array:], array):
                    for document, behind in self._documents(shape, ids, start):
                        yield document, [number, index, behind]
                    start = 0
            array = 0

    def _documents(self, shape: tuple[int, ...], ids: Slice, start: int) -> Iterator[tuple[np.ndarray, int]]:
        if len(shape) == 2:
            for row in range(start, shape[0]):
                yield ids(row, row + 1)[0], row + 1
            return
        while start < shape[0]:
            document = ids(start, min(start + DOCUMENT_TOKENS, shape[0]))
            if self.end is not None and (ends := np.flatnonzero(document == self.end)).size:
                document = document[: int(ends[0]) + 1]
            start += len(document)
            yield document, start


def _open(file: Path, stack: ExitStack) -> list[tuple[tuple[int, ...], Slice]]:
    """(shape, reader) of every array of a file, by name; only what is asked for is read."""
    try:
        if file.suffix == ".npy":
            open_file(file).close()  # a regular file
            mapped = np.load(file, mmap_mode="r", allow_pickle=False)
            if not isinstance(mapped, np.ndarray):
                raise ValueError("it is an archive of arrays")
            return [_checked(file, mapped.shape, mapped.dtype.kind in "iu", mapped.dtype, lambda a, b: mapped[a:b])]
        opened = open_tensor_file(file)
        arrays = [opened.tensor(name).numpy() for name in sorted(opened.entries)]
    except InputError:
        raise
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, TypeError, LookupError, EOFError, SyntaxError, ArithmeticError, MemoryError) as error:
        raise FileFormatError(f"{file} is not a readable .npy or .safetensors file: {error}. Copy it again.") from error
    return [_checked(file, array.shape, array.dtype.kind in "iu", array.dtype, _rows(array)) for array in arrays]


def _rows(array: np.ndarray) -> Slice:
    return lambda start, end: array[start:end]


def _checked(file: Path, shape: tuple[int, ...], whole: bool, dtype: Any, ids: Slice) -> tuple[tuple[int, ...], Slice]:
    if not whole or len(shape) not in (1, 2):
        raise FileFormatError(
            f"{file} holds an array of shape {shape} and type {dtype}; token ids are whole numbers of shape (tokens,) or "
            "(documents, tokens)."
        )
    return shape, ids
