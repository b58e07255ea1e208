"""A run as its reader sees it: rows, results, graphs; while it goes on too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.graph.graph import Graph
from circuit_tracer.many.rows import Row
from circuit_tracer.many.runs.manifest import agree_on_fingerprints, read_fingerprints, read_manifest
from circuit_tracer.many.runs.opening import identity, open_model
from circuit_tracer.many.runs.records import graph_of, read_records
from circuit_tracer.many.runs.store import Store
from circuit_tracer.many.runs.table import make_table
from circuit_tracer.many.runs.units import Units
from circuit_tracer.replacement_model import ReplacementModel


@dataclass(frozen=True)
class Run:
    """What is known of a run, as it was when it was opened.

    Attributes:
        address: Its folder, or an address such as s3://bucket/runs/x.
        settings: How graphs were traced, {"opening", "tracing", "layout", "means"} (`manifest.py`).
        fingerprints: Of model and dictionary ({} before the first worker has opened them).
        rows: All of them, in their order.
        table: One dict a row, in the same order; `table.py` names the columns.
    """

    address: str
    settings: dict[str, Any]
    fingerprints: dict[str, Any]
    rows: list[Row]
    table: list[dict[str, Any]]
    store: Store = field(repr=False)

    @property
    def ids(self) -> list[str]:
        """Of the rows that are done."""
        return [each["id"] for each in self.table if each["status"] == "done"]

    def graph(self, id: str) -> Graph:
        """The graph of a row.

        Raises InputError for a row that there is not, that is not done, or whose file is gone; FileFormatError if that is
        damaged.
        """
        if id not in self._states:
            raise InputError(
                f"the run {self.address} has no row {shortened(id)}; it has {shortened(list(self._states))}"
            )
        if self._states[id] != "done":
            raise InputError(f"row {shortened(id)} of the run {self.address} has no graph: it is {self._states[id]}")
        try:
            with self.store.local(graph_of(id)) as path:
                return Graph.load(path)
        except FileFormatError as error:
            raise FileFormatError(
                f"{error} Or remove {self.store.where(graph_of(id))}, and run again: it is traced once more."
            ) from error
        except InputError as error:
            raise InputError(f"{error}. Run again: it is traced once more.") from error

    def graphs(self) -> Iterator[tuple[Row, Graph]]:
        """All rows that are done, one graph in memory at a time."""
        rows = {row.id: row for row in self.rows}
        return ((rows[id], self.graph(id)) for id in self.ids)

    def values(self, column: str) -> dict[str, Any]:
        """{id: value} of a column of the rows ("label" among them) or of the table; rows without a value are left out.

        Raises InputError for a column that no row has.
        """
        own = {row.id: row.extra.get(column) for row in self.rows}
        if not any(column in row.extra for row in self.rows):
            names = dict.fromkeys(name for each in (*self.table, *(row.extra for row in self.rows)) for name in each)
            if column not in names:
                raise InputError(f"the run {self.address} has no column {column!r}; it has {', '.join(names)}")
            own = {each["id"]: each[column] for each in self.table}
        return {id: value for id, value in own.items() if value is not None}

    def open_model(self, device: str | None = None) -> ReplacementModel:
        """Model and dictionary that the run was traced with. Raises CompatibilityError if they have changed since."""
        model = open_model(read_manifest(self.store), device)
        agree_on_fingerprints(self.store, identity(model))
        return model

    @cached_property
    def _states(self) -> dict[str, str]:
        return {each["id"]: each["status"] for each in self.table}


def open_run(address: str | Path) -> Run:
    """Open what `circuit-tracer run` made.

    Args:
        address: Its folder, or an address such as s3://bucket/runs/x.

    Returns:
        The run.

    Raises:
        InputError: If there is no run.
        FileFormatError: If it is damaged.
    """
    store = Store.at(address)
    manifest, units = read_manifest(store), Units(store)
    rows = list(units.current())
    table = make_table(rows, *read_records(store))
    settings = manifest.model_dump(mode="json", include={"opening", "tracing", "layout", "means"})
    return Run(str(address), settings, read_fingerprints(store), [row for _, row in rows], table, store)
