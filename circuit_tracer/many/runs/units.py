"""Units: small groups of rows that are done together, or not at all.

Rows get their unit when they are added to the run, and keep it: whoever computes a unit, and however often the run is killed,
its files are the same. One call of `add` is one file, `rows/0000.json`, written at once:

    {"units": {"0000-000000": [rows], ...}, "changed": {id: {"label", "extra"}}}

changed: what became of labels and other columns of rows that were there before. A unit is finished when `units/NAME.json` is
there, which is written last (worker.py). Rows that could not be read belong to no unit; `unreadable.json` has those that each
file of rows had when it was last read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from circuit_tracer.errors import InputError, shortened
from circuit_tracer.many.row_files import require_distinct
from circuit_tracer.many.rows import Row
from circuit_tracer.many.runs.documents import damaged, read_document, write_document
from circuit_tracer.many.runs.store import Store

ROWS, UNREADABLE = "rows/", "unreadable.json"
_REMEDY = "Restore it, or begin the run anew in another folder."


@dataclass(frozen=True)
class Addition:
    """Rows that were added at one time; see the top of the file."""

    units: dict[str, list[Row]]
    changed: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        units = {unit: [row.to_json() for row in rows] for unit, rows in self.units.items()}
        return {"units": units, "changed": self.changed}


class Units:
    """All units of a run, read when it is made."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.additions = [_addition(store, name) for name in store.names(ROWS)]
        self.unreadable = _unreadable(store)

    @property
    def rows_of(self) -> dict[str, list[Row]]:
        """The rows of each unit as they were added, in their order."""
        return {unit: rows for each in self.additions for unit, rows in each.units.items()}

    def current(self) -> Iterator[tuple[str | None, Row]]:
        """(unit, row) of every row, as it is known by now; last those that could not be read, which have no unit."""
        changed = {id: facts for each in self.additions for id, facts in each.changed.items()}
        known = set()
        for unit, rows in self.rows_of.items():
            for row in rows:
                known.add(row.id)
                yield unit, replace(row, **changed.get(row.id, {}))
        bad = {row.id: row for rows in self.unreadable.values() for row in rows}
        yield from ((None, row) for id, row in bad.items() if id not in known)

    def add(self, rows: Sequence[Row], unit_rows: int, source: str = "") -> int:
        """Add what is new among some rows, of a file of that name; returns how many that are.

        Raises InputError for rows of one id, and for one that has the id of a row that is there and asks for another graph.
        """
        require_distinct(rows, source or "the rows")
        known = {row.id: row for unit, row in self.current() if unit is not None}
        if other := [row.id for row in rows if row.id in known and not row.is_traced_like(known[row.id])]:
            more = f" and {len(other) - 5} more" if len(other) > 5 else ""
            raise InputError(
                f"the run {self.store} has rows {', '.join(map(shortened, other[:5]))}{more} with another prompt or other "
                "targets. Give rows that were changed new ids (rows without ids have their number: add new ones at the end), "
                "or choose another folder."
            )
        new = [row for row in rows if row.id not in known and row.problem is None]
        require_distinct([*known.values(), *new], f"the run {self.store} and the rows that are new")
        self._keep_unreadable(source, [row for row in rows if row.problem is not None])
        facts = {row.id: {"label": row.label, "extra": dict(row.extra)} for row in rows if row.id in known}
        changed = {id: now for id, now in facts.items() if now != {"label": known[id].label, "extra": known[id].extra}}
        if new or changed:
            self._append(new, changed, unit_rows)
        return len(new)

    def _append(self, new: list[Row], changed: dict[str, dict[str, Any]], unit_rows: int) -> None:
        number = len(self.additions)
        parts = [new[start : start + unit_rows] for start in range(0, len(new), unit_rows)]
        addition = Addition({f"{number:04d}-{each:06d}": part for each, part in enumerate(parts)}, changed)
        write_document(self.store, f"{ROWS}{number:04d}.json", addition.to_json())
        self.additions.append(addition)

    def _keep_unreadable(self, source: str, rows: list[Row]) -> None:
        now = {**self.unreadable, source: rows} if rows else {k: v for k, v in self.unreadable.items() if k != source}
        if now != self.unreadable:
            self.unreadable = now
            named = {name: [row.to_json() for row in each] for name, each in now.items()}
            write_document(self.store, UNREADABLE, {"files": named})


def shard_of(units: Sequence[str], number: int, count: int) -> list[str]:
    """Every count-th unit, from the number-th on."""
    return list(units[number::count])


def _addition(store: Store, name: str) -> Addition:
    found = read_document(store, name, _REMEDY)
    try:
        return Addition({unit: _rows(rows) for unit, rows in found["units"].items()}, dict(found["changed"]))
    except (LookupError, TypeError, AttributeError) as error:
        raise damaged(store, name, repr(error), _REMEDY) from error


def _unreadable(store: Store) -> dict[str, list[Row]]:
    if not store.exists(UNREADABLE):
        return {}
    try:
        return {source: _rows(rows) for source, rows in read_document(store, UNREADABLE, _REMEDY)["files"].items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise damaged(store, UNREADABLE, repr(error), _REMEDY) from error


def _rows(found: list[dict[str, Any]]) -> list[Row]:
    return [Row.from_json(each) for each in found]
