"""A stream of texts, one at a time, in order: lines of JSON, lines of plain text, or the text files of a folder.

A line that cannot be read is an item with a problem, and the stream goes on. At most one line is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError, shortened
from circuit_tracer.files import parse_json
from circuit_tracer.probes.examples import LONGEST_LINE, SUFFIXES, Example

LONGEST_TEXT = 4 * 2**20  # characters of one text
TEXT_SUFFIX = ".txt"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Incoming:
    """A text by its id, or why there is none."""

    id: str
    example: Example | None = None
    problem: str | None = None

    @classmethod
    def of(cls, id: str, record: Any, field: str = "text", where: str = "the line") -> Incoming:
        """Of a JSON value: an object with a text or messages. Never raises: what is wrong becomes the problem."""
        try:
            return cls(id, _example(record, field, where))
        except CircuitTracerError as error:
            return cls(id, problem=str(error))


def read_folder(folder: str | Path) -> Iterator[Incoming]:
    """The .txt files below a folder, in the order of their paths, which are their ids.

    Args:
        folder: Of .txt files.

    Returns:
        A text each.

    Raises:
        InputError: If there is none.
    """
    root = Path(folder)
    paths = sorted(path for path in root.rglob(f"*{TEXT_SUFFIX}") if path.is_file())
    if not paths:
        raise InputError(
            f"{folder} holds no {TEXT_SUFFIX} files; give a folder that does, or a file that ends in {SUFFIXES[0]}"
        )
    for path in paths:
        name = path.relative_to(root).as_posix()
        try:
            if path.stat().st_size > 4 * LONGEST_TEXT:
                raise FileFormatError(
                    f"{name} holds {path.stat().st_size:,} bytes; at most {4 * LONGEST_TEXT:,} are read"
                )
            yield Incoming.of(name, {"text": path.read_bytes().removeprefix(BYTE_ORDER_MARK).decode()}, where=name)
        except (OSError, UnicodeDecodeError, FileFormatError) as error:
            yield Incoming(name, problem=f"{name} cannot be read as UTF-8 text: {error}")


def read_lines(file: IO[bytes], plain: bool = False, field: str = "text", skip: int = 0) -> Iterator[Incoming]:
    """Lines of a file that is open, or of a pipe: JSON objects, or with `plain` each a text. Empty ones are left out.

    Args:
        file: Open for reading, in binary.
        plain: Each line is a text.
        field: Of an object, that holds the text; `messages` in its place is a conversation. An object's `id` is its own,
            else it is the line's number, from 1.
        skip: So many lines are passed over unread, which goes on where an earlier call ended.

    Returns:
        A text each.
    """
    for number, line in enumerate(_lines(file), start=1):
        if number <= skip:
            continue
        where, name = f"line {number}", str(number)
        if line is None:
            yield Incoming(name, problem=f"{where} has more than {LONGEST_LINE:,} bytes; write it as several texts")
        elif line.strip():
            yield _of_line(line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line, plain, field, where, name)


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Each line; None for one that is too long, whose rest is passed over."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
        yield None


def _of_line(line: bytes, plain: bool, field: str, where: str, name: str) -> Incoming:
    try:
        record = {field: line.decode().rstrip("\r\n")} if plain else parse_json(line, where)
    except UnicodeDecodeError as error:
        return Incoming(name, problem=f"{where} is not UTF-8: {error}")
    except FileFormatError as error:
        return Incoming(name, problem=str(error))
    given = record.get("id") if isinstance(record, dict) else None
    named = isinstance(given, str | int) and not isinstance(given, bool) and str(given)
    return Incoming.of(str(given) if named else name, record, field, where)


def _example(record: Any, field: str, where: str) -> Example:
    if not isinstance(record, dict):
        raise InputError(f"{where} is {shortened(record)}; expected an object with {field} or messages")
    text, messages = record.get(field), record.get("messages")
    if (text is None) == (messages is None):
        raise InputError(
            f"{where} has {f'both {field} and' if text is not None else f'neither {field} nor'} messages; give one of them"
        )
    if messages is not None:
        if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
            raise InputError(
                f'{where}: messages is {shortened(messages)}; expected a list of {{"role": ..., "content": ...}}'
            )
        return Example(messages=messages, where=where)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: {field} is {shortened(text)}; expected a text that is not empty")
    if len(text) > LONGEST_TEXT:
        raise InputError(f"{where}: {field} has {len(text):,} characters; at most {LONGEST_TEXT:,} are read, cut it")
    return Example(text, where=where)


def read_texts_of(source: str | Path, stdin: IO[bytes], plain: bool, field: str, skip: int) -> Iterator[Incoming]:
    """The stream of `-` (standard input), a folder of text files, or a file of lines. Raises InputError if there is none."""
    if str(source) == "-":
        yield from read_lines(stdin, plain, field, skip)
        return
    path = Path(source)
    if path.is_dir():
        found: Iterable[Incoming] = read_folder(path)
        yield from (item for number, item in enumerate(found) if number >= skip)
        return
    if not path.exists():  # a pipe will do, such as <(zcat log.gz)
        raise InputError(
            f"no texts at {source}; give a file that ends in {SUFFIXES[0]}, a folder of {TEXT_SUFFIX} files, or -"
        )
    with path.open("rb") as file:
        yield from read_lines(file, plain or path.suffix == TEXT_SUFFIX, field, skip)
