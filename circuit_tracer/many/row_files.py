"""Files of rows: JSONL, CSV or parquet, on this machine or at an address, packed or not (`.jsonl.gz`)."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError, shortened
from circuit_tracer.extras import missing_extra
from circuit_tracer.files import near_names, parse_json
from circuit_tracer.files.places import Place, find_places, is_address
from circuit_tracer.many.rows import KINDS, Row, read_row

LARGEST = 2**30  # bytes of a file of rows, unpacked
LARGEST_CELL = 2**31 - 1  # characters; the most that the csv module takes everywhere
_DELIMITERS = (",", ";", "\t")  # of a CSV file: spreadsheets take semicolons where the comma is for decimals
_OUR_JSON = ("tokens", "chat", "targets")  # columns of a CSV file that may hold JSON


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file, in its order, ids all different. A line that cannot be read is a row with a `problem`.

    Args:
        path: JSONL, CSV or parquet.

    Returns:
        The rows.

    Raises:
        InputError: If there is no such file, it holds no rows, or two have one id.
        FileFormatError: For what is no such file.

    Examples:
        >>> from pathlib import Path
        >>> from circuit_tracer.many import read_rows
        >>> _ = Path("prompts.jsonl").write_text('{"prompt": "the capital of Texas is", "label": "capital"}\\n')
        >>> row = read_rows("prompts.jsonl")[0]
        >>> row.id, row.label
        ('000001', 'capital')
    """
    place = _place(str(path))
    read = _KINDS.get(place.suffix)
    if read is None:
        raise InputError(f"{path} ends in {place.suffix or 'nothing'}; rows of prompts are read from {_expected()}")
    with place.opened() as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise FileFormatError(f"{path} holds more than {LARGEST:,} bytes; split it, and add one part after the other")
    rows = list(read(data, str(path)))
    if not rows:
        raise InputError(f"{path} holds no rows; it needs one with a {', '.join(KINDS[:-1])} or {KINDS[-1]} at least")
    require_distinct(rows, str(path))
    return rows


def require_distinct(rows: Iterable[Row], source: str) -> None:
    """Refuse two rows of one id, or of ids that differ in case alone, which some file systems do not tell apart."""
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if (before := seen.setdefault(row.id.casefold(), number)) != number:
            raise InputError(
                f"{source}: rows {before} and {number} have one id, {shortened(row.id)} (case does not count). Give each row "
                "an id of its own, or leave the column out: then rows are numbered."
            )


def _expected() -> str:
    return "files that end in " + ", ".join(_KINDS)


def _place(path: str) -> Place:
    if is_address(path):
        found = find_places(path, tuple(_KINDS), "the file of prompts")
        if len(found) != 1:
            raise InputError(f"{path} names {len(found)} files; rows are read from one: give its address")
        return found[0]
    location = Path(path).expanduser()
    if not location.is_file():
        near = near_names(location)
        raise InputError(f"no file of prompts at {path}. {near}{' ' * bool(near)}Give one of {_expected()}")
    return Place(str(location), location.stat().st_size)


def _jsonl(data: bytes, source: str) -> Iterator[Row]:
    number = 0
    _refuse_utf16(data, source)
    for line, text in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not text.strip():
            continue
        number += 1
        try:
            record = parse_json(text, f"{source}, line {line}")
            if not isinstance(record, dict):
                raise FileFormatError(f"{source}, line {line} is {shortened(record)}; expected an object")
            yield read_row(record, number)
        except FileFormatError as error:
            yield _unreadable(line, error)


def _csv(data: bytes, source: str) -> Iterator[Row]:
    _refuse_utf16(data, source)
    text = data.decode("utf-8-sig", "surrogateescape")  # a cell that is not UTF-8 is a problem of its row
    with _cells_of_any_length():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise FileFormatError(f"{source}: its first line names a column twice: {shortened(header, 300)}")
            if header and not set(header) & set(KINDS):
                raise FileFormatError(
                    f"{source}: its first line, {shortened(header, 300)}, names none of the columns {', '.join(KINDS)}. Let "
                    "it name the columns, spelt so, between commas, semicolons or tabs."
                )
            # spreadsheets write lines of empty cells below a table; an empty cell alone is an empty prompt
            filled = (each for each in reader if any(each) or len(each) == 1)
            for number, cells in enumerate(filled, start=1):
                yield _csv_row(header, cells, number, f"{source}, line {reader.line_num}")
        except csv.Error as error:
            raise FileFormatError(
                f"{source}, line {reader.line_num} is not readable CSV: {error}. A text that holds quotes or separators stands "
                "in quotes, and each quote in it twice."
            ) from error


def _delimiter(text: str) -> str:
    """What separates cells: the first by which the first line names a column that says what is traced."""
    first = text.partition("\n")[0].replace('"', "").strip()
    return next((each for each in _DELIMITERS if set(first.split(each)) & set(KINDS)), _DELIMITERS[0])


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """The csv module refuses cells of more than 131,072 characters; how long a prompt may be is the model's to say."""
    before = csv.field_size_limit(LARGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _refuse_utf16(data: bytes, source: str) -> None:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FileFormatError(f"{source} is UTF-16, as some programs call Unicode; expected UTF-8. Save it as that.")


def _csv_row(header: list[str], cells: list[str], number: int, where: str) -> Row:
    if len(cells) != len(header):
        error = FileFormatError(f"{where} has {len(cells)} cells, and {len(header)} columns are named")
        return _unreadable(number, error, "row")
    record: dict[str, Any] = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
    if "prompt" in header and not any(kind in record for kind in KINDS):
        record["prompt"] = ""  # an empty prompt, which says so when it is traced
    try:
        for column in _OUR_JSON:
            if str(record.get(column, "")).lstrip().startswith("["):
                record[column] = parse_json(record[column], f"{where}, column {column}")
        if isinstance(record.get("tokens"), str):
            record["tokens"] = [int(each) for each in record["tokens"].replace(",", " ").split()]
    except (CircuitTracerError, ValueError) as error:
        rest = {name: cell for name, cell in record.items() if name not in (*KINDS, "targets")}
        return replace(read_row({**rest, "prompt": ""}, number), problem=str(error))
    return read_row(record, number)


def _parquet(data: bytes, source: str) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise missing_extra("parquet files", error) from error
    try:
        file = ParquetFile(pyarrow.BufferReader(data))
        number = 0
        for batch in file.iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield read_row(record, number)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise FileFormatError(
            f"{source} cannot be read as parquet: {str(error).rstrip('.')}. Copy it again."
        ) from error


_KINDS: dict[str, Callable[[bytes, str], Iterator[Row]]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def _unreadable(number: int, error: CircuitTracerError, what: str = "line") -> Row:
    return Row(f"{what}-{number}", "", problem=str(error))
