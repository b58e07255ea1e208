"""Which features a build is about: those of given graphs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from circuit_tracer.errors import InputError
from circuit_tracer.features.build import Wanted
from circuit_tracer.graph.files.native import as_graph
from circuit_tracer.graph.files.read_json import features_of, load_viewer_json


def features_of_graphs(paths: Iterable[str | Path]) -> Wanted:
    """The features that are nodes of these graphs: native or ``.pt`` files, or viewers' JSON (pruned, so fewer of them).

    Raises InputError when they have none, and what reading a graph raises.
    """
    found: set[tuple[int, int]] = set()
    for path in paths:
        if Path(path).suffix in (".json", ".gz"):
            found.update(features_of(load_viewer_json(path)))
        else:
            graph = as_graph(path)
            rows = graph.active_features[graph.selected_features]
            found.update((int(layer), int(index)) for layer, _, index in rows.tolist())
    if not found:
        raise InputError("these graphs have no feature; give graphs that were traced with transcoders")
    layers = sorted({layer for layer, _ in found})
    return {layer: np.array(sorted(index for at, index in found if at == layer), np.int64) for layer in layers}
