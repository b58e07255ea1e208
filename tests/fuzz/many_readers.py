"""Readers of files of prompts, and of what a run over them keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from circuit_tracer.errors import FileFormatError
from circuit_tracer.many import Row, open_run, read_rows
from circuit_tracer.many.aggregate import Aggregate, aggregate_graphs
from circuit_tracer.many.runs.documents import write_document
from circuit_tracer.many.runs.manifest import FINGERPRINTS, open_manifest
from circuit_tracer.many.runs.records import write_record
from circuit_tracer.many.runs.store import Store
from circuit_tracer.many.runs.table import failed_row
from circuit_tracer.many.runs.units import Units
from tests.fuzz.reader import Reader
from tests.support.aggregate_cases import LABELS, six_graphs


def _write_jsonl(folder: Path) -> None:
    rows = [
        {"prompt": "a b", "targets": ["c"], "label": 1},
        {"tokens": [1, 2], "id": "x", "note": [None]},
        {"chat": "q"},
    ]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _write_csv(folder: Path) -> None:
    (folder / "p.csv").write_text('id,prompt,tokens,targets,note\nx,"a, b",,"[""c""]",1\ny,,1 2,,\n')


def _write_parquet(folder: Path) -> None:
    columns = {"id": ["x", "y"], "prompt": ["a b", None], "tokens": [None, [1, 2]], "note": [0.5, None]}
    parquet.write_table(pyarrow.table(columns), folder / "p.parquet")


def _rows(folder: Path) -> Any:
    """Rows; the first problem of one is an error here."""
    rows = [row for path in sorted(folder.iterdir()) for row in read_rows(path)]
    if problems := [row.problem for row in rows if row.problem is not None]:
        raise FileFormatError(problems[0])
    return [row.to_json() for row in rows]


def _write_run(folder: Path) -> None:
    store = Store.at(folder)
    open_manifest(store, {"opening": {"transcoders": "a/b"}, "layout": {"unit_rows": 1}}, {})
    rows = [Row("x", "a b", ["c"], "1", {"note": 1}), Row("y", [1, 2]), Row("z", "", problem="no JSON")]
    Units(store).add(rows, 1, "p.jsonl")
    write_document(store, FINGERPRINTS, {"model": "1f"})
    write_record(store, "0000-000000", [failed_row("x", ValueError("no"))], {"x": 0.5})


def _run(folder: Path) -> Any:
    found = open_run(folder)
    return found.settings, found.fingerprints, found.table, [row.to_json() for row in found.rows]


def _write_aggregate(folder: Path) -> None:
    aggregate_graphs(six_graphs().items(), LABELS, resamples=5).write(folder)


def _aggregate(folder: Path) -> Any:
    found = Aggregate.read(folder)
    tables = (found.features, found.edges, found.labels, found.common, found.families)
    return [{name: [*map(str, column)] for name, column in table.items()} for table in tables], found.overview


MANY_READERS: tuple[Reader, ...] = (
    Reader("rows, JSONL", _write_jsonl, _rows),
    Reader("rows, CSV", _write_csv, _rows),
    Reader("rows, parquet", _write_parquet, _rows),
    Reader("run", _write_run, _run, sealed=True),
    Reader("aggregate", _write_aggregate, _aggregate, sealed=True, slow=True),
)
