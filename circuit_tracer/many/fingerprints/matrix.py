"""Fingerprints of many graphs as one table: a row a graph, a column a name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from circuit_tracer.classify.folds import Array
from circuit_tracer.errors import InputError
from circuit_tracer.many.fingerprints.names import family
from circuit_tracer.many.fingerprints.vector import fingerprint

if TYPE_CHECKING:
    from circuit_tracer.graph.graph import Graph


@dataclass(frozen=True)
class Matrix:
    """Named numbers of rows.

    Attributes:
        values: float64 (rows, names), finite.
    """

    ids: list[str]
    names: list[str]
    values: Array

    @classmethod
    def of(cls, vectors: Mapping[str, Mapping[str, float]]) -> Matrix:
        """Of named numbers by id. Raises InputError if there are none, or not all have the same names."""
        if not vectors:
            raise InputError("there is no row: a table of fingerprints needs at least one graph")
        first, *_ = vectors.items()
        for one, vector in vectors.items():
            if differ := sorted(vector.keys() ^ first[1].keys()):
                raise InputError(
                    f"row {one!r} and row {first[0]!r} differ in {', '.join(differ[:3])}"
                    f"{' and others' if len(differ) > 3 else ''}: one table holds graphs of one model, all of them with "
                    "their reconstruction or none"
                )
        names = list(first[1])
        values = np.array([[vector[name] for name in names] for vector in vectors.values()], dtype=np.float64)
        return cls(list(vectors), names, values)

    def without(self, left_out: str) -> Array:
        """(rows, columns) of all families but one."""
        return self.values[:, [family(name) != left_out for name in self.names]]


def matrix(graphs: Iterable[tuple[str, Graph]], node_threshold: float = 0.8, edge_threshold: float = 0.98) -> Matrix:
    """The fingerprints of graphs with their ids; thresholds as `fingerprint`'s.

    Args:
        graphs: (id, graph) pairs, read once.
        node_threshold: Share of the influence that kept nodes hold, 0 to 1 (`prune_graph`).
        edge_threshold: Share of the influence that kept edges hold, 0 to 1 (`prune_graph`).

    Returns:
        (rows, names) of the fingerprints.

    Raises:
        InputError: As `Matrix.of` does.
    """
    return Matrix.of({one: fingerprint(graph, node_threshold, edge_threshold) for one, graph in graphs})
