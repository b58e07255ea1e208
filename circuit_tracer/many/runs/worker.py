"""A worker: holds model and dictionary, and traces units of rows.

Graphs and records of a unit depend on the run's manifest and rows alone, to the byte, on machines of one kind with memory
enough; what differs from one time to the next is in the files of times (records.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.many.rows import Row
from circuit_tracer.many.runs.claims import changing
from circuit_tracer.many.runs.manifest import agree_on_fingerprints, read_manifest, require_same_settings
from circuit_tracer.many.runs.opening import identity, open_model
from circuit_tracer.many.runs.records import graph_of, read_record, record_of, write_record
from circuit_tracer.many.runs.store import Store
from circuit_tracer.many.runs.table import failed_row, traced_row
from circuit_tracer.many.runs.tracing import trace_rows
from circuit_tracer.many.runs.units import Units
from circuit_tracer.models.surroundings import fitting_threads, reproducible

_VARYING = ("seconds", "memory_plan")  # of a graph's provenance: they differ from one time to the next


@dataclass(frozen=True)
class UnitResult:
    """What became of a unit: how many rows are done, how many failed, and the seconds that it took."""

    unit: str
    done: int
    failed: int
    seconds: float


class Worker:
    """Model and dictionary of the run at `address`, on a device of the kind that the run was begun on.

    Raises CompatibilityError if they are not those that the run was begun with, InputError if there is no run, and what
    loading them raises.
    """

    def __init__(self, address: str, device: str | None = None) -> None:
        self.store = Store.at(address)
        self.manifest = read_manifest(self.store)
        self.model = open_model(self.manifest, device)
        with changing(self.store):  # from here on its settings stay
            agree_on_fingerprints(self.store, identity(self.model))
            require_same_settings(self.store, read_manifest(self.store), self.manifest)
        self._rows = Units(self.store).rows_of

    def work(self, unit: str) -> UnitResult:
        """Trace the rows of a unit and write their files, unless it is finished. A row that cannot be traced is a failed row.

        Raises ResourceError when a file cannot be written, KeyboardInterrupt when interrupted: then the unit is not finished.
        """
        begun, run = time.perf_counter(), self.manifest
        if self.store.exists(record_of(unit)):
            return _result(unit, read_record(self.store, unit), begun)
        rows = self._rows_of(unit)
        with reproducible(run.layout.threads), fitting_threads(self.model.parts.config.d_model):
            found = trace_rows(self.model, rows, run.tracing, run.means)
        records, times = [], {}
        for row, graph in zip(rows, found, strict=True):
            if isinstance(graph, Graph):
                times[row.id] = self._keep(row, graph)
                records.append(traced_row(row.id, graph))
            else:
                records.append(failed_row(row.id, graph))
        write_record(self.store, unit, records, times)
        return _result(unit, records, begun)

    def _rows_of(self, unit: str) -> list[Row]:
        if unit not in self._rows:
            self._rows = Units(self.store).rows_of  # added since
        if unit not in self._rows:
            raise InputError(f"the run {self.store} has no unit {unit!r}")
        return self._rows[unit]

    def _keep(self, row: Row, graph: Graph) -> float | None:
        """Write the graph without what differs from one time to the next; returns its seconds."""
        seconds: float | None = graph.provenance["seconds"]
        for varying in _VARYING:
            graph.provenance.pop(varying, None)
        name = graph_of(row.id)
        if self.store.folder:
            graph.save(self.store.folder / name)  # the file says its name, which must not be a temporary one
        else:
            with self.store.writing(name) as path:
                graph.save(path)
        return seconds


def _result(unit: str, records: list[dict[str, Any]], begun: float) -> UnitResult:
    done = sum(each["status"] == "done" for each in records)
    return UnitResult(unit, done, len(records) - done, round(time.perf_counter() - begun, 3))
