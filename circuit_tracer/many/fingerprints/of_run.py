"""Fingerprints of a run: the table of its rows, what a label of theirs is predicted from, and the files of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import cast

import numpy as np
from torch import Tensor

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.graph.graph import Graph
from circuit_tracer.many.aggregate.tables import table_bytes
from circuit_tracer.many.fingerprints.evidence import Evidence, gather
from circuit_tracer.many.fingerprints.matrix import Matrix, matrix
from circuit_tracer.many.fingerprints.predict import Prediction
from circuit_tracer.many.runs.manifest import read_manifest
from circuit_tracer.many.runs.opened import Run
from circuit_tracer.many.runs.opening import open_model
from circuit_tracer.many.runs.store import Store
from circuit_tracer.many.runs.tracing import trace_rows
from circuit_tracer.replacement_model import ReplacementModel

FOLDER = "fingerprints"
TOGETHER = 32  # rows that are traced at once


def matrix_of(run: Run, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> Matrix:
    """The fingerprint of every row that is done.

    Args:
        run: The run (`open_run`).
        node_threshold: Share of the influence that kept nodes hold, 0 to 1 (`prune_graph`).
        edge_threshold: Share of the influence that kept edges hold, 0 to 1 (`prune_graph`).

    Returns:
        (rows, names) of the fingerprints.

    Raises:
        InputError: If none is.
    """
    return matrix(((row.id, graph) for row, graph in run.graphs()), node_threshold, edge_threshold)


def evidence_of(
    run: Run,
    model: ReplacementModel | None = None,
    *,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    seed: int = 0,
    progress: Callable[[str, int], None] = lambda stage, done: None,
) -> Evidence:
    """`gather` for the rows of a run that are done; the random dictionary's graphs are traced as the run's were.

    Args:
        run: The run (`open_run`).
        model: That of the run; None: it is opened as the run names it.
        node_threshold: Share of the influence that kept nodes hold, 0 to 1 (`prune_graph`).
        edge_threshold: Share of the influence that kept edges hold, 0 to 1 (`prune_graph`).
        seed: Of the random dictionary.
        progress: Called with (stage, rows done).

    Returns:
        Fingerprints and what the baselines read, a row a graph.

    Raises:
        CircuitTracerError: As `gather`.
    """
    manifest, rows = read_manifest(run.store), {row.id: row for row in run.rows}

    def trace(made_up: Traceable, prompts: Mapping[str, Tensor]) -> Iterator[tuple[str, Graph]]:
        # ids are given, so what is not in a Traceable, the chat template, is not needed
        like = cast("ReplacementModel", made_up)
        for start in range(0, len(prompts), TOGETHER):
            part = list(prompts.items())[start : start + TOGETHER]
            asked = [replace(rows[one], prompt=ids.tolist()) for one, ids in part]
            found = trace_rows(like, asked, manifest.tracing, manifest.means)
            for (one, _), graph in zip(part, found, strict=True):
                if isinstance(graph, Exception):
                    raise graph
                yield one, graph

    return gather(
        ((row.id, graph) for row, graph in run.graphs()),
        model or open_model(manifest),
        trace,
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        seed=seed,
        progress=progress,
    )


def write_fingerprints(place: Store, found: Matrix) -> str:
    """`fingerprints/fingerprints.parquet`, a row a graph.

    Args:
        place: Where: `run.store`, or another.
        found: Of `matrix_of`.

    Returns:
        The path or address.
    """
    return _write(place, "fingerprints", found)


def write_prediction(place: Store, evidence: Evidence, found: Prediction) -> list[str]:
    """What was predicted, beside what from: `prediction.json`; the score of each row by each predictor, `scores.parquet`; the
    tables of the evidence.

    Args:
        place: Where: `run.store`, or another.
        evidence: Of `evidence_of`.
        found: Of `predict`.

    Returns:
        The files.
    """
    scores = found.out_of_fold
    ids = list(next(iter(scores.values())))
    values = np.array([[of_row[one] for of_row in scores.values()] for one in ids])
    tables = {
        "fingerprints": evidence.fingerprints,
        "random_dictionary": evidence.random,
        "logits": evidence.logits,
        "scores": Matrix(ids, list(scores), values),
    }
    written = [_write(place, name, table) for name, table in tables.items()]
    name = f"{FOLDER}/prediction.json"
    place.write(name, (json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
    return [*written, place.where(name)]


def _write(place: Store, name: str, found: Matrix) -> str:
    file = f"{FOLDER}/{name}.parquet"
    columns = {each: found.values[:, at] for at, each in enumerate(found.names)}
    place.write(file, table_bytes({"id": np.array(found.ids, dtype=object), **columns}))
    return place.where(file)
