"""The kinds of sources and their readers. A new kind is a file with its reader, a row here, and a word in `source.Kind`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from circuit_tracer.errors import InputError
from circuit_tracer.files.packed import without_packing
from circuit_tracer.text.documents import Documents
from circuit_tracer.text.hub import HubDataset
from circuit_tracer.text.json_lines import JsonLines
from circuit_tracer.text.mixture import MixedDocuments
from circuit_tracer.text.parquet import ParquetFiles
from circuit_tracer.text.source import AnySource, Kind, Mixture, TextSource
from circuit_tracer.text.text_files import TextFiles
from circuit_tracer.text.token_files import TokenFiles


@dataclass(frozen=True)
class Reader:
    """open: the documents of a source, given the id that ends a document. suffixes: endings of its files, if it reads files."""

    open: Callable[[TextSource, int | None], Documents]
    suffixes: tuple[str, ...] = ()


READERS: dict[Kind, Reader] = {
    "huggingface": Reader(lambda source, end: HubDataset(source.path, source.name, source.split, source.field)),
    "text": Reader(lambda source, end: TextFiles(source.path), TextFiles.suffixes),
    "jsonl": Reader(lambda source, end: JsonLines(source.path, source.field), JsonLines.suffixes),
    "parquet": Reader(lambda source, end: ParquetFiles(source.path, source.field), ParquetFiles.suffixes),
    "tokens": Reader(lambda source, end: TokenFiles(source.path, end), TokenFiles.suffixes),
}


def open_documents(source: AnySource, end: int | None) -> Documents:
    """The documents of a source or of several; `end` is the id that ends a document inside a file of token ids.

    Raises InputError for an unknown kind or when nothing is at its path, CircuitTracerError when an extra is not installed.
    """
    if isinstance(source, Mixture):
        return MixedDocuments(
            [open_documents(part, end) for part, _ in source.parts], [weight for _, weight in source.parts]
        )
    if source.kind not in READERS:
        raise InputError(f"text of kind {source.kind!r} is unknown; use one of {', '.join(READERS)}")
    return READERS[source.kind].open(source, end)


def kind_of_file(path: str) -> Kind:
    """The kind that reads files of this ending. Raises InputError for an unknown one."""
    suffix = Path(without_packing(path)[0]).suffix
    of_files = {kind: reader.suffixes for kind, reader in READERS.items() if reader.suffixes}
    for kind, suffixes in of_files.items():
        if suffix in suffixes:
            return kind
    endings = ", ".join(suffix for suffixes in of_files.values() for suffix in suffixes)
    raise InputError(
        f"cannot tell what {path!r} holds: it ends in {suffix or 'nothing'}. Known endings are {endings}, and .yaml and .toml "
        f"for training configurations; otherwise name the kind (--data-kind): {', '.join(of_files)}."
    )
