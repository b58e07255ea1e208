"""Parquet files: one column is the text. Needs the extra `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files.places import Place
from circuit_tracer.text.documents import Cursor, FileDocuments, missing_extra
from circuit_tracer.text.position import place_in

ROWS_AT_A_TIME = 256


class ParquetFiles(FileDocuments):
    """Documents of parquet files: the strings of one column; null is an empty document. Cursor: [file, row group, row]."""

    suffixes = (".parquet",)

    def __init__(self, path: str, field: str) -> None:
        super().__init__(path)
        self.field = field
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise missing_extra("parquet files", error) from error

    def read(self, cursor: Cursor) -> Iterator[tuple[str, Cursor]]:
        """Raises FileFormatError for a file that is no parquet, InputError when it has no such column of text."""
        first, group, row = place_in(cursor, 3)
        for number, file in enumerate(self.files[first:], first):
            with file.opened() as opened:
                table = self._open(file, opened)
                for index in range(group, table.metadata.num_row_groups):
                    for text, behind in self._texts(table, file, index, row):
                        yield text, [number, index, behind]
                    row = 0
            group = 0

    def _open(self, file: Place, opened: BinaryIO) -> Any:
        import pyarrow
        from pyarrow.parquet import ParquetFile

        try:
            if file.packing is not None:
                raise FileFormatError(f"{file} is packed as a whole; parquet is packed inside. Unpack it.")
            table = ParquetFile(opened)
        except (pyarrow.ArrowException, OSError) as error:
            raise FileFormatError(f"{file} cannot be read as parquet: {error}. Copy it again.") from error
        if self.field not in table.schema_arrow.names:
            raise InputError(
                f"{file} has no column {self.field!r}; found {', '.join(map(repr, table.schema_arrow.names))}. "
                "Set data.field."
            )
        kind = table.schema_arrow.field(self.field).type
        if not any(test(kind) for test in (pyarrow.types.is_string, pyarrow.types.is_large_string)):
            raise InputError(f"{file}: column {self.field!r} holds {kind}, not text. Set data.field.")
        return table

    def _texts(self, table: Any, file: Place, group: int, row: int) -> Iterator[tuple[str, int]]:
        """The texts of a row group from `row` on, each with the number of the row behind it."""
        import pyarrow

        seen = 0
        try:
            for batch in table.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=[self.field]):
                skipped = min(max(row - seen, 0), len(batch))
                seen += skipped
                for text in batch.column(0)[skipped:].to_pylist():
                    seen += 1
                    yield text or "", seen
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise FileFormatError(f"{file} is damaged in row group {group}: {error}. Copy it again.") from error
