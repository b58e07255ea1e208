"""Positions in data that were saved: of the form that the reader itself would save, whatever the file says."""

from __future__ import annotations

from typing import Any

from circuit_tracer.errors import FileFormatError, shortened

DEEPEST = 16  # lists and objects inside each other in the cursor of a source


def require_position(found: Any, example: Any, source: str) -> None:
    """That ``found`` has the keys of ``example``, a state of the same reader, and numbers where it has them.

    Cursors may be any plain values. Raises FileFormatError, naming ``source``.
    """
    if not _alike(found, example):
        raise FileFormatError(
            f"{source} is damaged: the position in the data is {shortened(found)}, where one like {shortened(example)} is "
            "expected. Remove what was saved, and start anew."
        )


def _alike(found: Any, example: Any) -> bool:
    if isinstance(example, dict):
        if not isinstance(found, dict) or found.keys() != example.keys():
            return False
        return all(
            _is_cursor(found[name]) if name == "cursor" else _alike(found[name], example[name]) for name in found
        )
    return _is_count(found)


def _is_cursor(found: Any, depth: int = 0) -> bool:
    """Of what JSON knows, whole numbers, texts, and lists and objects of them: what each source's `read` looks at further."""
    if depth > DEEPEST:
        return False
    if isinstance(found, dict):
        return all(isinstance(name, str) and _is_cursor(each, depth + 1) for name, each in found.items())
    if isinstance(found, list):
        return all(_is_cursor(each, depth + 1) for each in found)
    return found is None or isinstance(found, bool | str) or _is_count(found)


def _is_count(found: Any) -> bool:
    return type(found) is int and 0 <= found < 2**62


def place_in(cursor: Any, numbers: int) -> tuple[int, ...]:
    """A cursor of so many numbers; zeros for None. Raises FileFormatError for one of another source."""
    if cursor is None:
        return (0,) * numbers
    if not (isinstance(cursor, list | tuple) and len(cursor) == numbers and all(map(_is_count, cursor))):
        raise FileFormatError(
            f"the position in the data is {shortened(cursor)}, where {numbers} numbers are expected. Remove what was saved, "
            "and start anew."
        )
    return tuple(cursor)
