"""The files of a unit: what they are called, and what is read and written there.

graphs/ID.safetensors   a row's graph
times/UNIT.json         how long it took; differs from one time to the next
units/UNIT.json         what became of each row (table.py). It is written last: when it is there, the unit is finished
"""

from __future__ import annotations

from typing import Any

from circuit_tracer.errors import shortened
from circuit_tracer.many.rows import file_name
from circuit_tracer.many.runs.documents import damaged, read_document, write_document
from circuit_tracer.many.runs.store import Store

GRAPHS, TIMES, RECORDS = "graphs/", "times/", "units/"
_REMEDY = "Remove the unit's file in units/, and run again: its rows are traced once more."


def graph_of(id: str) -> str:
    """The name of the graph file of a row."""
    return f"{GRAPHS}{file_name(id)}.safetensors"


def record_of(unit: str) -> str:
    """The name of the record of a unit."""
    return f"{RECORDS}{unit}.json"


def finished_units(store: Store) -> set[str]:
    """Units whose records are there."""
    return {name.removeprefix(RECORDS).removesuffix(".json") for name in store.names(RECORDS)}


def write_record(store: Store, unit: str, rows: list[dict[str, Any]], seconds: dict[str, float | None]) -> None:
    """Write what became of the rows of a unit, and, before, how long each took, by id: with that it is finished."""
    write_document(store, f"{TIMES}{unit}.json", {"unit": unit, "seconds": seconds})
    write_document(store, record_of(unit), {"unit": unit, "rows": rows})


def read_records(store: Store) -> tuple[dict[str, dict[str, Any]], dict[str, float | None]]:
    """(what became of each row, how long it took), by id, of all units that are finished.

    Raises FileFormatError for a record that is damaged.
    """
    finished = sorted(finished_units(store))
    records = [record for unit in finished for record in read_record(store, unit)]
    times = [_read(store, f"{TIMES}{unit}.json", "seconds", dict) for unit in finished]
    return {each["id"]: each for each in records}, {id: each for time in times for id, each in time.items()}


def read_record(store: Store, unit: str) -> list[dict[str, Any]]:
    """What became of the rows of a finished unit."""
    name = record_of(unit)
    rows: list[Any] = _read(store, name, "rows", list)
    if not all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in rows):
        raise damaged(store, name, "not all of its rows have ids", _REMEDY)
    return rows


def _read(store: Store, name: str, key: str, kind: type) -> Any:
    found = read_document(store, name, _REMEDY).get(key)
    if not isinstance(found, kind):
        raise damaged(store, name, f"{key} is {shortened(found)}", _REMEDY)
    return found
