"""A run as its reader sees it: rows, results, graphs; while it goes on too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuit_tracer.graph.graph import Graph
from circuit_tracer.many.rows import Row


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    address: its folder, or an address such as s3://bucket/runs/x. settings: how graphs were traced. fingerprints: of model and
    dictionary ({} before the first row is traced). rows: all of them, in their order. table: one dict a row, in the same order
    (the columns: `many/runs/table.py`): id, status ("done", "failed" or "waiting"), error_type, error, label, prompt, n_tokens,
    top_token, top_probability, entropy, targets, target_weights, replacement, completeness, strict_completeness, residual,
    n_active, n_features, n_nodes, n_edges, seconds; None where there is no value.
    """

    address: str
    settings: dict[str, Any]
    fingerprints: dict[str, Any]
    rows: list[Row]
    table: list[dict[str, Any]]

    @property
    def ids(self) -> list[str]:
        """Of the rows that are done."""
        return [each["id"] for each in self.table if each["status"] == "done"]

    def graph(self, id: str) -> Graph:
        """The graph of a row. Raises InputError for a row that there is not, or that is not done."""
        raise NotImplementedError

    def graphs(self) -> Iterator[tuple[Row, Graph]]:
        """All rows that are done, one graph in memory at a time."""
        rows = {row.id: row for row in self.rows}
        return ((rows[id], self.graph(id)) for id in self.ids)

    def values(self, column: str) -> dict[str, Any]:
        """{id: value} of "label", a column of the table, or one of the rows' other columns; rows without a value are left out.

        Raises InputError for a column that no row has.
        """
        raise NotImplementedError


def open_run(address: str | Path) -> Run:
    """Open what `circuit-tracer run` made. Raises InputError if there is no run, FileFormatError if it is damaged."""
    raise NotImplementedError
