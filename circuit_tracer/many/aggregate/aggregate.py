"""What the graphs of many prompts have in common: features and edges, labels, the common circuit, families. Method:
../README.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np

from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.extras import missing_extra
from circuit_tracer.files import parse_json
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import PrunePolicy
from circuit_tracer.many.aggregate.common import common_curve
from circuit_tracer.many.aggregate.families import find_families
from circuit_tracer.many.aggregate.incidence import Collected, Incidence, Progress, collect
from circuit_tracer.many.aggregate.labels import separating, tested_labels
from circuit_tracer.many.aggregate.overview import VERSION, Overview, family_columns, overview
from circuit_tracer.many.aggregate.profile import Positions, Setting
from circuit_tracer.many.aggregate.statistics import Columns, describe
from circuit_tracer.many.aggregate.tables import columns_of, table_bytes
from circuit_tracer.many.runs.documents import read_document, write_document
from circuit_tracer.many.runs.opened import Run
from circuit_tracer.many.runs.store import Store
from circuit_tracer.many.runs.table import require_pyarrow

FOLDER = "aggregate"
OVERVIEW = f"{FOLDER}/families.json"
TABLES = ("features", "edges", "labels", "common", "families")
# Other settings of pruning, under which the common circuit should stay what it is.
VARIED = tuple(Setting(*each) for each in product((0.7, 0.8, 0.9), (0.95, 0.98, 0.99)))


@dataclass(frozen=True)
class Aggregate:
    """Tables as columns by name (README.md).

    Attributes:
        labels: Without rows if no labels were given.
        overview: What a page shows.
    """

    features: Columns
    edges: Columns
    labels: Columns
    common: Columns
    families: Columns
    overview: Overview

    def write(self, address: str | Path) -> list[str]:
        """Write the tables, and families.json last, below ``aggregate/`` of a folder or address; their names."""
        store, digests = Store.at(address), {}
        for table in TABLES:
            data = table_bytes(getattr(self, table))
            digests[table] = sha256(data).hexdigest()
            store.write(_file_of(table), data)
        write_document(store, OVERVIEW, {**self.overview, "tables": digests})
        return [*map(_file_of, TABLES), OVERVIEW]

    @classmethod
    def read(cls, address: str | Path) -> Aggregate:
        """What ``write`` wrote. Raises InputError if there is none, FileFormatError if it is damaged, or was written in
        part.
        """
        store = Store.at(address)
        remedy = f"Make it again: circuit-tracer aggregate {address}"
        if not store.exists(OVERVIEW):
            raise InputError(f"{address} has no aggregate yet; make it with: circuit-tracer aggregate {address}")
        document = read_document(store, OVERVIEW, remedy)
        digests = document.pop("tables", None)
        if document.get("version") != VERSION or not isinstance(digests, dict):
            raise FileFormatError(
                f"{store.where(OVERVIEW)} is of version {shortened(document.get('version'))}; expected {VERSION}. {remedy}"
            )
        tables = {}
        for table in TABLES:
            data, source = store.read(_file_of(table)), store.where(_file_of(table))
            if sha256(data).hexdigest() != digests.get(table):
                raise FileFormatError(f"{source} is damaged, or not of the same aggregate as {OVERVIEW}. {remedy}")
            tables[table] = columns_of(data, source)
        return cls(**tables, overview=cast(Overview, document))


def _file_of(table: str) -> str:
    return f"{FOLDER}/{table}.parquet"


def aggregate(run: Run, *, label: str | None = "label", positions: str = "pooled", **options: Any) -> Aggregate:
    """Of the rows of a run that are done.

    Args:
        run: The run (`open_run`).
        label: The column that groups prompts; rows without a value have no part in that; None: none does.
        positions: "pooled", "end", or the column that names roles, {name: position or positions} a row.
        **options: Those of ``aggregate_graphs``.

    Returns:
        Tables of features, edges, labels and families.

    Raises:
        InputError: For a column that is not there.
    """
    labels = {} if label is None else {id: str(value) for id, value in run.values(label).items()}
    if labels and run.ids:
        tested_labels(run.ids, labels)  # before the graphs are read, which takes long
    named = positions if positions in ("pooled", "end") else _places(run, positions)
    graphs = ((row.id, graph) for row, graph in run.graphs())
    return aggregate_graphs(graphs, labels, positions=cast(Positions, named), **options)


def _places(run: Run, column: str) -> dict[str, Any]:
    """Roles by id; CSV and parquet have them as JSON."""
    values = run.values(column)
    return {id: parse_json(value, column) if isinstance(value, str) else value for id, value in values.items()}


def aggregate_graphs(
    graphs: Iterable[tuple[str, Graph]],
    labels: Mapping[str, str] | None = None,
    *,
    positions: Positions = "pooled",
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    policy: PrunePolicy = "circuit-tracer",
    families: int | None = None,
    names: Mapping[tuple[int, int], str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Aggregate:
    """Of pairs (id, graph), read once, one in memory at a time.

    Args:
        graphs: (id, graph) pairs.
        labels: By id; graphs without one are left out of the comparison of labels alone.
        positions: What counts as the same place: "pooled", "end", or roles by id.
        node_threshold: Share of the influence that kept nodes hold, 0 to 1: what counts as there.
        edge_threshold: The same of edges.
        policy: What counts as the same, and as there.
        families: How many; default: as many as the graphs have by themselves.
        names: What features are called, by (layer, index), before what graphs keep.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        progress: Called with the number of graphs read.

    Returns:
        Tables of features, edges, labels and families.

    Raises:
        InputError: For no graphs, an id twice, labels that are no two groups.
        CompatibilityError: For graphs of different dictionaries.
    """
    if resamples < 1:
        raise InputError(f"resamples is {resamples}; expected at least 1, such as 1000")
    settings = list(dict.fromkeys([Setting(node_threshold, edge_threshold), *VARIED]))
    require_extra()
    collected = collect(graphs, settings, policy, positions, progress)
    collected.names.update(names or {})
    labels = labels or {}
    made: dict[str, object] = {
        "node_threshold": node_threshold,
        "edge_threshold": edge_threshold,
        "policy": policy,
        "positions": positions if isinstance(positions, str) else "named",
        "varied": [list(each) for each in settings[1:]],
        "resamples": resamples,
        "seed": seed,
    }
    groups = find_families(collected.of_features, families)
    return Aggregate(
        features=_features(collected, resamples, seed),
        edges=_edges(collected, resamples, seed),
        labels=_labels(collected, labels),
        common=common_curve(collected.of_features, collected.of_edges),
        families=family_columns(collected, groups, labels),
        overview=overview(collected, groups, labels, made),
    )


def require_extra() -> None:
    """Raise InputError, which says how to install them, if the libraries of this are not there."""
    try:
        import scipy  # noqa: F401 - whether it is there
        import sklearn  # noqa: F401
    except ImportError as error:
        raise missing_extra("aggregates", error) from error
    require_pyarrow()


def _features(collected: Collected, resamples: int, seed: int) -> Columns:
    columns = describe(collected.of_features, resamples, seed)
    items = [collected.features[item] for item in columns.pop("items")]
    return {
        "item": _texts([str(item) for item in items]),
        "layer": np.array([item.layer for item in items], dtype=np.int64),
        "index": np.array([item.index for item in items], dtype=np.int64),
        "role": _texts([item.role for item in items]),
        "name": _texts([collected.names.get((item.layer, item.index), "") for item in items]),
        **columns,
    }


def _edges(collected: Collected, resamples: int, seed: int) -> Columns:
    columns = describe(collected.of_edges, resamples, seed)
    items = columns.pop("items")
    del columns["activation"]
    names = _texts([str(item) for item in collected.ends])
    source, target = collected.edges[items].T
    return {"source": names[source], "target": names[target], **columns}


def _labels(collected: Collected, labels: Mapping[str, str]) -> Columns:
    if not labels:
        return {"kind": _texts([]), "item": _texts([])}
    names = _texts([str(item) for item in collected.ends])
    of_edges = [f"{names[source]} -> {names[target]}" for source, target in collected.edges]
    parts: list[tuple[str, Incidence, np.ndarray]] = [
        ("feature", collected.of_features, _texts([str(item) for item in collected.features])),
        ("edge", collected.of_edges, _texts(of_edges)),
    ]
    tables = []
    for kind, found, called in parts:
        columns = separating(found, collected.ids, labels)
        items = columns.pop("items")
        tables.append({"kind": _texts([kind] * len(items)), "item": called[items], **columns})
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def _texts(values: list[str]) -> np.ndarray:
    return np.array(values, dtype=object)
