"""A run, from rows to a table: `circuit-tracer run` in Python.

rows = read_rows("prompts.jsonl")
found = run(rows, "runs/x", {"opening": {"transcoders": "path/or/hub-id"}, "tracing": {"max_n_logits": 5}})
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from circuit_tracer.errors import CircuitTracerError, ResourceError
from circuit_tracer.many.rows import Row
from circuit_tracer.many.runs.claims import changing, shard_claimed
from circuit_tracer.many.runs.local import run_locally
from circuit_tracer.many.runs.manifest import Asked, manifest_of, open_manifest
from circuit_tracer.many.runs.opened import Run, open_run
from circuit_tracer.many.runs.records import GRAPHS, RECORDS, TIMES, finished_units, graph_of, read_record, record_of
from circuit_tracer.many.runs.store import Store
from circuit_tracer.many.runs.table import require_pyarrow, write_table
from circuit_tracer.many.runs.units import ROWS, Units, shard_of
from circuit_tracer.many.runs.worker import UnitResult

Engine = Callable[[str, Sequence[str]], Iterator[UnitResult]]


@dataclass(frozen=True)
class Progress:
    """How far a run is, in rows of its shard: done, failed, and all of them; now: those of this call, in the seconds since the
    first of them was begun, after the model had been opened.
    """

    done: int
    failed: int
    total: int
    now: int
    seconds: float

    @property
    def rate(self) -> float | None:
        """Rows a second in this call; None before the first."""
        return self.now / self.seconds if self.now and self.seconds else None

    @property
    def seconds_left(self) -> float | None:
        """By that rate."""
        return None if self.rate is None else (self.total - self.done - self.failed) / self.rate


def run(
    rows: Sequence[Row],
    address: str | Path,
    asked: Asked | None = None,
    *,
    defaults: Asked | None = None,
    engine: Engine = run_locally,
    shard: tuple[int, int] = (0, 1),
    retry_failed: bool = False,
    source: str = "",
    report: Callable[[Progress], None] | None = None,
) -> Run:
    """Trace all rows that are not traced yet into the run at ``address``, and write its table; it is made if it is not there.

    asked: parts of the manifest (`manifest.py`); a run that was begun otherwise is refused. What is not asked is as the run was
    begun, or, for a new one, as in the defaults. engine: who does the work, such as `partial(run_locally, workers=4)`.
    shard: (number, count): every count-th unit, from the number-th on. retry_failed: failed rows are tried again, with those of
    their units. source: the name of the file that the rows are from.
    Interrupted (KeyboardInterrupt), or after an error, whatever units are finished stay so, and are in the table.

    Raises CompatibilityError for other settings or another model, InputError for rows that contradict those that are there or
    while another process works on the run, ResourceError when files cannot be written.
    """
    require_pyarrow()
    store = Store.at(address)
    manifest_of(store, asked or {}, defaults or {})  # what is refused leaves no folder
    for name in ("", ROWS, GRAPHS, TIMES, RECORDS):
        store.require_writable(name)
    with shard_claimed(store, *shard):
        with changing(store):
            manifest = open_manifest(store, asked or {}, defaults or {})
            units = Units(store)
            units.add(rows, manifest.layout.unit_rows, source)
        mine = {unit: len(units.rows_of[unit]) for unit in shard_of(list(units.rows_of), *shard)}
        _forget(store, mine, retry_failed)
        with _table_kept(store):
            _work(store, mine, engine, report or (lambda _: None))
        return assemble(store)


def assemble(store: Store) -> Run:
    """Write the table of what is finished by now; returns the run as it is."""
    with changing(store):
        found = open_run(store.address)
        write_table(store, found.table, found.rows)
    return found


def _work(store: Store, mine: Mapping[str, int], engine: Engine, report: Callable[[Progress], None]) -> None:
    finished = finished_units(store) & mine.keys()
    failed = sum(row["status"] == "failed" for unit in finished for row in read_record(store, unit))
    done, total = sum(mine[unit] for unit in finished) - failed, sum(mine.values())
    begun, now = 0.0, 0
    report(Progress(done, failed, total, now, 0.0))
    try:
        for result in engine(store.address, [unit for unit in mine if unit not in finished]):
            begun = begun or time.monotonic() - result.seconds
            done, failed, now = done + result.done, failed + result.failed, now + result.done + result.failed
            report(Progress(done, failed, total, now, time.monotonic() - begun))
    except ResourceError as error:
        raise ResourceError(
            f"{error} {done + failed} of {total} rows are finished and kept; run again to go on."
        ) from error


def _forget(store: Store, mine: Mapping[str, int], retry_failed: bool) -> None:
    """Remove the records of units that are to be done again: that lack a graph by now, and, if asked, that have failed rows."""
    finished = finished_units(store) & mine.keys()
    graphs = set(store.names(GRAPHS))  # after the records, which are written last
    for unit in finished:
        rows = read_record(store, unit)
        lacking = any(row["status"] == "done" and graph_of(row["id"]) not in graphs for row in rows)
        if lacking or (retry_failed and any(row["status"] == "failed" for row in rows)):
            store.remove(record_of(unit))


@contextmanager
def _table_kept(store: Store) -> Iterator[None]:
    """Inside, whatever ends the work leaves a table of what was finished before, if one can be written."""
    try:
        yield
    except BaseException:
        with suppress(CircuitTracerError):
            assemble(store)
        raise
